"""Listening: the ops endpoints that every program has, and one way to serve an ASGI application.

In: what says whether the program is ready, what writes its metrics, an application, an address and perhaps TLS. Out: a bound port and
a clean stop. Called by each program's `app.py`. It stands apart so that every listener of rkfleet has the same limits, logs no access
line, leaves signals to the program, and can demand a certificate of its callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import uvicorn

from rkfleet.errors import FailedPrecondition, Invalid

__all__ = ["ASGIApp", "Listener", "Tls", "bracketed", "is_loopback", "ops_app", "serve_asgi", "server_context"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

SHUTDOWN_SECONDS: Final = 3  # Open watches and streams get this long to end by themselves before they are cut.
CANCEL_SECONDS: Final = 1  # And this long to clean up after they were cancelled.
IDLE_CHECK_SECONDS: Final = 0.05  # How often a stopping listener looks for connections whose request has ended.
KEEP_ALIVE_SECONDS: Final = 75  # Longer than a client's pause between polls, so that pooled connections are found alive.
HEAD_BYTES_MAX: Final = 64 << 10  # Of one request, as h11 has it; clients send some hundred bytes.
HEAD_FIELDS_MAX: Final = 200  # Of one request, and of its trailer: clients send ten, proxies add as many.
BACKLOG: Final = 2048  # Connections that wait to be accepted while the loop is busy: a whole fleet reconnecting.

_TEXT: Final = b"text/plain; charset=utf-8"
_METRICS: Final = b"text/plain; version=0.0.4; charset=utf-8"  # Source: Prometheus text exposition format 0.0.4.


class Tls(msgspec.Struct, frozen=True):
    """How a listener proves itself and whom it lets in.

    Attributes:
        cert_file: PEM chain that the listener shows.
        key_file: PEM key of its first certificate.
        client_ca_file: Only callers with a certificate of this CA get through the handshake; None asks for no certificate.
    """

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None


class Listener(msgspec.Struct, frozen=True):
    """A bound listener; `url` has the scheme, the address and the real port.

    Attributes:
        cut: Closes it and every connection at this moment, whatever is under way on them, as the loss of power does.
        context: Of its TLS; None for plain HTTP.
        reload: Takes over the certificate that is in its files now, for connections from now on; those that are open stay as they are.
            Raises FailedPrecondition if the files cannot be used, and goes on with what it had.
    """

    host: str
    port: int
    url: str
    cut: Callable[[], None]
    context: ssl.SSLContext | None = None
    reload: Callable[[], None] = lambda: None


def ops_app(ready: Callable[[], str], metrics: Callable[[], bytes], otherwise: ASGIApp | None = None) -> ASGIApp:
    """Return an application with /healthz, /readyz and /metrics.

    Args:
        ready: Returns the sentence that says why the program is not ready; empty when it is.
        metrics: Returns the metrics in the Prometheus text format.
        otherwise: Answers every other path; without it they are 404.
    """

    async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http":
            raise FailedPrecondition(f"this listener speaks HTTP, not {scope['type']}")
        if path == "/healthz":
            await _answer(send, 200, b"ok\n")
        elif path == "/readyz":
            sentence = ready()
            await _answer(send, 503 if sentence else 200, f"{sentence or 'ok'}\n".encode())
        elif path == "/metrics":
            await _answer(send, 200, metrics(), _METRICS)
        elif otherwise is not None:
            await otherwise(scope, receive, send)
        else:
            await _answer(send, 404, f"no {path}; this listener has /healthz, /readyz and /metrics\n".encode())

    return app


def bracketed(host: str) -> str:
    """Return a host as URLs write it: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Return whether only programs of this machine reach a listener at this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _answer(send: Send, status: int, body: bytes, content_type: bytes = _TEXT) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def server_context(tls: Tls) -> ssl.SSLContext:
    """Return the TLS context of a listener.

    Raises:
        FailedPrecondition: A file is missing or is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load_certificate(context, tls)
    if tls.client_ca_file is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(tls.client_ca_file)
        except OSError as error:
            raise FailedPrecondition(f"TLS file {tls.client_ca_file} cannot be used: {error}") from error
    return context


def _load_certificate(context: ssl.SSLContext | None, tls: Tls | None) -> None:
    if context is not None and tls is not None:
        try:
            context.load_cert_chain(tls.cert_file, tls.key_file)
        except OSError as error:  # ssl.SSLError is one
            raise FailedPrecondition(f"TLS files {tls.cert_file}, {tls.key_file} cannot be used: {error}") from error


def _bounded_protocol() -> type[asyncio.Protocol] | str:
    """Return how uvicorn reads HTTP, with a limit on heads and trailers.

    httptools gathers them without end, before anybody is asked who they are. Without httptools it is h11, which has a limit of its own.
    """
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: PLC0415 (not installed with every program)
    except ImportError:
        return "h11"

    class Bounded(HttpToolsProtocol):
        unread_bytes = 0  # since the last whole head, piece of a body, or end of a request
        head_bytes = 0  # of the head that is being read; it may come as one piece with what follows it
        head_fields = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn narrows it, too
            super().connection_made(cast("asyncio.Transport", _JoiningTransport(transport, self.loop)))

        def data_received(self, data: bytes) -> None:
            self.unread_bytes += len(data)
            super().data_received(data)
            if self.transport.is_closing():
                return
            if self.unread_bytes > HEAD_BYTES_MAX or self.head_bytes > HEAD_BYTES_MAX:
                self.send_400_response(f"the head of this request has more than {HEAD_BYTES_MAX} bytes")
            elif self.head_fields > HEAD_FIELDS_MAX:
                self.send_400_response(f"the head of this request has more than {HEAD_FIELDS_MAX} fields")

        def on_message_begin(self) -> None:
            self.head_bytes = self.head_fields = 0
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            self.head_bytes += len(url)
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self.head_bytes += len(name) + len(value)
            self.head_fields += 1
            if self.head_fields <= HEAD_FIELDS_MAX:
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self.unread_bytes = 0
            if self.head_bytes <= HEAD_BYTES_MAX and self.head_fields <= HEAD_FIELDS_MAX:
                super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self.unread_bytes = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self.unread_bytes = 0
            super().on_message_complete()

    return Bounded


class _JoiningTransport:
    """A transport that sends the head of an answer in one piece with what follows it at once.

    uvicorn writes them one after the other; over TLS that is two records and two calls of the kernel, a fifth of what a small answer
    costs. A head that nothing follows leaves in the next turn of the loop.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport: Final = transport
        self._loop: Final = loop
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._held:
            self._transport.write(self._held + data)
            self._held = b""
        elif data.startswith(b"HTTP/1.1 "):
            self._held = data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held and not self._transport.is_closing():
            self._transport.write(self._held)
        self._held = b""


class _State(uvicorn.server.ServerState):
    """uvicorn's state, whose Date header is made when an answer needs it: an idle listener then has nothing to do, every second or ever."""

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"date", email.utils.formatdate(usegmt=True).encode())]

    @default_headers.setter
    def default_headers(self, _headers: list[tuple[bytes, bytes]]) -> None:
        """Take no notice: uvicorn's own headers are those of a tick that never comes."""


class _Server(uvicorn.Server):
    """uvicorn's server with the program's own signal handling, and without looking ten times a second whether it should end."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.server_state = _State()
        self.servers: list[asyncio.base_events.Server] = []
        self._stopping: Final = asyncio.Event()

    def cut(self) -> None:
        """Close the listener and its connections now; call `stop` as well."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()

    def stop(self) -> None:
        """Accept nothing more and end when open requests have ended."""
        self.should_exit = True
        self._stopping.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `rkfleet.process`."""
        yield

    async def main_loop(self) -> None:
        """Wait until told to stop."""
        await self._stopping.wait()


@contextlib.asynccontextmanager
async def serve_asgi(
    app: ASGIApp,
    host: str,
    port: int,
    *,
    tls: Tls | None = None,
    shutdown_seconds: float = SHUTDOWN_SECONDS,
    max_concurrent: int | None = None,
) -> AsyncIterator[Listener]:
    """Serve `app` for as long as the block runs; connections are accepted from the first line of the block on.

    At the end no connection is accepted any more, open requests have `shutdown_seconds` to end, then they are cancelled.

    Args:
        app: ASGI application; gets no lifespan events.
        host: Address to bind.
        port: Port to bind; 0 takes any free one, `Listener.port` says which.
        tls: Serve HTTPS; None serves plain HTTP.
        shutdown_seconds: How long open requests may go on after the block.
        max_concurrent: Connections and requests above which callers get 503; None for no limit.

    Raises:
        FailedPrecondition: The address cannot be bound, or the TLS files cannot be used.
    """
    context = server_context(tls) if tls else None
    config = uvicorn.Config(
        app,
        lifespan="off",
        interface="asgi3",
        http=_bounded_protocol(),
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=shutdown_seconds,  # type: ignore[arg-type]  # handed to asyncio.wait_for, which takes fractions
        limit_concurrency=max_concurrent,
        backlog=BACKLOG,
        ssl_context_factory=(lambda _config, _default: context) if context else None,
    )
    config.load()
    bound = _bind(host, port)
    server = _Server(config)
    port = bound.getsockname()[1]
    failure: Exception | None = None
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(server.serve(sockets=[bound]))
        try:
            url = f"{'https' if tls else 'http'}://{bracketed(host)}:{port}"
            yield Listener(host, port, url, server.cut, context, lambda: _load_certificate(context, tls))
        except Exception as error:  # noqa: BLE001 (kept out of the task group, which would wrap it, and raised below)
            failure = error
        finally:
            server.stop()
            while not (await asyncio.wait((serving,), timeout=IDLE_CHECK_SECONDS))[0]:
                _drop_idle(server.server_state)
            await _cut(server.server_state)
    if failure is not None:
        raise failure


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise Invalid(f"listen address {host!r} cannot be resolved: {error}") from error
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise FailedPrecondition(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another port", port=port) from error
    return bound


def _drop_idle(state: uvicorn.server.ServerState) -> None:
    """Close connections without a request at once: over TLS, uvicorn would wait for the goodbye of pooled clients that do not read."""
    for connection in list(state.connections):
        transport, cycle = getattr(connection, "transport", None), getattr(connection, "cycle", None)
        if transport is not None and (cycle is None or cycle.response_complete) and transport.get_write_buffer_size() == 0:
            transport.abort()


async def _cut(state: uvicorn.server.ServerState) -> None:
    """Wait for requests that were cancelled and close what they leave open, so that nothing outlives the listener."""
    tasks = set(state.tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CANCEL_SECONDS)
    for connection in list(state.connections):
        transport = getattr(connection, "transport", None)
        if transport is not None:
            transport.abort()
