"""From a path to its weights under their own names: `open_checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rkfleet.errors import NotFound
from toolkit.checkpoint.base import Checkpoint
from toolkit.checkpoint.gguf import GgufCheckpoint
from toolkit.checkpoint.pytorch import PYTORCH_INDEX, PytorchCheckpoint
from toolkit.checkpoint.safetensors import INDEX, SafetensorsCheckpoint, open_index
from toolkit.checkpoint.shard_index import check_index, read_index, shards

__all__ = ["open_checkpoint"]

_SINGLE: Final = "model.safetensors"
_PICKLED: Final = "pytorch_model.bin"
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
        return open_index(path / INDEX)
    if (path / _PICKLED).is_file():
        return PytorchCheckpoint(path, [path / _PICKLED])
    if (path / PYTORCH_INDEX).is_file():
        named = read_index(path / PYTORCH_INDEX, ".bin")
        checkpoint = PytorchCheckpoint(path, shards(path / PYTORCH_INDEX, named))
        check_index(path / PYTORCH_INDEX, named, checkpoint.tensors)
        return checkpoint
    raise NotFound(f"directory {str(path)!r} has no weights: neither {_SINGLE} nor {INDEX}, {_PICKLED} nor {PYTORCH_INDEX}")
