"""Fetching artifacts: files and a grant in, verified files in the cache out.

The agent's loop calls `Fetcher.fetch` for a replica whose files are missing. Bytes come over HTTPS with the grant's bearer token, one chunk
to a request, so that a kill costs at most one chunk at the server too, whatever buffers lie between. They are hashed while they stream
and enter the cache only when the whole has its digest. Nothing here waits or tries again: an error says what is wrong, the loop comes
back with a back-off, and the fetch goes on where it was.

Disk and hash work happens in threads, a megabyte at a time; the event loop only moves bytes.

Source: RFC 9110, section 14 (ranges); OCI distribution-spec 1.1, "Pull".
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import httpx2
import msgspec

from agent.artifacts.cache import Cache, DigestMismatch, DiskFull
from agent.artifacts.chunks import CHUNK_BYTES, Partial
from rkfleet.assignment import AssignedFile
from rkfleet.disk import PIECE_BYTES, Disk, in_thread, is_disk_full
from rkfleet.errors import FailedPrecondition, FleetError, NotFound, PermissionDenied, Unauthenticated, Unavailable
from rkfleet.metric_names import ARTIFACT_FETCHED_BYTES
from rkfleet.metrics import Metrics
from rkfleet.session import Grant

__all__ = ["Fetcher", "Progress", "open_http"]

Progress = Callable[[int, int], None]
"""Told bytes that count and total bytes of all files of a fetch, after each chunk."""

CONNECT_SECONDS_MAX: Final = 5.0
SILENCE_SECONDS_MAX: Final = 30.0  # A registry on a busy disk may take seconds to the first byte of a range.
CONNECTIONS_MAX: Final = 2  # One fetch runs at a time; the second is for a source that is being left.


def open_http(ca_file: Path) -> httpx2.AsyncClient:
    """Return the client that fetches use: it trusts the fleet's servers CA and nothing else."""
    return httpx2.AsyncClient(
        verify=ssl.create_default_context(cafile=str(ca_file)),
        timeout=httpx2.Timeout(SILENCE_SECONDS_MAX, connect=CONNECT_SECONDS_MAX),
        limits=httpx2.Limits(max_connections=CONNECTIONS_MAX),
        headers={"Accept-Encoding": "identity"},
        trust_env=False,
    )


class Fetcher:
    """Fetches into one cache; one file at a time, since they share the board's link and disk."""

    def __init__(self, cache: Cache, http: httpx2.AsyncClient, disk: Disk, metrics: Metrics, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._cache: Final = cache
        self._http: Final = http
        self._disk: Final = disk
        self._fetched: Final = metrics.counter(ARTIFACT_FETCHED_BYTES)
        self._chunk_bytes: Final = chunk_bytes
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
            Unavailable: No source can be reached, or all broke off.
            DiskFull: There is no room; `Cache.make_room` says what was tried.
            DigestMismatch: What came has another digest and was thrown away.
        """
        total = sum(file.size_bytes for file in files)
        if grant.refusal:
            raise PermissionDenied(grant.refusal)
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
            if is_disk_full(error):
                raise DiskFull(f"the disk became full while artifact {file.digest} was fetched", retry_after_seconds=10) from error
            raise

    async def _complete(self, file: AssignedFile, grant: Grant, partial: Partial, report: Callable[[int], None]) -> None:
        """Fetch chunk after chunk; a source that fails is left for the next one."""
        sources = list(grant.sources)
        failure: FleetError = NotFound(f"the grant for artifact {file.digest} names no source")
        while not partial.is_complete():
            if not sources:
                raise failure
            try:
                await self._fetch_chunk(f"{sources[0]}/blobs/{file.digest}", file, grant.token, partial)
                report(partial.durable_bytes)
            except FleetError as error:
                failure = error
                sources.pop(0)

    async def _fetch_chunk(self, url: str, file: AssignedFile, token: str, partial: Partial) -> None:
        """Ask for the next chunk and write what comes; from a server that ignores ranges, write all that comes."""
        start = partial.durable_bytes
        end = min(start + self._chunk_bytes, file.size_bytes)
        headers = {"Authorization": f"Bearer {token}", "Range": f"bytes={start}-{end - 1}"}
        try:
            async with self._http.stream("GET", url, headers=headers) as answer:
                skip, end = await _span(answer, url, file, start, end)
                async for piece in _pieces(answer, skip, end - start):
                    self._fetched.inc(len(piece))
                    await in_thread(partial.write, piece)
        except httpx2.HTTPError as error:
            raise Unavailable(f"{url} broke off at byte {partial.durable_bytes}: {str(error) or type(error).__name__}") from error
        finally:
            await in_thread(partial.rewind)
        if partial.durable_bytes < end:
            raise Unavailable(f"{url} ended at byte {partial.durable_bytes} of {end}")

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


async def _span(answer: httpx2.Response, url: str, file: AssignedFile, start: int, end: int) -> tuple[int, int]:
    """Return how many bytes of the body to skip and at which byte of the file it may end."""
    match answer.status_code:
        case 206:
            said = answer.headers.get("content-range", "")
            if said != f"bytes {start}-{end - 1}/{file.size_bytes}":
                raise FailedPrecondition(f"{url} answers with {said!r}, wanted are bytes {start}-{end - 1} of {file.size_bytes}")
            return 0, end
        case 200:
            return start, file.size_bytes
        case 401:
            raise Unauthenticated(f"{url}: {await _said(answer)}")
        case 403:
            raise PermissionDenied(f"{url}: {await _said(answer)}")
        case 404:
            raise NotFound(f"{url}: {await _said(answer)}")
        case 416:
            raise FailedPrecondition(f"{url}: {await _said(answer)}; the Model says {file.size_bytes} bytes")
        case status:
            raise Unavailable(f"{url} answers {status}: {await _said(answer)}")


async def _said(answer: httpx2.Response) -> str:
    """Return the registry's own sentence."""
    content = await answer.aread()
    try:
        errors = msgspec.json.decode(content, type=dict[str, Any])["errors"]
        return "; ".join(str(one["message"]) for one in errors)
    except (msgspec.MsgspecError, KeyError, TypeError):
        return content[:200].decode(errors="replace") or f"HTTP status {answer.status_code}"


async def _pieces(answer: httpx2.Response, skip: int, count: int) -> AsyncIterator[bytearray]:
    """Yield `count` bytes of the body after the first `skip`, gathered to about PIECE_BYTES; never more than `count`."""
    gathered = bytearray()
    async for part in answer.aiter_raw():
        fresh = part[skip:] if skip else part
        skip -= len(part) - len(fresh)
        fresh = fresh[:count]
        count -= len(fresh)
        gathered += fresh
        if len(gathered) >= PIECE_BYTES:
            yield gathered
            gathered = bytearray()
    if gathered:
        yield gathered
