"""Blobs on disk: bytes that are named by their sha256, each stored once whatever repositories hold it.

In: a finished file with a proven digest. Out: where a blob lies and how long it is. Uploads and manifests put blobs here, the routes read
them. A blob is whole or absent: it comes by rename after its bytes are durable. All methods block; the routes call them in threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rkfleet.disk import Disk, move_durably
from rkfleet.errors import Unavailable
from rkfleet.packaging import check_digest

__all__ = ["FULL_RETRY_SECONDS", "BlobStore", "disk_full"]

FULL_RETRY_SECONDS: Final = 10  # Somebody must make room first; asking more often helps nobody.


class BlobStore:
    """The blobs below one directory: `sha256/<first two digits>/<digest>`."""

    def __init__(self, directory: Path, disk: Disk, reserve_bytes: int) -> None:
        """Take the directory and how many bytes of its file system uploads must leave free."""
        self._directory: Final = directory
        self._disk: Final = disk
        self._reserve_bytes: Final = reserve_bytes
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Return where the blob is or would be.

        Raises:
            Invalid: `digest` is not a sha256 digest.
        """
        name = check_digest(digest)
        return self._directory / "sha256" / name[:2] / name

    def find_size(self, digest: str) -> int | None:
        """Return the length of a blob in bytes, or None when it is not here."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def adopt(self, file: Path, digest: str) -> None:
        """Take over a file whose bytes are durable and have this digest; if the blob is here already, the file is dropped."""
        target = self.path(digest)
        if target.exists():
            file.unlink()
            return
        file.chmod(0o444)
        move_durably(file, target)

    def free_bytes(self) -> int:
        """Return the free bytes of the file system, the reserve included."""
        return self._disk.free_bytes(self._directory)

    def ensure_room(self, count: int) -> None:
        """Return when `count` more bytes may be written.

        Raises:
            Unavailable: They would eat into the reserve; the same request succeeds once there is room.
        """
        free = self.free_bytes()
        if free - count < self._reserve_bytes:
            raise disk_full(
                f"{count} bytes do not fit: {free} are free on {self._directory}, of which {self._reserve_bytes} stay in reserve"
            )


def disk_full(what: str) -> Unavailable:
    """Return the error for a disk without room."""
    return Unavailable(f"the registry's disk is full: {what}; make room and send it again", FULL_RETRY_SECONDS)
