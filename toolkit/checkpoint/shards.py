"""Models in several files: the index that names them.

In: the index. Out: paths of files in its directory, whatever it says. Called by `open.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rkfleet.errors import Invalid
from toolkit.checkpoint.json_file import read_json

__all__ = ["shards"]

INDEX_BYTES_MAX: Final = 16 << 20  # A tensor takes some 100 bytes; the largest models in use have ten thousand.
SHARDS_MAX: Final = 1000


def shards(index: Path, suffix: str) -> list[Path]:
    """Return the files that an index names.

    Args:
        index: JSON with `weight_map`: file names by tensor names.
        suffix: That the files have.

    Raises:
        NotFound: The index cannot be read.
        Invalid: It names a file outside of its directory, or none, or too many.
    """
    named = read_json(index, INDEX_BYTES_MAX).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise Invalid(f"index {str(index)!r} has no weight_map of tensor names to file names")
    names = sorted(set(named.values()))
    if not 0 < len(names) <= SHARDS_MAX:
        raise Invalid(f"index {str(index)!r} names {len(names)} files; from 1 to {SHARDS_MAX} are taken")
    return [_inside(index, name, suffix) for name in names]


def _inside(index: Path, name: str, suffix: str) -> Path:
    """Return a shard's path: in the directory of the index, or where Hugging Face's cache keeps what it links to from there."""
    directory = index.parent.resolve()
    if not name.endswith(suffix) or "\0" in name or name != Path(name).name:
        raise Invalid(f"index {str(index)!r} names file {name!r}, which is no {suffix} file in its directory")
    target = (index.parent / name).resolve()
    if target.parent not in (directory, directory.parent.parent / "blobs"):
        raise Invalid(f"index {str(index)!r} names file {name!r}, which links out of its directory to {str(target)!r}")
    return index.parent / name
