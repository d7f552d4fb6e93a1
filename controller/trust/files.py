"""Secrets on disk: written whole or not at all, readable by their owner only.

In: a path and bytes. Out: a file that after any crash has its old or its new content. Called by `pki.py` and `tokens.py`; apart from
them because a half-written key or token file would lock a whole fleet out.
"""

from __future__ import annotations

from pathlib import Path

from rkfleet.disk import Disk, SystemDisk, write_durably
from rkfleet.errors import Unavailable

__all__ = ["make_private_directory", "write_private"]


def make_private_directory(path: Path) -> None:
    """Make the directory (mode 0700) if it is missing.

    Raises:
        Unavailable: The file system refuses.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise Unavailable(f"directory {path} cannot be made: {error.strerror}") from error


def write_private(path: Path, content: bytes, disk: Disk = SystemDisk()) -> None:
    """Replace the file's content (mode 0600) durably.

    Raises:
        Unavailable: The file system refuses; the old content stands.
    """
    try:
        write_durably(path, content, path.with_name(f".{path.name}.partial"), disk)
    except OSError as error:
        raise Unavailable(f"{path} cannot be written: {error.strerror or error}") from error
