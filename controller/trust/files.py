"""Secrets on disk: written whole or not at all, readable by their owner only.

In: a path and bytes. Out: a file that after any crash has its old or its new content. Called by `pki.py` and `tokens.py`; apart from
them because a half-written key or token file would lock a whole fleet out.
"""

from __future__ import annotations

import os
from pathlib import Path

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


def write_private(path: Path, content: bytes) -> None:
    """Replace the file's content (mode 0600) durably: synced before the rename, and the rename synced too.

    Raises:
        Unavailable: The file system refuses; the old content stands.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise Unavailable(f"{path} cannot be written: {error.strerror}") from error
