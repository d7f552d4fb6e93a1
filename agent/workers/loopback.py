"""A small HTTP/1.1 listener on loopback for workers: one request per connection, closing cancels.

In: a handler for requests. Out: an endpoint; the bytes of an answer as the handler sends them. Called by `agent/workers/simulated.py` and
`agent/workers/rkllm/http.py`. The agent's big listener (`rkfleet/ops.py`) lets requests end gracefully; a worker that ends is gone at once
and its connections with it, which is what a process that was killed looks like. Parsing and framing are h11's.

What is no request is answered with a status and no body, and its connection closed: 400 for what cannot be read, 408 for one that takes
too long, 413 for one that is too large. What follows a request on its connection is read and thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Final

import h11

from rkfleet.racing import run_until

__all__ = ["Answer", "Request", "listen"]

REQUEST_SECONDS_MAX: Final = 30.0  # Loopback needs milliseconds for the largest body.
REQUEST_BYTES_MAX: Final = 17 << 20  # The agent lets bodies of 16 MiB through and adds little to them.
READ_BYTES: Final = 64 << 10
HOST: Final = "127.0.0.1"

_log = logging.getLogger(__name__)


class Request:
    """A request that was read whole. Header names are in lower case."""

    def __init__(self, head: h11.Request, body: bytes) -> None:
        self.method: Final = head.method.decode("ascii", "replace")
        self.path: Final = head.target.decode("ascii", "replace")
        self.headers: Final = dict(head.headers)
        self.body: Final = body


class Answer:
    """The answer to one request, sent piece by piece."""

    def __init__(self, protocol: h11.Connection, writer: asyncio.StreamWriter) -> None:
        self._protocol: Final = protocol
        self._writer: Final = writer

    async def begin(self, status: int, content_type: bytes) -> None:
        """Send the head."""
        headers = [(b"content-type", content_type), (b"connection", b"close")]
        await self._send(h11.Response(status_code=status, headers=headers))

    async def piece(self, data: bytes) -> None:
        """Send a piece of the body."""
        await self._send(h11.Data(data=data))

    async def end(self) -> None:
        """Send the end of the body; without it the client knows that the answer broke off."""
        await self._send(h11.EndOfMessage())

    async def _send(self, event: h11.Response | h11.Data | h11.EndOfMessage) -> None:
        if data := self._protocol.send(event):
            self._writer.write(data)
            await self._writer.drain()


Handler = Callable[[Request, Answer], Coroutine[None, None, None]]


class _TooLarge(Exception):
    """The body has more than REQUEST_BYTES_MAX."""


@contextlib.asynccontextmanager
async def listen(handler: Handler, *, request_seconds_max: float = REQUEST_SECONDS_MAX) -> AsyncIterator[str]:
    """Answer requests with `handler` on any free port while the block runs; yields `http://127.0.0.1:<port>`.

    A client that closes its connection cancels its handler. At the end of the block every handler is cancelled and every connection closed.

    Args:
        handler: Answers one request.
        request_seconds_max: How long a request may take to arrive whole.

    Raises:
        OSError: No port could be bound.
    """
    open_tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = tasks.create_task(_serve(handler, reader, writer, request_seconds_max))
        open_tasks.add(task)
        task.add_done_callback(open_tasks.discard)

    # Bound before there is a group, which would wrap the error of a bind; it accepts once there is one.
    server = await asyncio.start_server(accept, HOST, 0, limit=READ_BYTES, start_serving=False)
    async with asyncio.TaskGroup() as tasks:
        try:
            await server.start_serving()
            yield f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in tuple(open_tasks):
                task.cancel()


async def _serve(handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request_seconds_max: float) -> None:
    protocol = h11.Connection(h11.SERVER)
    try:
        request = await _request(protocol, reader, writer, request_seconds_max)
        if request is not None:
            await run_until(handler(request, Answer(protocol, writer)), _closed(reader))
            await writer.drain()
            writer.close()
    except (OSError, h11.ProtocolError) as error:  # the client's side; it sees the connection end
        _log.debug("a connection of a worker ended", extra={"cause": repr(error)})
    except Exception:  # noqa: BLE001 (the edge of a connection: a mistake in one answer must not end the others)
        _log.exception("internal error in a worker's listener")
    finally:
        if not writer.is_closing():
            writer.transport.abort()


async def _request(
    protocol: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds_max: float
) -> Request | None:
    """Return the request; None if the client left, or sent something that was refused with a status."""
    try:
        async with asyncio.timeout(seconds_max):
            return await _read(protocol, reader, writer)
    except TimeoutError:
        status = 408
    except _TooLarge:
        status = 413
    except h11.RemoteProtocolError as error:
        status = error.error_status_hint
    if protocol.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
        answer = Answer(protocol, writer)
        await answer.begin(status, b"text/plain")
        await answer.end()
        writer.close()
    return None


async def _read(protocol: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    """Return the request, or None if the client left.

    Raises:
        _TooLarge: It has more than REQUEST_BYTES_MAX, or says that it will.
        h11.RemoteProtocolError: It is none.
    """
    head: h11.Request | None = None
    body = bytearray()
    while True:
        match protocol.next_event():
            case h11.Request() as event:
                head = event
                if int(dict(head.headers).get(b"content-length", b"0")) > REQUEST_BYTES_MAX:  # h11 lets digits through only
                    raise _TooLarge
            case h11.Data(data=data):
                body += data
                if len(body) > REQUEST_BYTES_MAX:
                    raise _TooLarge
            case h11.EndOfMessage():
                return None if head is None else Request(head, bytes(body))
            case h11.ConnectionClosed():
                return None
            case _:
                if protocol.they_are_waiting_for_100_continue:
                    writer.write(protocol.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
                protocol.receive_data(await reader.read(READ_BYTES))


async def _closed(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(READ_BYTES):
            pass
