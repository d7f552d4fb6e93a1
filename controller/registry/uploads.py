"""Uploads: blobs on their way in, in as many pieces and connections as it takes.

In: pieces in order. Out: a blob, once the whole has the digest that was promised. The routes are the only caller. The file is the truth
about how far an upload is, so one survives a restart of the registry: the hash over what is there is then computed again. An upload
belongs to the repository it was begun in, which its id proves; only one request works on it at a time, the next one waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from controller.registry.blobs import BlobStore, disk_full
from rkfleet.disk import Disk, in_thread, is_disk_full, read_pieces
from rkfleet.errors import Invalid, NotFound, ResourceExhausted

__all__ = ["IDLE_SECONDS_MAX", "Upload", "Uploads"]

IDLE_SECONDS_MAX: Final = 86400  # A push that nobody continued for a day will not be continued.
UPLOADS_MAX: Final = 256  # Open at a time; each costs a file descriptor while a request works on it, and disk.
BLOB_BYTES_MAX: Final = 2**43  # As `ArtifactFile.sizeBytes`.
SCRATCH_PREFIX: Final = "tmp-"
_ID: Final = re.compile(r"[0-9A-Za-z]{1,64}\.[0-9a-f]{16}")


class Upload:
    """One upload while a request holds it. Methods block."""

    def __init__(self, path: Path, blobs: BlobStore, disk: Disk) -> None:
        """Open the file and hash what it holds."""
        self._path: Final = path
        self._blobs: Final = blobs
        self._disk: Final = disk
        self._hash: Final = hashlib.sha256()
        self.offset = 0
        for piece in read_pieces(path):
            self._hash.update(piece)
            self.offset += len(piece)
        self._descriptor: Final = os.open(path, os.O_WRONLY | os.O_APPEND)

    def write(self, piece: bytes) -> None:
        """Append a piece.

        Raises:
            Unavailable: The disk is full; `offset` says how much was taken.
            Invalid: The blob grows beyond BLOB_BYTES_MAX.
        """
        if self.offset + len(piece) > BLOB_BYTES_MAX:
            raise Invalid(f"blob is longer than {BLOB_BYTES_MAX} bytes", code="SIZE_INVALID")
        self._blobs.ensure_room(len(piece))
        rest = memoryview(piece)
        while rest:
            try:
                taken = self._disk.write(self._descriptor, rest)
            except OSError as error:
                if is_disk_full(error):
                    raise disk_full(f"{self.offset} bytes of this upload are stored") from error
                raise
            self._hash.update(rest[:taken])
            self.offset += taken
            rest = rest[taken:]

    def finish(self, digest: str) -> None:
        """Turn the upload into the blob `digest`.

        Raises:
            Invalid: The bytes have another digest; the upload is gone then, since nothing could make it right.
        """
        found = f"sha256:{self._hash.hexdigest()}"
        if found != digest:
            self._path.unlink(missing_ok=True)
            raise Invalid(f"the {self.offset} bytes uploaded have digest {found}, promised was {digest}", code="DIGEST_INVALID")
        try:
            self._disk.flush(self._descriptor)
            self._blobs.adopt(self._path, digest)
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(f"{digest} is uploaded but could not be stored") from error
            raise

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


class Uploads:
    """All uploads below one directory."""

    def __init__(self, directory: Path, blobs: BlobStore, disk: Disk, new_id: Callable[[], str]) -> None:
        """Take the directory and a source of ids that nobody can guess; remove what a killed write left behind."""
        self._directory: Final = directory
        self._blobs: Final = blobs
        self._disk: Final = disk
        self._new_id: Final = new_id
        self._open: Final[dict[str, Upload]] = {}  # Kept between requests, so that the hash goes on where it was.
        self._locks: Final[dict[str, asyncio.Lock]] = {}
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.glob(f"{SCRATCH_PREFIX}*"):
            left.unlink()

    def scratch(self) -> Path:
        """Return a name for a file that is about to be renamed; if it is left over, the next start removes it."""
        return self._directory / f"{SCRATCH_PREFIX}{self._new_id()}"

    def count(self) -> int:
        """Return how many uploads are open."""
        return sum(1 for _ in self._files())

    def begin(self, repository: str) -> str:
        """Begin an upload and return its id.

        Raises:
            ResourceExhausted: UPLOADS_MAX are open.
            Unavailable: The disk is full.
        """
        if self.count() >= UPLOADS_MAX:
            raise ResourceExhausted(f"{UPLOADS_MAX} uploads are open, which is the limit; finish or cancel some", retry_after_seconds=10)
        self._blobs.ensure_room(1)
        id = f"{self._new_id()}.{_mark(repository)}"
        try:
            (self._directory / id).touch(mode=0o600)
        except OSError as error:
            if is_disk_full(error):
                raise disk_full("no upload can be begun") from error
            raise
        return id

    @contextlib.asynccontextmanager
    async def hold(self, repository: str, id: str) -> AsyncIterator[Upload]:
        """Give the upload to one caller at a time.

        Raises:
            NotFound: There is no such upload in this repository.
        """
        lock = self._locks.setdefault(id, asyncio.Lock())
        try:
            async with lock:
                path = self._path(repository, id)
                if id not in self._open:
                    self._open[id] = await in_thread(Upload, path, self._blobs, self._disk)
                try:
                    yield self._open[id]
                finally:
                    if not (self._directory / id).exists():
                        self._open.pop(id).close()
        finally:
            if id not in self._open and not lock.locked():
                self._locks.pop(id, None)

    async def cancel(self, repository: str, id: str) -> None:
        """Give an upload up.

        Raises:
            NotFound: There is no such upload in this repository.
        """
        async with self.hold(repository, id):
            self._path(repository, id).unlink()

    def expire(self, now: datetime) -> int:
        """Remove uploads that nobody continued for IDLE_SECONDS_MAX, and return how many."""
        removed = 0
        for path in self._files():
            busy = path.name in self._locks and self._locks[path.name].locked()
            if not busy and now.timestamp() - path.stat().st_mtime > IDLE_SECONDS_MAX:
                path.unlink()
                removed += 1
                if left := self._open.pop(path.name, None):
                    left.close()
                self._locks.pop(path.name, None)
        return removed

    def close(self) -> None:
        """Let go of every file; the uploads stay on disk and can be continued."""
        while self._open:
            self._open.popitem()[1].close()

    def _files(self) -> tuple[Path, ...]:
        return tuple(path for path in self._directory.iterdir() if not path.name.startswith(SCRATCH_PREFIX))

    def _path(self, repository: str, id: str) -> Path:
        path = self._directory / id
        if _ID.fullmatch(id) is None or not id.endswith(f".{_mark(repository)}") or not path.is_file():
            raise NotFound(f"upload {id[:80]!r} is not open in repository {repository!r}", code="BLOB_UPLOAD_UNKNOWN")
        return path


def _mark(repository: str) -> str:
    """Return what ties an upload's id to its repository, so that a token for one cannot write into another."""
    return hashlib.sha256(repository.encode()).hexdigest()[:16]
