"""The index of a model in several files: which tensor is in which file, all of them in the directory of the index.

In: an index file. Out: names, and paths that do not lead out. Called by `safetensors` and `open` beside this file.

Source: https://huggingface.co/docs/transformers/big_models#sharded-checkpoints, `weight_map`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rkfleet.errors import Invalid
from toolkit.checkpoint.base import TensorInfo
from toolkit.checkpoint.json_file import read_json

__all__ = ["check_index", "read_index", "shards"]

INDEX_BYTES_MAX: Final = 16 << 20  # Some 100 bytes for a tensor; the largest models in use have ten thousand.
SHARDS_MAX: Final = 1000


def read_index(index: Path, suffix: str) -> Mapping[str, str]:
    """Return the file name of each tensor.

    Raises:
        Invalid: It is no index, or names too many files, or one that is not in its directory.
    """
    named = read_json(index, INDEX_BYTES_MAX).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise Invalid(f"index {str(index)!r} has no weight_map of tensor names to file names")
    names = set(named.values())
    if not 0 < len(names) <= SHARDS_MAX:
        raise Invalid(f"index {str(index)!r} names {len(names)} files; from 1 to {SHARDS_MAX} are taken")
    for name in sorted(names):
        _check_inside(index, name, suffix)
    return named


def shards(index: Path, named: Mapping[str, str]) -> list[Path]:
    """Return the files of an index, each once."""
    return [index.parent / name for name in sorted(set(named.values()))]


def check_index(index: Path, named: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse an index that names tensors which are not there."""
    missing = sorted(named.keys() - tensors.keys())
    if missing:
        raise Invalid(f"index {str(index)!r} names tensor {missing[0]!r}, which is not in {named[missing[0]]!r}")


def _check_inside(index: Path, name: str, suffix: str) -> None:
    """Take what is in the directory of the index, or where Hugging Face's cache keeps what it links to from there."""
    directory = index.parent.resolve()
    if not name.endswith(suffix) or name != Path(name).name or "\0" in name:
        raise Invalid(f"index {str(index)!r} names file {name!r}, which is no {suffix} file in its directory")
    target = (index.parent / name).resolve()
    if target.parent not in (directory, directory.parent.parent / "blobs"):
        raise Invalid(f"index {str(index)!r} names file {name!r}, which links out of its directory to {str(target)!r}")
