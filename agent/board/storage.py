"""The file system that holds the artifacts: its size, and what is free on it.

Called by `agent/board/facts.py` and the loop.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

__all__ = ["Storage", "observe_storage"]


class Storage(msgspec.Struct, frozen=True):
    """Bytes of a file system, and those that this process may still write."""

    total_bytes: int
    free_bytes: int


def observe_storage(directory: Path) -> Storage:
    """Ask the file system of `directory`.

    Raises:
        OSError: The directory does not exist.
    """
    found = os.statvfs(directory)
    return Storage(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)
