"""A client for the HTTP listeners of workers: one request per connection, closed to cancel.

In: an endpoint on loopback, its bearer token, a path and a JSON body. Out: status, and the body whole or as server-sent events. Called by
`agent/serving/proxy.py`. It is its own client, because closing the connection is the one way to end a request in the runtime, so
nothing may pool it, and because the agent's memory is counted: this costs nothing beside what asyncio already holds.

It speaks as much HTTP/1.1 as workers' listeners use: Content-Length and chunked bodies. Source: RFC 9112.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final
from urllib.parse import urlsplit

from rkfleet.errors import Unavailable

__all__ = ["Reply", "ask"]

CONNECT_SECONDS_MAX: Final = 2.0  # Loopback answers in microseconds; longer means that the listener's backlog is full or it is gone.
HEAD_BYTES_MAX: Final = 64 << 10
BODY_BYTES_MAX: Final = 1 << 20  # Of a body that is read whole: an error.
EVENT_BYTES_MAX: Final = 4 << 20  # One event: a token, with log probabilities some kilobytes.


class Reply:
    """An answer whose head has arrived."""

    def __init__(self, reader: asyncio.StreamReader, status: int, headers: dict[bytes, bytes]) -> None:
        self.status: Final = status
        self._reader: Final = reader
        self._headers: Final = headers

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
            if b"chunked" in self._headers.get(b"transfer-encoding", b""):
                while size := int(await self._reader.readuntil(b"\r\n"), 16):
                    yield (await self._reader.readexactly(size + 2))[:-2]
            else:
                yield await self._reader.readexactly(int(self._headers.get(b"content-length", b"0")))
        except (OSError, EOFError, asyncio.LimitOverrunError, ValueError) as error:
            raise _gone() from error


@contextlib.asynccontextmanager
async def ask(endpoint: str, api_key: str, path: str, body: bytes) -> AsyncIterator[Reply]:
    """Send one request and wait for the head of the answer; the end of the block closes the connection, which cancels the request.

    Raises:
        Unavailable: Nothing listens there or the worker ended before it answered; nothing has reached the client then.
    """
    address = urlsplit(endpoint)
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=HEAD_BYTES_MAX)
    except (OSError, TimeoutError) as error:
        raise _gone() from error
    try:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {api_key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        try:
            writer.write(head.encode() + body)
            await writer.drain()
            reply = _reply(reader, await reader.readuntil(b"\r\n\r\n"))
        except (OSError, EOFError, asyncio.LimitOverrunError, ValueError) as error:
            raise _gone() from error
        yield reply
    finally:
        writer.transport.abort()


def _reply(reader: asyncio.StreamReader, head: bytes) -> Reply:
    first, *lines = head.rstrip().split(b"\r\n")
    pairs = (line.partition(b":") for line in lines)
    return Reply(reader, int(first.split(b" ")[1]), {name.strip().lower(): value.strip().lower() for name, _, value in pairs})


def _data(event: bytes) -> bytes:
    """Return the data of an event in one line, as runtimes write it; comments and other fields have none."""
    return next((line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")), b"")


def _gone() -> Unavailable:
    return Unavailable("the worker ended while it had the request; it is started again", retry_after_seconds=2, code="worker_exited")
