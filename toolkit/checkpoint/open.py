"""From a path to its weights under their own names: `open_checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rkfleet.errors import NotFound
from toolkit.checkpoint.base import Checkpoint
from toolkit.checkpoint.gguf import GgufCheckpoint
from toolkit.checkpoint.pytorch import PytorchCheckpoint
from toolkit.checkpoint.safetensors import SafetensorsCheckpoint
from toolkit.checkpoint.shards import shards

__all__ = ["open_checkpoint"]

_SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_PICKLE: Final = "pytorch_model.bin"
_PICKLE_INDEX: Final = "pytorch_model.bin.index.json"
_PICKLES: Final = (".bin", ".pt", ".pth")


def open_checkpoint(path: Path) -> Checkpoint:
    """Open the weights in a directory of a Hugging Face model, or in one file.

    Raises:
        NotFound: There is nothing, or the directory has no weights.
        Invalid: A file is damaged, or of a kind that is not read.
    """
    if not path.exists():
        raise NotFound(f"model {str(path)!r} does not exist")
    if not path.is_dir():
        if path.suffix in _PICKLES:
            return PytorchCheckpoint(path, [path])
        return GgufCheckpoint(path) if path.suffix == ".gguf" else SafetensorsCheckpoint(path, [path])
    if (path / _SINGLE).is_file():
        return SafetensorsCheckpoint(path, [path / _SINGLE])
    if (path / INDEX).is_file():
        return SafetensorsCheckpoint(path, shards(path / INDEX, ".safetensors"))
    if (path / _PICKLE).is_file():
        return PytorchCheckpoint(path, [path / _PICKLE])
    if (path / _PICKLE_INDEX).is_file():
        return PytorchCheckpoint(path, shards(path / _PICKLE_INDEX, ".bin"))
    raise NotFound(f"directory {str(path)!r} has no weights: neither {_SINGLE} nor {INDEX} nor {_PICKLE} nor {_PICKLE_INDEX}")
