"""The client's side of one HTTP request, over ASGI: what was asked, what is sent back, and whether anybody still listens.

Called by `agent/serving/app.py` and the dialects (whole answers) and `agent/serving/forward.py` (streams). It stands apart so that all
agree on the one fact that decides what a failure looks like: whether the head of the answer is out (`started`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Final

from agent.serving.openai import OpenAi
from agent.serving.request import Dialect
from rkfleet.errors import BadRequest, FleetError, ResourceExhausted, Unavailable
from rkfleet.racing import run_until

__all__ = ["Connection", "Message", "Receive", "Send"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

BODY_BYTES_MAX: Final = 16 << 20  # As the gateway's: a prompt of the largest context is a few megabytes.
SEND_SECONDS_MAX: Final = 60.0  # A client that takes nothing for a minute holds a place that others wait for.


class _TooLarge(BadRequest):
    """The request body is too large."""

    http_status = 413


class Connection:
    """One request's connection.

    Attributes:
        headers: Go with whatever answer is sent.
        dialect: How errors are written.
        request_id: Stands in every error.
    """

    def __init__(self, receive: Receive, send: Send, request_id: str = "") -> None:
        self._receive: Final = receive
        self._send: Final = send
        self.request_id: Final = request_id
        self.dialect: Dialect = OpenAi()
        self.headers: Headers = []
        self.started = False
        self._ended = False

    async def body(self) -> bytes:
        """Return the request's whole body.

        Raises:
            BadRequest: It is larger than BODY_BYTES_MAX, or the client left while sending it.
        """
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise BadRequest("the client left before its request was whole", code="incomplete_body")
            body += message.get("body", b"")
            if len(body) > BODY_BYTES_MAX:
                raise _TooLarge(f"request body has more than {BODY_BYTES_MAX} bytes", code="body_too_large")
            if not message.get("more_body", False):
                return bytes(body)

    async def start_stream(self, content_type: bytes) -> None:
        """Send the head of a stream."""
        await self._head(200, [(b"content-type", content_type), (b"cache-control", b"no-cache")])

    async def send(self, piece: bytes, *, last: bool = False) -> None:
        """Send a piece of the body.

        Raises:
            TimeoutError: The client took nothing for SEND_SECONDS_MAX.
        """
        self._ended = last
        async with asyncio.timeout(SEND_SECONDS_MAX):
            await self._send({"type": "http.response.body", "body": piece, "more_body": not last})

    async def json(self, body: bytes) -> None:
        """Send a whole JSON answer."""
        await self.whole(200, body)

    async def text(self, body: bytes) -> None:
        """Send a whole answer of plain text."""
        await self.whole(200, body, content_type=b"text/plain; charset=utf-8")

    async def fail(self, error: FleetError) -> None:
        """Send an error as the whole answer, or as the last event of a stream that has begun: never a silent end."""
        if self._ended:
            return
        if self.started:
            await self.send(self.dialect.error_event(error, self.request_id), last=True)
            return
        retry = [(b"retry-after", str(error.retry_after_seconds).encode())] if isinstance(error, (Unavailable, ResourceExhausted)) else []
        await self.whole(error.http_status, self.dialect.error_body(error, self.request_id), retry)

    async def while_connected(self, answer: Coroutine[None, None, None]) -> None:
        """Run `answer` to its end, or cancel it when the client leaves.

        Raises:
            FleetError: What `answer` raised.
        """
        await run_until(answer, self._left())

    async def _left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def whole(self, status: int, body: bytes, headers: Headers | None = None, *, content_type: bytes = b"application/json") -> None:
        """Send a whole answer."""
        await self._head(status, [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *(headers or [])])
        await self.send(body, last=True)

    async def _head(self, status: int, headers: Headers) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *self.headers]})
