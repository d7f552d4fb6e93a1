"""One request through the gateway: read, choose, forward, stream back.

In: an ASGI request for `/v1/...` or `/api/...` and the current table. Out: the board's answer, byte for byte, with the headers that say
who answered. Until the first byte of the board's body is here nothing is sent to the client, and at most two other replicas are tried;
after it never another: the stream ends with an error event. When the client leaves, the connection to the board is closed, which stops the
work there.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final

import msgspec

from gateway import limits
from gateway.boards import Boards
from gateway.routing import Served, Target, choose
from rkfleet import metric_names as names
from rkfleet.clock import Clock
from rkfleet.http1 import ConnectionLost
from rkfleet.metrics import Metrics
from rkfleet.ops import Receive, Send
from rkfleet.racing import run_until
from rkfleet.simulated import HEADER as SIMULATED_HEADER

__all__ = ["OLLAMA", "Failure", "Proxy", "Reply", "failure_body", "until_disconnect"]

_log = logging.getLogger(__name__)

_PASSED_UP: Final = frozenset(
    {
        b"accept", b"content-type", b"traceparent", b"user-agent", b"x-rkfleet-deadline-seconds", b"x-stainless-read-timeout",
        b"x-request-id", b"x-rkfleet-tenant",
    }
)  # fmt: skip  # The last two are the gateway's own: it has put them in place of the client's.
_PASSED_DOWN: Final = frozenset(
    {b"content-type", b"retry-after", b"x-request-id", b"cache-control", b"x-rkfleet-ignored", SIMULATED_HEADER.encode()}
)
_STREAMS: Final = (b"text/event-stream", b"application/x-ndjson")
OLLAMA: Final = "/api/"
_TRY_ANOTHER: Final = frozenset({429, 502, 503})  # Full, or not serving any more: another replica may.


class Failure(Exception):
    """An answer of the gateway itself, in the format of whoever asks."""

    def __init__(self, status: int, code: str, message: str, *, type: str = "invalid_request_error", retry_after_seconds: int = 0) -> None:
        super().__init__(message)
        self.status: Final = status
        self.code: Final = code
        self.message: Final = message
        self.type: Final = type
        self.retry_after_seconds: Final = retry_after_seconds


def failure_body(failure: Failure, path: str, request_id: str) -> bytes:
    """Return the JSON body of a failure: as Ollama's clients read it below `/api/`, else as OpenAI's do."""
    if path.startswith(OLLAMA):
        return msgspec.json.encode({"error": failure.message, "code": failure.code, "request_id": request_id})
    said = {"message": failure.message, "type": failure.type, "param": None, "code": failure.code, "request_id": request_id}
    return msgspec.json.encode({"error": said})


class Reply(msgspec.Struct):
    """An answer of a board whose first body byte is here."""

    target: Target
    status: int
    headers: list[tuple[bytes, bytes]]
    first: bytes
    rest: AsyncIterator[bytes]


class Proxy:
    """Forwards requests to boards over pooled mutual TLS connections."""

    def __init__(self, tls: ssl.SSLContext, clock: Clock, metrics: Metrics) -> None:
        self._clock: Final = clock
        self._metrics: Final = metrics
        self._outstanding: Final[dict[str, int]] = {}
        self._turn = 0
        self._boards: Final = Boards(tls, clock)

    def close(self) -> None:
        """Close every connection that is not in use."""
        self._boards.close()

    async def forward(
        self,
        served: Served,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        send: Send,
        *,
        ready: Callable[[], Sequence[Target]],
        adapter: bool = False,
    ) -> int:
        """Answer one request; return the HTTP status that the client got.

        Args:
            served: The model that is asked for.
            path: As the client sent it.
            headers: As the client sent them; few are passed on.
            body: As the client sent it.
            send: Where the answer goes.
            ready: Says who may be asked now; asked again before each try, because an answer may take longer than a restart.
            adapter: A LoRA of the model is asked for, which not every variant brings: a replica that has none is no answer yet.

        Raises:
            Failure: No replica could answer; nothing was sent to the client.
        """
        async with contextlib.AsyncExitStack() as stack:
            worthless = _TRY_ANOTHER | {404} if adapter else _TRY_ANOTHER
            reply = await self._ask(served.name, path, headers, body, stack, ready=ready, worthless=worthless)
            await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
            await send({"type": "http.response.body", "body": reply.first, "more_body": True})
            tail, chunk = b"", reply.first
            try:
                async for chunk in reply.rest:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except ConnectionLost as error:
                failure = self._broken(served, reply, error)
                tail = _last_words(failure, path, headers, whole_line=chunk.endswith(b"\n"))
            await send({"type": "http.response.body", "body": tail})
            return reply.status

    async def _ask(
        self,
        model: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        stack: contextlib.AsyncExitStack,
        *,
        ready: Callable[[], Sequence[Target]],
        worthless: AbstractSet[int],
    ) -> Reply:
        """Return the first reply that is worth passing on."""
        tried: set[str] = set()
        refused: Reply | None = None
        while len(tried) < limits.TRIES_MAX:
            self._turn += 1
            target = choose(ready(), self._outstanding, frozenset(tried), self._turn)
            if target is None:
                break
            if tried:
                self._metrics.counter(names.GATEWAY_RETRIES, model_name=model).inc()
            tried.add(target.uid)
            try:
                reply = await self._ask_one(target, path, headers, body, stack)
            except ConnectionLost as error:
                _log.info("replica did not answer", extra={"replica": target.replica, "board": target.board, "cause": error.message})
                continue
            if reply.status not in worthless:
                return reply
            # Of several refusals the one that says when to come back; that it is not there at all, only if nobody has it.
            refused = reply if refused is None or reply.status == 429 or refused.status == 404 else refused
        if refused is not None:
            return refused
        raise Failure(
            503, "no_replica_answered",
            f"none of the {len(tried)} replicas of model {model!r} that were asked answered. "
            f"Try: kubectl get replicas -A, rkfleet board list",
            type="server_error", retry_after_seconds=limits.RETRY_AFTER_SECONDS,
        )  # fmt: skip

    async def _ask_one(
        self, target: Target, path: str, headers: list[tuple[bytes, bytes]], body: bytes, stack: contextlib.AsyncExitStack
    ) -> Reply:
        stack.enter_context(self._counted(target))
        passed_up = [(name, value) for name, value in headers if name in _PASSED_UP]
        answer = await stack.enter_async_context(self._boards.post(f"{target.url}{path}", target.server_name, passed_up, body))
        rest = await stack.enter_async_context(contextlib.aclosing(answer.pieces()))
        first = await anext(rest, b"")
        if not answer.headers.get(b"content-type", b"").startswith(_STREAMS):  # one JSON value: whole or not at all
            first = b"".join([first, *[chunk async for chunk in rest]])
        passed = [(name, value) for name, value in answer.headers.items() if name in _PASSED_DOWN]
        passed += [
            (b"x-rkfleet-board", target.board.encode()),
            (b"x-rkfleet-replica", target.replica.encode()),
            (b"x-rkfleet-variant", target.variant.encode()),
        ]
        return Reply(target, answer.status, passed, first, rest)

    @contextlib.contextmanager
    def _counted(self, target: Target) -> Iterator[None]:
        self._outstanding[target.uid] = self._outstanding.get(target.uid, 0) + 1
        try:
            yield
        finally:
            left = self._outstanding[target.uid] - 1
            if left:
                self._outstanding[target.uid] = left
            else:
                del self._outstanding[target.uid]

    def _broken(self, served: Served, reply: Reply, error: ConnectionLost) -> Failure:
        """Count a stream whose board went away, and return what its client is told."""
        self._metrics.counter(names.GATEWAY_BROKEN_STREAMS, model_name=served.name).inc()
        _log.warning("stream broke", extra={"replica": reply.target.replica, "board": reply.target.board, "cause": error.message})
        message = (
            f"the connection to replica {reply.target.replica} on board {reply.target.board} broke after the answer had begun; ask again"
        )
        return Failure(502, "stream_broken", message, type="server_error")


def _last_words(failure: Failure, path: str, headers: list[tuple[bytes, bytes]], *, whole_line: bool) -> bytes:
    """Return how a stream ends that broke: with an error event, never by silence. Ollama's clients stumble over an empty line."""
    request_id = next((value.decode("latin-1") for name, value in headers if name == b"x-request-id"), "")
    body = failure_body(failure, path, request_id)
    if path.startswith(OLLAMA):
        return (b"" if whole_line else b"\n") + body + b"\n"
    return b"\n\ndata: " + body + b"\n\n"


async def until_disconnect(work: Coroutine[Any, Any, int], receive: Receive) -> int | None:
    """Run `work` to its end and return its result; None if the client has left before, which cancels it."""
    finished = await run_until(work, _disconnected(receive))
    return finished.result if finished is not None else None


async def _disconnected(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
