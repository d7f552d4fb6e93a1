"""Connections to boards: mutual TLS, kept open between requests, closed to cancel.

In: a board's serving URL and the name that its certificate must have. Out: answers whose body is read piece by piece. Called by
`gateway/proxy.py`. A TLS handshake costs a round trip and some milliseconds on a board, so a connection whose answer was read to its end is
kept for the next request to the same board; any other is closed, which tells the board that nobody waits any more.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Final
from urllib.parse import urlsplit

import msgspec

from gateway import limits
from rkfleet.clock import Clock
from rkfleet.http1 import Connection, ConnectionLost, Head

__all__ = ["Answer", "Boards"]


class _Address(msgspec.Struct, frozen=True):
    host: str
    port: int
    server_name: str


class _Idle(msgspec.Struct, frozen=True):
    connection: Connection
    since: float


class Answer:
    """An answer whose head has arrived."""

    def __init__(self, connection: Connection, head: Head) -> None:
        self._connection: Final = connection
        self.status: Final = head.status
        self.headers: Final = head.headers

    def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it comes.

        Raises:
            ConnectionLost: The board went away in the middle of it.
        """
        return self._connection.pieces(seconds_max=limits.FIRST_BYTE_SECONDS_MAX)


class Boards:
    """The gateway's connections, by board."""

    def __init__(self, tls: ssl.SSLContext, clock: Clock) -> None:
        self._tls: Final = tls
        self._clock: Final = clock
        self._idle: Final[dict[_Address, list[_Idle]]] = {}

    def close(self) -> None:
        """Close every connection that is not in use."""
        for kept in self._idle.values():
            for idle in kept:
                idle.connection.close()
        self._idle.clear()

    @contextlib.asynccontextmanager
    async def post(self, url: str, server_name: str, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> AsyncIterator[Answer]:
        """Send one request; the end of the block closes the connection unless the answer was read to its end.

        A kept connection that turns out to be closed is replaced by another one: its board has not answered, and closes idle connections.

        Raises:
            ConnectionLost: The board cannot be reached, has another certificate, or went away before it answered.
        """
        parts = urlsplit(url)
        address = _Address(parts.hostname or "", parts.port or 443, server_name)
        connection, head = await self._ask(address, parts.path, headers, body)
        try:
            yield Answer(connection, head)
        finally:
            self._put_back(address, connection)

    async def _ask(self, address: _Address, path: str, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> tuple[Connection, Head]:
        while True:
            kept = self._take(address)
            connection = kept or await Connection.open(
                address.host, address.port, seconds_max=limits.CONNECT_SECONDS_MAX, tls=self._tls, server_name=address.server_name
            )
            try:
                return connection, await connection.ask("POST", path, headers, body, seconds_max=limits.FIRST_BYTE_SECONDS_MAX)
            except ConnectionLost:
                connection.close()
                if kept is None:
                    raise
            except BaseException:
                connection.close()
                raise

    def _take(self, address: _Address) -> Connection | None:
        """Return a kept connection that still seems open, the one used last first."""
        kept = self._idle.get(address, [])
        oldest = self._clock.monotonic() - limits.IDLE_SECONDS_MAX
        while kept:
            idle = kept.pop()
            if idle.connection.reusable and idle.since > oldest:
                return idle.connection
            idle.connection.close()
        self._idle.pop(address, None)
        return None

    def _put_back(self, address: _Address, connection: Connection) -> None:
        kept = self._idle.setdefault(address, [])
        if connection.reusable and len(kept) < limits.IDLE_CONNECTIONS_MAX:
            kept.append(_Idle(connection, self._clock.monotonic()))
        else:
            connection.close()
