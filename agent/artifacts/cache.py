"""The artifacts that a board holds: whole files by digest, up to a limit.

In: finished files from the fetcher, the digests that replicas refer to from the loop. Out: paths that a worker may load, after `verify`. A
file here is whole: it came by rename after its digest was proven. It can still rot, so the loop verifies it again before each load. What
nothing refers to stays until room is needed; then the file that was used longest ago goes first.

    artifacts/sha256/<hex>      a whole file
    partial/<hex>[.chunks]      one on its way, and the record of it (chunks.py)
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Final

from rkfleet.disk import PIECE_BYTES, Disk, in_thread, move_durably
from rkfleet.errors import FailedPrecondition, NotFound, ResourceExhausted
from rkfleet.metric_names import ARTIFACT_CORRUPT, ARTIFACT_EVICTED_BYTES
from rkfleet.metrics import Metrics
from rkfleet.packaging import check_digest

__all__ = ["RESERVE_BYTES", "Cache", "DigestMismatch", "DiskFull"]

RESERVE_BYTES: Final = 64 << 20  # Stays free for the ledger, logs and the system; an SD card that is full to the brim stops a board.
VERIFY_SPAN_BYTES: Final = 64 * PIECE_BYTES  # Hashed between two looks at whether anybody still waits: a tenth of a second.
RECORD_SUFFIX: Final = ".chunks"


class DiskFull(ResourceExhausted):
    """There is no room for an artifact, also after everything unreferenced was removed; waits for somebody to make room."""


class DigestMismatch(FailedPrecondition):
    """A file does not have its digest; it was thrown away, and a new fetch may succeed."""

    retryable = True


class Cache:
    """The artifact directories of one agent; used from its event loop only."""

    def __init__(
        self,
        data_dir: Path,
        limit_bytes: int,
        disk: Disk,
        metrics: Metrics,
        reserve_bytes: int = RESERVE_BYTES,
        *,
        beside: Callable[[], int] = lambda: 0,
    ) -> None:
        """Open the cache and clean up after a kill.

        Args:
            data_dir: Data directory of the agent; `artifacts/` and `partial/` are made in it.
            limit_bytes: What whole and partial files, and what lies beside them, may take together; 0 leaves it to the disk.
            disk: The disk.
            metrics: Metrics of the agent.
            reserve_bytes: Free space that fetches leave on the disk.
            beside: Bytes that are kept for artifacts elsewhere (saved prompts).
        """
        self._whole: Final = data_dir / "artifacts" / "sha256"
        self._partial: Final = data_dir / "partial"
        self._limit_bytes: Final = limit_bytes
        self._reserve_bytes: Final = reserve_bytes
        self._beside: Final = beside
        self._disk: Final = disk
        self._corrupt: Final = metrics.counter(ARTIFACT_CORRUPT)
        self._evicted: Final = metrics.counter(ARTIFACT_EVICTED_BYTES)
        self._references: Mapping[str, int] = {}
        self._ensure_directories()
        self._sweep()

    def path(self, digest: str) -> Path:
        """Return where the file is or would be.

        Raises:
            Invalid: `digest` is not a sha256 digest.
        """
        return self._whole / check_digest(digest)

    def partial_path(self, digest: str) -> Path:
        """Return where the file is while it is fetched."""
        return self._partial / check_digest(digest)

    def holds(self, digest: str, size_bytes: int) -> bool:
        """Return whether the file is here, whole by its length; `verify` looks at its bytes."""
        try:
            return self.path(digest).stat().st_size == size_bytes
        except FileNotFoundError:
            return False

    def used_bytes(self) -> int:
        """Return what whole and partial files take, and what lies beside them."""
        return sum(size for _, size, _ in self._files()) + self._beside()

    def refer(self, holders: Mapping[str, Iterable[str]]) -> None:
        """Say which digests are needed now: by holder (a replica's uid) its digests. Replaces what was said before.

        A file with no reference may be evicted; one with a reference never is.
        """
        counts: dict[str, int] = {}
        for digests in holders.values():
            for digest in digests:
                counts[digest] = counts.get(digest, 0) + 1
        self._references = counts

    def references(self, digest: str) -> int:
        """Return how many holders refer to the file."""
        return self._references.get(digest, 0)

    async def verify(self, digest: str) -> Path:
        """Read the whole file, compare its digest, and return its path; to be called before each load.

        Raises:
            NotFound: The file is not here.
            DigestMismatch: Its bytes are not what they were; it has been removed.
        """
        path = self.path(digest)
        try:
            file = FileIO(path)  # here, because a file that a thread opened for a cancelled task is closed by nobody
        except FileNotFoundError as error:
            raise NotFound(f"artifact {digest} is not on this board") from error
        hasher = hashlib.sha256()
        buffer = memoryview(bytearray(PIECE_BYTES))  # one for the whole file: threads keep what they allocate
        with file:
            while await in_thread(_hash_span, file, hasher, buffer):
                pass
            found = f"sha256:{hasher.hexdigest()}"
            if found != digest and await in_thread(_remove_opened, path, file):
                self._corrupt.inc()
        if found != digest:
            raise DigestMismatch(f"artifact {digest} has digest {found} on disk; it was removed and will be fetched again")
        await in_thread(os.utime, path)  # the moment of its last use, for eviction
        return path

    async def make_room(self, count: int, digest: str) -> None:
        """Return when `count` more bytes of the file `digest` may be written; evicts unreferenced files, least recently used first.

        Raises:
            DiskFull: There is no room, also without them; nothing was evicted then.
        """
        await in_thread(self._make_room, count, digest)

    def adopt(self, digest: str) -> None:
        """Make the finished partial file of this digest, durable and proven, a whole file. Blocks."""
        move_durably(self.partial_path(digest), self.path(digest))
        self.record_path(digest).unlink(missing_ok=True)

    def record_path(self, digest: str) -> Path:
        """Return where the record of a partial file is."""
        return self._partial / f"{check_digest(digest)}{RECORD_SUFFIX}"

    def discard(self, digest: str) -> None:
        """Throw away a partial file that turned out not to have its digest. Blocks."""
        self._corrupt.inc()
        self._remove_partial(check_digest(digest))

    def _make_room(self, count: int, digest: str) -> None:
        self._ensure_directories()
        short = self._shortage(count)
        if short <= 0:
            return
        kept = {check_digest(digest), *(needed.removeprefix("sha256:") for needed in self._references)}
        candidates = sorted((used, path, size) for path, size, used in self._files() if path.name not in kept)
        evictable = sum(size for _, _, size in candidates)
        if evictable < short:
            raise DiskFull(
                f"{count} bytes of artifact {digest} do not fit: {self.used_bytes()} are used of "
                f"{self._limit_bytes or 'unlimited'} for artifacts, {self._disk.free_bytes(self._whole)} are free on {self._whole} "
                f"({self._reserve_bytes} stay in reserve), and only {evictable} could be evicted",
                retry_after_seconds=10,
            )
        for _, path, size in candidates:
            if self._shortage(count) > 0:
                self._evict(path, size)

    def _shortage(self, count: int) -> int:
        """Return by how many bytes `count` more would be too much."""
        over_limit = self.used_bytes() + count - self._limit_bytes if self._limit_bytes else 0
        over_disk = count + self._reserve_bytes - self._disk.free_bytes(self._whole)
        return max(over_limit, over_disk)

    def _evict(self, path: Path, size: int) -> None:
        if path.parent == self._partial:
            self._remove_partial(path.name)
        else:
            path.unlink(missing_ok=True)
        self._evicted.inc(size)

    def _remove_partial(self, name: str) -> None:
        (self._partial / name).unlink(missing_ok=True)
        (self._partial / f"{name}{RECORD_SUFFIX}").unlink(missing_ok=True)

    def _files(self) -> list[tuple[Path, int, float]]:
        """Return (path, size in bytes, time of last use) of whole and partial files; a fetch may move one while this looks."""
        found = []
        for directory in (self._partial, self._whole):
            with contextlib.suppress(FileNotFoundError):  # the directory was removed under us: nothing is in it
                for path in directory.iterdir():
                    if path.suffix != RECORD_SUFFIX:
                        with contextlib.suppress(FileNotFoundError):
                            about = path.stat()
                            found.append((path, about.st_size, about.st_mtime))
        return found

    def _ensure_directories(self) -> None:
        """Make the directories, also again when somebody removed them to free space: what was in them is fetched again."""
        for directory in (self._whole, self._partial):
            directory.mkdir(parents=True, exist_ok=True)

    def _sweep(self) -> None:
        """Remove what a kill between two steps left: a record without its file, a file without its record."""
        names = {path.name.removesuffix(RECORD_SUFFIX) for path in self._partial.iterdir()}
        for name in names:
            if not ((self._partial / name).exists() and (self._partial / f"{name}{RECORD_SUFFIX}").exists()):
                self._remove_partial(name)


def _remove_opened(path: Path, file: FileIO) -> bool:
    """Remove the file at `path` if it is the opened one; return whether it was. Another verification or a new fetch may be faster."""
    try:
        if os.path.samestat(path.stat(), os.fstat(file.fileno())):
            path.unlink()
            return True
    except FileNotFoundError:
        pass
    return False


def _hash_span(file: FileIO, hasher: hashlib._Hash, buffer: memoryview) -> bool:
    """Hash the next VERIFY_SPAN_BYTES; return whether there may be more."""
    done = 0
    while done < VERIFY_SPAN_BYTES:
        count = file.readinto(buffer)
        if not count:
            return False
        hasher.update(buffer[:count])
        done += count
    return True
