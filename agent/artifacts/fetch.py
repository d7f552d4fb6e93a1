"""Fetching artifacts: files and a grant in, verified files in the cache out.

The agent's loop calls `Fetcher.fetch` for a replica whose files are missing. Bytes come over HTTPS with the grant's bearer token, one chunk
to a request, so that a kill costs at most one chunk at the server too, whatever buffers lie between. They are hashed while they stream
and enter the cache only when the whole has its digest. Nothing here waits or tries again: an error says what is wrong, the loop comes
back with a back-off, and the fetch goes on where it was.

Disk and hash work happens in threads, a megabyte at a time; the event loop only moves bytes.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from agent.artifacts.cache import Cache, DigestMismatch, DiskFull
from agent.artifacts.chunks import CHUNK_BYTES, Partial
from agent.artifacts.source import BlobSource
from rkfleet.assignment import AssignedFile
from rkfleet.disk import Disk, in_thread, is_disk_full
from rkfleet.errors import FleetError, NotFound, PermissionDenied, Unavailable
from rkfleet.metric_names import ARTIFACT_FETCHED_BYTES
from rkfleet.metrics import Metrics
from rkfleet.session import Grant

__all__ = ["Fetcher", "Progress"]

Progress = Callable[[int, int], None]
"""Told bytes that count and total bytes of all files of a fetch, after each chunk."""


class Fetcher:
    """Fetches into one cache; one file at a time, since they share the board's link and disk."""

    def __init__(
        self,
        cache: Cache,
        tls: ssl.SSLContext,
        disk: Disk,
        metrics: Metrics,
        chunk_bytes: int = CHUNK_BYTES,
        *,
        open_source: Callable[[str, str, ssl.SSLContext], BlobSource] = BlobSource,
    ) -> None:
        """Take the cache, how sources are verified (the fleet's servers CA and nothing else), the disk, and the agent's metrics.

        `open_source` makes the connection to a source from its URL, the grant's token and how to verify the server.
        """
        self._cache: Final = cache
        self._tls: Final = tls
        self._disk: Final = disk
        self._fetched: Final = metrics.counter(ARTIFACT_FETCHED_BYTES)
        self._chunk_bytes: Final = chunk_bytes
        self._open_source: Final = open_source
        self._turn: Final = asyncio.Lock()

    async def fetch(self, files: Sequence[AssignedFile], grant: Grant, progress: Progress = lambda _done, _total: None) -> None:
        """Return when all files are in the cache.

        Args:
            files: What to have; files that are here already are not fetched.
            grant: Sources in order of preference, and a token for them.
            progress: Told how far it is.

        Raises:
            Unauthenticated: The grant has ended; ask for another.
            PermissionDenied: The grant does not cover a file, or was refused.
            NotFound: No source has a file.
            FailedPrecondition: A source has a file of another length.
            Unavailable: No source can be reached, or all broke off.
            DiskFull: There is no room; the message says what was tried.
            DigestMismatch: What came has another digest and was thrown away.
        """
        if grant.refusal:
            raise PermissionDenied(grant.refusal)
        total = sum(file.size_bytes for file in files)
        async with self._turn:
            done = 0
            for file in files:
                before = done

                def report(count: int, before: int = before) -> None:
                    progress(before + count, total)

                if not self._cache.holds(file.digest, file.size_bytes):
                    await self._fetch_file(file, grant, report)
                done += file.size_bytes
                progress(done, total)

    async def _fetch_file(self, file: AssignedFile, grant: Grant, report: Callable[[int], None]) -> None:
        try:
            await self._cache.make_room(self._remaining(file), file.digest)
            partial = await in_thread(self._open, file)
            try:
                report(partial.durable_bytes)
                await self._complete(file, grant, partial, report)
                await in_thread(self._admit, file, partial)
            finally:
                partial.close()
        except OSError as error:
            raise _disk_error(error, file) from error

    async def _complete(self, file: AssignedFile, grant: Grant, partial: Partial, report: Callable[[int], None]) -> None:
        """Fetch chunk after chunk; a source that fails is left for the next one."""
        failure: FleetError = NotFound(f"the grant for artifact {file.digest} names no source")
        for url in grant.sources:
            if partial.is_complete():
                return
            try:
                async with self._open_source(url, grant.token, self._tls) as source:
                    while not partial.is_complete():
                        await self._fetch_chunk(source, file, partial)
                        report(partial.durable_bytes)
            except DiskFull:
                raise  # no other source can change that
            except FleetError as error:
                failure = error
        if not partial.is_complete():
            raise failure

    async def _fetch_chunk(self, source: BlobSource, file: AssignedFile, partial: Partial) -> None:
        """Write the next chunk; from a source that ignores ranges, all that is left."""

        async def take(piece: bytearray) -> None:
            self._fetched.inc(len(piece))
            try:
                await in_thread(partial.write, piece)
            except OSError as error:
                raise _disk_error(error, file) from error

        start = partial.durable_bytes
        end = min(start + self._chunk_bytes, file.size_bytes)
        try:
            await source.read(file.digest, start=start, end=end, size_bytes=file.size_bytes, take=take)
        finally:
            await in_thread(partial.rewind)

    def _remaining(self, file: AssignedFile) -> int:
        try:
            return max(0, file.size_bytes - self._cache.partial_path(file.digest).stat().st_size)
        except FileNotFoundError:
            return file.size_bytes

    def _open(self, file: AssignedFile) -> Partial:
        return Partial(
            self._cache.partial_path(file.digest),
            self._cache.record_path(file.digest),
            file.digest,
            file.size_bytes,
            disk=self._disk,
            chunk_bytes=self._chunk_bytes,
        )

    def _admit(self, file: AssignedFile, partial: Partial) -> None:
        if (found := partial.digest()) != file.digest:
            self._cache.discard(file.digest)
            raise DigestMismatch(f"what was fetched as artifact {file.digest} has digest {found}; it was thrown away")
        self._cache.adopt(file.digest)


def _disk_error(error: OSError, file: AssignedFile) -> FleetError:
    if is_disk_full(error):
        return DiskFull(f"the disk became full while artifact {file.digest} was fetched", retry_after_seconds=10)
    return Unavailable(f"the disk failed while artifact {file.digest} was fetched: {error}")
