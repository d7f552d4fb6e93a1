"""Asking a worker's HTTP listener: one request per connection, closed to cancel.

In: an endpoint on loopback, its bearer token, a path and a JSON body. Out: status, and the body whole or as server-sent events. Called by
`agent/serving/proxy.py`. Connections are not kept, because closing one is the only way to end a request in the runtime, and because
llama.cpp's listener drops idle ones after a few seconds without a word.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final
from urllib.parse import urlsplit

from rkfleet.errors import Unavailable
from rkfleet.http1 import Connection, ConnectionLost, Head

__all__ = ["Reply", "ask"]

CONNECT_SECONDS_MAX: Final = 2.0  # Loopback answers in microseconds; longer means that the listener's backlog is full or it is gone.
SILENCE_SECONDS_MAX: Final = 900.0  # The supervisor ends a hung worker, and with it the connection, long before.
BODY_BYTES_MAX: Final = 4 << 20  # Of a body that is read whole: an error, a vector, or logits (262,144 words take 1.4 MB in base64).
EVENT_BYTES_MAX: Final = 4 << 20  # One event: a token, with log probabilities some kilobytes.
RETRY_SECONDS: Final = 2  # A worker that ended is loaded again in about that time.


class Reply:
    """An answer whose head has arrived."""

    def __init__(self, connection: Connection, head: Head) -> None:
        self._connection: Final = connection
        self.status: Final = head.status

    async def body(self) -> bytes:
        """Return the whole body.

        Raises:
            Unavailable: The worker ended before the body did.
        """
        body = b""
        async with contextlib.aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > BODY_BYTES_MAX:
                    break
        return body

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the data of each server-sent event as it comes.

        Raises:
            Unavailable: The worker ended before the body did.
        """
        rest = b""
        async with contextlib.aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                *whole, rest = (rest + piece).split(b"\n\n")
                for event in whole:
                    if data := _data(event):
                        yield data
                if len(rest) > EVENT_BYTES_MAX:
                    raise Unavailable(f"the worker sent an event of more than {EVENT_BYTES_MAX} bytes", code="worker_protocol")

    async def _pieces(self) -> AsyncGenerator[bytes, None]:
        try:
            async with contextlib.aclosing(self._connection.pieces(seconds_max=SILENCE_SECONDS_MAX)) as pieces:
                async for piece in pieces:
                    yield piece
        except ConnectionLost as error:
            raise _gone() from error


@contextlib.asynccontextmanager
async def ask(endpoint: str, api_key: str, path: str, body: bytes, request_id: str = "", *, method: str = "POST") -> AsyncIterator[Reply]:
    """Send one request and wait for the head of the answer; the end of the block closes the connection, which cancels the request.

    Raises:
        Unavailable: Nothing listens there or the worker ended before it answered; nothing has reached the client then.
    """
    address = urlsplit(endpoint)
    assert address.hostname is not None
    assert address.port is not None
    headers: tuple[tuple[bytes, bytes], ...] = (
        (b"Authorization", b"Bearer " + api_key.encode()),
        (b"Content-Type", b"application/json"),
        (b"Connection", b"close"),
    )
    if request_id:
        headers = (*headers, (b"X-Request-Id", request_id.encode()))
    try:
        connection = await Connection.open(address.hostname, address.port, seconds_max=CONNECT_SECONDS_MAX)
    except ConnectionLost as error:
        raise _gone() from error
    try:
        try:
            head = await connection.ask(method, path, headers, body, seconds_max=SILENCE_SECONDS_MAX)
        except ConnectionLost as error:
            raise _gone() from error
        yield Reply(connection, head)
    finally:
        connection.close()


def _data(event: bytes) -> bytes:
    """Return the data of an event in one line, as runtimes write it; comments and other fields have none."""
    return next((line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")), b"")


def _gone() -> Unavailable:
    return Unavailable(
        "the worker ended while it had the request; it is started again", retry_after_seconds=RETRY_SECONDS, code="worker_exited"
    )
