"""The client of an OCI registry: files and manifests in, resumable uploads out.

`rkfleet model push` sends artifacts with it, the controller's model loop asks with it what is missing. It speaks the distribution API and
its token flow, so it works against our registry and against others. Boards do not use it: `agent/artifacts/fetch.py` reads ranges with
a grant. Files are read and sent in pieces; a push goes on after a broken connection or a restart of the registry, from where the
registry says it is, and gives up when nothing moves for a while.

Source: OCI distribution-spec 1.1, "Push"; distribution `docs/content/spec/auth/token.md`.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, Self
from urllib.parse import urljoin

import httpx2
import msgspec

from rkfleet.clock import Clock
from rkfleet.disk import PIECE_BYTES, in_thread
from rkfleet.errors import (
    Conflict,
    DeadlineExceeded,
    FailedPrecondition,
    FleetError,
    Internal,
    Invalid,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

__all__ = ["CHUNK_BYTES", "Challenge", "RegistryClient", "TokenSource"]

Progress = Callable[[int], None]

CHUNK_BYTES: Final = 16 << 20  # One PATCH: what a broken connection costs to send again, and a second on a 1 GbE link's tenth.
CONNECT_SECONDS_MAX: Final = 5.0
SILENCE_SECONDS_MAX: Final = 60.0  # The last PUT answers after the registry has flushed the file; a slow disk takes its time.
STALL_SECONDS_MAX: Final = (
    60.0  # A registry that restarts is back in seconds; a disk somebody must clear is reported instead of waited for.
)
RETRY_SECONDS: Final = (0.2, 0.5, 1.0, 2.0)  # Between tries while nothing moves; the last value repeats.
TELL_SECONDS: Final = 1.0  # A person should know why nothing moves; shorter stops are over before they could read it.
_CHALLENGE_PART: Final = re.compile(r'(\w+)="([^"]*)"')
_UPLOADED: Final = re.compile(r"(?:bytes=)?0-(\d+)")


class Challenge(msgspec.Struct, frozen=True):
    """What a registry asks of callers: where to get a token, and for what."""

    realm: str
    service: str
    scope: str


class TokenSource(Protocol):
    """Where registry tokens come from."""

    async def token(self, challenge: Challenge) -> str:
        """Return a token that answers the challenge.

        Raises:
            FleetError: None is given; the message says why.
        """
        ...


class RegistryClient:
    """A connection to one registry; use it as an async context manager.

    Every method raises Unavailable when the registry cannot be reached, and the `FleetError` that its answer stands for.
    """

    def __init__(
        self,
        url: str,
        tls: ssl.SSLContext,
        tokens: TokenSource,
        clock: Clock,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        stall_seconds_max: float = STALL_SECONDS_MAX,
        waits: Callable[[str], None] = lambda _why: None,
    ) -> None:
        """Take the registry's base URL, how to verify it, and where tokens come from; the limits are for slow links and tests.

        `waits` is told why a push stands still, each reason once.
        """
        self.url: Final = url.rstrip("/")
        self._tokens: Final = tokens
        self._clock: Final = clock
        self._chunk_bytes: Final = chunk_bytes
        self._stall_seconds_max: Final = stall_seconds_max
        self._waits: Final = waits
        self._held: Final[dict[str, str]] = {}  # Token by repository.
        self._http: Final = httpx2.AsyncClient(
            verify=tls, timeout=httpx2.Timeout(SILENCE_SECONDS_MAX, connect=CONNECT_SECONDS_MAX), trust_env=False
        )

    async def __aenter__(self) -> Self:
        """Open the connection pool."""
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def find_blob(self, repository: str, digest: str) -> int | None:
        """Return the length of a blob that the repository holds, or None."""
        answer = await self._request("HEAD", repository, f"{self.url}/v2/{repository}/blobs/{digest}")
        if answer.status_code == 404:
            return None
        _check(answer, f"blob {digest} of {repository}")
        return int(answer.headers["content-length"])

    async def missing_blobs(self, repository: str, digests: Iterable[str]) -> frozenset[str]:
        """Return those of the digests that the repository does not hold."""
        return frozenset([digest for digest in digests if await self.find_blob(repository, digest) is None])

    async def push_blob(self, repository: str, digest: str, source: Path | bytes, progress: Progress = lambda _sent: None) -> bool:
        """Send a blob unless the repository has it; return whether it was sent.

        Args:
            repository: Where it goes.
            digest: `sha256:<hex>` of the bytes; the registry refuses others.
            source: The bytes, or a file with them.
            progress: Told how many bytes the registry has; the number falls when a broken push has to begin again.

        Raises:
            Unavailable: Nothing moved for `stall_seconds_max`; the message carries the reason, such as a full disk.
        """
        size = len(source) if isinstance(source, bytes) else (await in_thread(source.stat)).st_size
        patience = _Patience(self._clock, self._stall_seconds_max, self._waits)
        location, offset, uncertain, sent = "", 0, False, False
        while True:
            try:
                if not location:
                    if await self.find_blob(repository, digest) is not None:
                        progress(size)
                        return sent
                    location, offset = await self._begin(repository), 0
                elif uncertain:
                    offset = await self._uploaded(repository, location)
                uncertain = False
                if offset == size:
                    await self._finish(repository, location, digest)
                    progress(size)
                    return True
                location, offset = await self._send_chunk(repository, location, source, offset, size)
                sent = True
                patience.moved()
                progress(offset)
            except NotFound as error:  # the upload is finished, expired, or was never made durable
                location = ""
                await patience.wait(error, f"push of {digest} begins again")
            except FleetError as error:
                if not error.retryable:
                    raise
                uncertain = True
                await patience.wait(error, f"push of {digest} stays at {offset} of {size} bytes")

    async def push_manifest(self, repository: str, reference: str, body: bytes, media_type: str) -> None:
        """Store a manifest under a tag or its digest."""
        url = f"{self.url}/v2/{repository}/manifests/{reference}"
        headers = {"Content-Type": media_type}
        patience = _Patience(self._clock, self._stall_seconds_max, self._waits)
        while True:
            try:
                _check(await self._request("PUT", repository, url, body, headers), f"manifest {reference} of {repository}")
                return
            except FleetError as error:
                if not error.retryable:
                    raise
                await patience.wait(error, f"manifest {reference} of {repository} is not stored")

    async def _begin(self, repository: str) -> str:
        answer = await self._request("POST", repository, f"{self.url}/v2/{repository}/blobs/uploads/")
        _check(answer, f"upload to {repository}")
        return urljoin(self.url, answer.headers["location"])

    async def _uploaded(self, repository: str, location: str) -> int:
        """Return how many bytes the registry has; a lone first byte reads as none, and is refused and begun again."""
        answer = await self._request("GET", repository, location)
        _check(answer, f"upload to {repository}")
        match = _UPLOADED.fullmatch(answer.headers.get("range", ""))
        last = int(match.group(1)) if match else 0
        return last + 1 if last else 0

    async def _send_chunk(self, repository: str, location: str, source: Path | bytes, offset: int, size: int) -> tuple[str, int]:
        count = min(self._chunk_bytes, size - offset)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(count),
            "Content-Range": f"{offset}-{offset + count - 1}",
        }
        answer = await self._request("PATCH", repository, location, _Chunk(source, offset, count), headers)
        _check(answer, f"upload to {repository}")
        return urljoin(self.url, answer.headers["location"]), offset + count

    async def _finish(self, repository: str, location: str, digest: str) -> None:
        url = httpx2.URL(location).copy_merge_params({"digest": digest})
        _check(await self._request("PUT", repository, str(url), b""), f"blob {digest} of {repository}")

    async def _request(
        self, method: str, repository: str, url: str, content: bytes | _Chunk | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        """Send a request with the repository's token, and once more with a new one when the registry asks for it."""
        answer = await self._send(method, repository, url, content, headers or {})
        if answer.status_code == 401 and (challenge := _parse_challenge(answer.headers.get("www-authenticate", ""))):
            self._held[repository] = await self._tokens.token(challenge)
            answer = await self._send(method, repository, url, content, headers or {})
        return answer

    async def _send(
        self, method: str, repository: str, url: str, content: bytes | _Chunk | None, headers: Mapping[str, str]
    ) -> httpx2.Response:
        if not url.startswith(f"{self.url}/"):
            raise PermissionDenied(f"registry {self.url} sends an upload to {url}; a token goes to the registry only")
        token = self._held.get(repository)
        sent = {**headers, "Authorization": f"Bearer {token}"} if token else dict(headers)
        try:
            return await self._http.request(method, url, content=content, headers=sent)
        except httpx2.HTTPError as error:
            raise Unavailable(f"cannot reach the registry {self.url}: {str(error) or type(error).__name__}") from error


class _Chunk:
    """A part of a file or of bytes, as the body of a request; can be iterated again for a second try.

    The file is open only while a piece is read: a request that breaks off leaves its body suspended, and nobody closes what that holds.
    """

    def __init__(self, source: Path | bytes, offset: int, count: int) -> None:
        self._source: Final = source
        self._offset: Final = offset
        self._count: Final = count

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield pieces of PIECE_BYTES."""
        if isinstance(self._source, bytes):
            yield self._source[self._offset : self._offset + self._count]
            return
        position, end = self._offset, self._offset + self._count
        while position < end:
            piece = await in_thread(_read_at, self._source, position, min(PIECE_BYTES, end - position))
            if not piece:
                raise FailedPrecondition(f"{self._source} became shorter while it was sent: {position} of {end} bytes")
            position += len(piece)
            yield piece


def _read_at(path: Path, position: int, count: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), count, position)


class _Patience:
    """How long to go on while nothing moves."""

    def __init__(self, clock: Clock, seconds_max: float, tell: Callable[[str], None]) -> None:
        self._clock: Final = clock
        self._seconds_max: Final = seconds_max
        self._tell: Final = tell
        self._told = ""
        self.moved()

    def moved(self) -> None:
        """Begin to count anew."""
        self._since = self._clock.monotonic()
        self._failures = 0

    async def wait(self, error: FleetError, what: str) -> None:
        """Wait before another try.

        Raises:
            Unavailable: Nothing moved for too long.
        """
        stalled = self._clock.monotonic() - self._since
        if stalled > self._seconds_max:
            raise Unavailable(f"{what} for {self._seconds_max:.0f} s: {error.message}") from error
        if stalled >= TELL_SECONDS and error.message != self._told:
            self._told = error.message
            self._tell(f"{what}, trying again: {error.message}")
        await self._clock.sleep(RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS) - 1)])
        self._failures += 1


def _parse_challenge(header: str) -> Challenge | None:
    if not header.lower().startswith("bearer "):
        return None
    parts = dict(_CHALLENGE_PART.findall(header))
    return Challenge(parts["realm"], parts.get("service", ""), parts.get("scope", "")) if "realm" in parts else None


def _check(answer: httpx2.Response, what: str) -> None:
    if answer.status_code >= 300:
        raise _error_of(answer.status_code, answer.content, what)


def _error_of(status: int, content: bytes, what: str) -> FleetError:
    """Return the error that an answer stands for, with the registry's own sentence."""
    try:
        body = msgspec.json.decode(content, type=dict[str, Any])
        said = "; ".join(str(one.get("message") or one.get("code")) for one in body["errors"])
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        said = content[:300].decode(errors="replace").strip() or f"HTTP status {status}"
    message = f"{what}: {said}"
    if status >= 500:
        return Unavailable(message) if status in {502, 503, 504} else Internal(message)
    return _BY_STATUS.get(status, FailedPrecondition)(message)


_BY_STATUS: Final[Mapping[int, type[FleetError]]] = {
    400: Invalid, 401: Unauthenticated, 403: PermissionDenied, 404: NotFound, 408: DeadlineExceeded, 413: Invalid, 416: Conflict,
    429: ResourceExhausted,
}  # fmt: skip
