"""The databases under the servers of a history; one of them dies, too."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from tests.support.postgres import Server

__all__ = ["Database", "Postgres", "SqliteFile", "crashing_postgres"]


class Database(Protocol):
    """What the servers of a history write to.

    Attributes:
        servers: How many servers it has at once.
        crashes: Whether it can die apart from them.
    """

    servers: int
    crashes: bool

    async def place(self) -> str:
        """Return where an empty one is; empty for a file in the directory of the server."""
        ...

    async def crash(self) -> None:
        """Let it die and start it again."""
        ...


class SqliteFile:
    """A file of its server."""

    servers = 1
    crashes = False

    async def place(self) -> str:
        """See `Database`."""
        return ""

    async def crash(self) -> None:
        """See `Database`: it dies with its server only."""


class Postgres:
    """Databases on a PostgreSQL server that nobody else uses."""

    servers = 2
    crashes = True

    def __init__(self, server: Server) -> None:
        self._server = server
        self._last = ""

    async def place(self) -> str:
        """See `Database`; the one before is removed."""
        if self._last:
            await asyncio.to_thread(self._server.drop, self._last)
        self._last = await asyncio.to_thread(self._server.database)
        return self._last

    async def crash(self) -> None:
        """See `Database`."""
        await asyncio.to_thread(self._server.crash)


@contextlib.asynccontextmanager
async def crashing_postgres() -> AsyncIterator[Postgres]:
    """Run a PostgreSQL server that may be crashed."""
    directory = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # A socket's path must be short.
    directory.chmod(0o755)
    server = await asyncio.to_thread(Server, directory / "data")
    try:
        yield Postgres(server)
    finally:
        await asyncio.to_thread(server.stop)
        shutil.rmtree(directory, ignore_errors=True)
