"""A TCP proxy that can go dead without closing: what a half-open connection looks like to both ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class TcpProxy:
    """Forwards bytes both ways until it is frozen.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self._target_port = target_port
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._writers: list[asyncio.StreamWriter] = []
        self._pipes: list[asyncio.Task[None]] = []

    def freeze(self) -> None:
        """Forward nothing any more, also of new connections; no end is told."""
        self._thawed.clear()

    def thaw(self) -> None:
        """Go on forwarding."""
        self._thawed.set()

    def cut(self) -> None:
        """Close every connection that is open now."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        await self._thawed.wait()
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers.append(onward_writer)
        pipes = [asyncio.ensure_future(self._pipe(reader, onward_writer)), asyncio.ensure_future(self._pipe(onward_reader, writer))]
        self._pipes += pipes
        await asyncio.wait(pipes)

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65536):
                await self._thawed.wait()
                writer.write(chunk)
                await writer.drain()
            writer.close()

    async def close(self) -> None:
        self._thawed.set()
        for pipe in self._pipes:
            pipe.cancel()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*self._pipes, return_exceptions=True)


@contextlib.asynccontextmanager
async def tcp_proxy(target_port: int, port: int = 0) -> AsyncIterator[TcpProxy]:
    """Run a proxy to a port of this machine, by default on any free port."""
    proxy = TcpProxy(target_port)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", port)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
