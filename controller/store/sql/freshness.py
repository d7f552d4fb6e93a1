"""How a controller sees what others wrote to the database that they share: at once, and at the latest when somebody reads.

In: notifications of PostgreSQL, one for each commit of anybody. Out: pokes of the writer thread, which takes the changes in. Notifications
may be lost with their connection, so the writer is also poked every `LOOK_SECONDS`.

A read must show what any controller acknowledged before it began. `newest` asks the database for its revision; the store then waits until
its memory has it, as kube-apiserver does for reads from its cache (https://kep.k8s.io/2340). Reads that come while a question is on its way
share the next one, so a thousand readers cost as many questions as one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from controller.store.sql.postgres import CHANNEL, CONNECT, address_of, translated
from rkfleet.errors import FleetError, Unavailable

__all__ = ["Freshness"]

LOOK_SECONDS: Final = 1.0  # What a lost notification costs a watcher.
RETRY_SECONDS: Final = 1.0  # Between two tries to connect: a server that restarts is found soon, one that is down is not flooded.

_BROKEN: Final = (psycopg.Error, OSError, ValueError)  # What a connection raises that is gone, by moment.
_REVISION: Final = "SELECT revision FROM counter WHERE id = 1"

_log: Final = logging.getLogger(__name__)


class Freshness:
    """Two connections of their own: one asks, one listens; `open` is the way to one."""

    def __init__(self, conninfo: str, poke: Callable[[], None], own_pid: Callable[[], int]) -> None:
        self._conninfo: Final = conninfo
        self._poke: Final = poke
        self._own_pid: Final = own_pid
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._asking: asyncio.Future[int] | None = None
        self._next: asyncio.Future[int] | None = None
        self._stopping: Final = asyncio.Event()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str, poke: Callable[[], None], own_pid: Callable[[], int]) -> AsyncIterator[Freshness]:
        """Listen until the context ends.

        Args:
            url: Of the database.
            poke: Looks what others wrote; called from the event loop.
            own_pid: The server's process for the writer's connection; its notifications are our own.
        """
        conninfo = make_conninfo(address_of(url).set(drivername="postgresql").render_as_string(hide_password=False), **CONNECT)
        freshness = cls(conninfo, poke, own_pid)
        listener = asyncio.create_task(freshness._listen())
        try:
            yield freshness
        finally:
            freshness._stopping.set()
            listener.cancel()
            await asyncio.wait([listener])
            if freshness._connection is not None:
                await freshness._connection.close()

    def look(self) -> None:
        """Have the writer look what others wrote, because somebody knows that there is something."""
        self._poke()

    async def newest(self) -> int:
        """Return a revision that is at least the one of every write that was acknowledged before this call.

        Raises:
            Unavailable: The database does not answer.
        """
        if self._next is None:
            self._next = asyncio.ensure_future(self._ask(self._asking))
            self._next.add_done_callback(_seen)
        return await asyncio.shield(self._next)

    async def _ask(self, before: asyncio.Future[int] | None) -> int:
        if before is not None:
            await asyncio.wait([before])
        self._asking, self._next = self._next, None  # Who comes from here on needs a later look.
        try:
            return await self._revision()
        except _BROKEN:
            await self._forget()
        with translated("the database", "be read"):
            try:
                return await self._revision()  # A connection that was cut while nobody read is made anew, once.
            except (OSError, ValueError) as error:
                await self._forget()
                raise Unavailable(f"the database cannot be read: {error}") from error

    async def _revision(self) -> int:
        if self._connection is None:
            self._connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
        cursor = await self._connection.execute(_REVISION)
        row = await cursor.fetchone()
        assert row is not None, "the counter has one row"
        revision: int = row[0]
        return revision

    async def _forget(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                await self._connection.close()
            self._connection = None

    async def _listen(self) -> None:
        while not self._stopping.is_set():
            try:
                with translated("the database", "be listened to"):
                    await self._follow()
            except FleetError as error:
                _log.debug("%s", error.message)
            except Exception:  # noqa: BLE001 - whoever listens no more would fall behind without a word
                _log.exception("listening to the database failed; it is tried again")
            self._poke()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS):
                    await self._stopping.wait()

    async def _follow(self) -> None:
        async with await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True) as connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            self._poke()
            while True:
                foreign = True  # Silence is a reason to look, too.
                async for notice in connection.notifies(timeout=LOOK_SECONDS, stop_after=1):
                    foreign = notice.pid != self._own_pid()
                if foreign:
                    self._poke()


def _seen(answer: asyncio.Future[int]) -> None:
    """Take note of a failure for which nobody waits any more."""
    if not answer.cancelled():
        answer.exception()
