"""From a path to its weights under their own names: `open_checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rkfleet.errors import Invalid, NotFound
from toolkit.checkpoint.base import Checkpoint
from toolkit.checkpoint.gguf import GgufCheckpoint
from toolkit.checkpoint.safetensors import INDEX, SafetensorsCheckpoint, open_index

__all__ = ["open_checkpoint"]

_SINGLE: Final = "model.safetensors"
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
            raise _pickled(path)
        return GgufCheckpoint(path) if path.suffix == ".gguf" else SafetensorsCheckpoint(path, [path])
    if (path / _SINGLE).is_file():
        return SafetensorsCheckpoint(path, [path / _SINGLE])
    if (path / INDEX).is_file():
        return open_index(path / INDEX)
    pickles = sorted(one for one in path.iterdir() if one.suffix in _PICKLES)
    if pickles:
        raise _pickled(pickles[0])
    raise NotFound(f"directory {str(path)!r} has no weights: neither {_SINGLE} nor {INDEX}")


def _pickled(path: Path) -> Invalid:
    return Invalid(
        f"model file {str(path)!r} is a pickle, which is a program; convert it where you trust it: "
        "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
    )
