"""The store over SQLite and PostgreSQL: reads and watches from memory, writes through one writer thread.

In: the calls of `controller.store.base.Store`. Out: items, pages and watches. The database is read once, when the store opens; from then
on the event loop owns a `Catalog` (what is stored) and a `Broadcaster` (what changed lately), and the writer thread owns the database. A
delivery of the writer is taken in as one step of the event loop: catalog, watches, and only then the answers, so that whoever was
answered finds the write in every read.

SQLite is for one process: `app.py` opens it inside a data directory that the program has locked. A PostgreSQL database serves several at
once. There every read first asks for the newest revision and waits until the memory has it (`freshness.py`), so whatever one controller
acknowledged the others show. `leading(term)` is the store in the hands of the elected leader.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from controller.store import writes
from controller.store.base import Item, Page, Selection, Watch
from controller.store.broadcaster import Broadcaster
from controller.store.catalog import Catalog, Key
from controller.store.selecting import Selector
from controller.store.sql.calls import Writing
from controller.store.sql.compaction import LOG_BYTES_MAX, LOG_EVENTS_MAX, LogWindow
from controller.store.sql.database import Contents, Database
from controller.store.sql.freshness import Freshness
from controller.store.sql.leading import LeaderStore
from controller.store.sql.postgres import PostgresDatabase
from controller.store.sql.sealing import SealedDatabase, Sealing
from controller.store.sql.sqlite import SqliteDatabase
from controller.store.sql.writer import Delivery, Pending, TakeTerm, Writer
from rkfleet import metric_names
from rkfleet.errors import BadRequest, FleetError, NotFound, Unavailable
from rkfleet.kinds.base import Registry, Resource
from rkfleet.meta import Ref, ResourceName
from rkfleet.metrics import Metrics

__all__ = ["SqlStore"]

BEHIND_SECONDS_MAX: Final = 5.0  # A read waits so long for what other controllers wrote; a healthy one is behind by milliseconds.
PENDING_WRITES_MAX: Final = 10_000  # Writes that wait; a second of work for the disk. More would only time out at their callers.

Json = dict[str, Any]


class _Continue(msgspec.Struct, frozen=True, array_like=True):
    """What a continue token says: the moment that the pages show, and the last key that was returned."""

    resource: str
    revision: int
    namespace: str
    name: str


class SqlStore(Writing):
    """See `controller.store.base.Store`; `open` is the way to one."""

    def __init__(self, registry: Registry, contents: Contents, loop: asyncio.AbstractEventLoop, metrics: Metrics) -> None:
        self._registry: Final = registry
        self._loop: Final = loop
        self._metrics: Final = metrics
        self._catalog = Catalog(contents.items)
        self._broadcaster: Final = Broadcaster(contents.revision, contents.floor, contents.entries)
        self._floor = contents.floor
        self._outbox: Final[list[Pending]] = []
        self._submit: Callable[[Sequence[Pending]], None] | None = None
        self._freshness: Freshness | None = None
        self._behind: Final[list[tuple[int, asyncio.Future[None]]]] = []  # Reads that wait for a revision.
        self._pending = 0
        self._commits = 0
        self._trouble = ""
        metrics.gauge(metric_names.STORE_REVISION).set(contents.revision)
        metrics.gauge(metric_names.STORE_LOG_EVENTS).set_function(lambda: self._broadcaster.length)
        metrics.gauge(metric_names.STORE_WATCHES).set_function(lambda: self._broadcaster.watches)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        place: Path | str,
        registry: Registry,
        *,
        fleet: str = "",
        sealing: Sealing | None = None,
        metrics: Metrics | None = None,
        monotonic: Callable[[], float] = time.perf_counter,
        log_events_max: int = LOG_EVENTS_MAX,
        log_bytes_max: int = LOG_BYTES_MAX,
    ) -> AsyncIterator[SqlStore]:
        """Open the store, making its tables if there are none; closed when the context ends, after all that was written.

        Args:
            place: Path of the SQLite file (two more are beside it while it is open), or the `postgresql://` URL of a database.
            registry: Kinds that can be written.
            fleet: Who shares a database must say the same word here; the first one's counts.
            sealing: Keys of the Secrets; None keeps them in plain.
            metrics: Where to count.
            monotonic: Seconds, for gathering batches and measuring commits.
            log_events_max: Changes that a watch may be behind.
            log_bytes_max: Bytes of them.

        Raises:
            FailedPrecondition: The database is damaged, no store, or written by a newer rkfleet.
            Unavailable: The disk is full or refuses, another program holds the file, or no server answers.
        """
        loop = asyncio.get_running_loop()
        opened = await asyncio.to_thread(_open, place, fleet)
        database: Database = opened if sealing is None else SealedDatabase(opened, sealing)
        try:
            contents = await asyncio.to_thread(database.load)
        except FleetError:
            database.close()
            raise
        store = cls(registry, contents, loop, metrics or Metrics("controller"))
        sizes = ((entry.revision, len(entry.item.body)) for entry in contents.entries)
        writer = Writer(
            database,
            contents.items,
            contents.revision,
            contents.floor,
            contents.term,
            window=LogWindow(sizes, events_max=log_events_max, bytes_max=log_bytes_max),
            deliver=store._hand_over,
            monotonic=monotonic,
        )
        thread = threading.Thread(target=writer.run, name="store-writer", daemon=True)
        thread.start()
        store._submit = writer.submit
        async with contextlib.AsyncExitStack() as stack:
            if isinstance(opened, PostgresDatabase):
                shared = opened
                listening = Freshness.open(str(place), writer.poke, lambda: shared.backend_pid)
                store._freshness = await stack.enter_async_context(listening)
            try:
                yield store
            finally:
                store._flush()
                store._submit = None
                writer.stop()
                await asyncio.to_thread(thread.join)
                store._broadcaster.close()

    @property
    def commits(self) -> int:
        """Transactions since the store was opened."""
        return self._commits

    @property
    def trouble(self) -> str:
        """Why writes fail at the moment, as a sentence; empty while they do not. Reads go on."""
        return self._trouble

    async def get(self, ref: Ref) -> Item:
        """See `Store.get`."""
        await self._fresh()
        item = self._catalog.find(ref)
        if item is None:
            raise NotFound(f'{ref.resource} "{ref.name}" not found', name=ref.name, resource=ref.resource, namespace=ref.namespace)
        return item

    async def list(self, resource: ResourceName, selection: Selection = Selection(), *, limit: int = 0, continue_token: str = "") -> Page:
        """See `Store.list`."""
        await self._fresh()
        selector = Selector(selection)
        revision, after = self._broadcaster.revision, None
        before: dict[Key, Item | None] = {}
        if continue_token:
            revision, after = _read_token(continue_token, resource)
            for entry in self._broadcaster.since(resource, revision):
                before.setdefault((entry.item.ref.namespace, entry.item.ref.name), entry.previous)
        items, following = await selector.choose(self._catalog.candidates(resource, selector, after, before), limit)
        token = "" if following == 0 else _write_token(resource, revision, items[-1].ref)
        return Page(items, str(revision), token, following)

    async def watch(
        self, resource: ResourceName, selection: Selection = Selection(), *, resource_version: str, bookmarks: bool = False
    ) -> Watch:
        """See `Store.watch`."""
        if not (resource_version.isascii() and resource_version.isdigit()):
            raise BadRequest(f"resourceVersion {resource_version!r} is none of this server's")
        if int(resource_version) > self._broadcaster.revision:
            await self._fresh()  # Another controller may have given it.
        return self._broadcaster.watch(resource, Selector(selection), int(resource_version), bookmarks=bookmarks)

    def leading(self, term: int) -> LeaderStore:
        """Return this store for the leader of a term, which `take_term` began: its writes count until a newer leader's term begins."""
        return LeaderStore(self, term)

    async def take_term(self, term: int) -> None:
        """Begin the term of a leader; the database refuses writes of lower terms from now on.

        Raises:
            Unavailable: A newer leader has begun its own, or the database refuses.
        """
        await self._submitted(TakeTerm(term), None, None)

    async def write(self, write: writes.Write, term: int | None = None) -> Item:
        """Return what a write came to; with a `term` it counts only while that is the newest leader's.

        Raises:
            FleetError: As the method of `Store` that makes such a write.
        """
        kind = self._registry.find(write.ref.resource)
        if kind is None:
            raise NotFound(f"there is no resource {write.ref.resource!r}")
        item: Item = await self._submitted(write, kind.resource, term)
        return item

    async def _send(self, write: writes.Write) -> Item:
        return await self.write(write)

    async def _submitted(self, write: writes.Write | TakeTerm, resource: Resource | None, term: int | None) -> Any:
        if self._submit is None:
            raise Unavailable("the store is stopping")
        if self._pending >= PENDING_WRITES_MAX:
            raise Unavailable(f"{self._pending} writes wait for the disk, at most {PENDING_WRITES_MAX} may")
        answer: asyncio.Future[Any] = self._loop.create_future()
        if not self._outbox:
            self._loop.call_soon(self._flush)  # What other tasks write in this turn of the loop goes along.
        self._outbox.append(Pending(write, resource, answer, term))
        self._pending += 1
        return await answer

    async def _fresh(self) -> None:
        """Return when everything that any controller had acknowledged before this call is in memory.

        Raises:
            Unavailable: The database does not answer, or this process cannot keep up.
        """
        if self._freshness is None:
            return
        newest = await self._freshness.newest()
        if newest <= self._broadcaster.revision:
            return
        reached: asyncio.Future[None] = self._loop.create_future()
        self._behind.append((newest, reached))
        self._freshness.look()
        try:
            async with asyncio.timeout(BEHIND_SECONDS_MAX):
                await reached
        except TimeoutError:
            raise Unavailable(f"this controller has not seen revision {newest} after {BEHIND_SECONDS_MAX:g} s; ask another") from None

    def _flush(self) -> None:
        if self._outbox and self._submit is not None:
            self._submit(tuple(self._outbox))
            self._outbox.clear()

    def _hand_over(self, delivery: Delivery) -> None:
        """Called by the writer thread."""
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            self._loop.call_soon_threadsafe(self._take, delivery)

    def _take(self, delivery: Delivery) -> None:
        if (contents := delivery.contents) is not None:
            self._catalog = Catalog(contents.items)
            self._broadcaster.restart(contents.revision)
        for entry in delivery.entries:
            if entry.type == "DELETED":
                self._catalog.remove(entry.item.ref)
            else:
                self._catalog.put(entry.item)
        self._broadcaster.publish(delivery.entries, delivery.revision)
        if delivery.floor != self._floor:
            self._floor = delivery.floor
            self._broadcaster.compact(delivery.floor)
        self._release(delivery.revision)
        self._trouble = delivery.trouble
        self._count(delivery)
        self._pending -= len(delivery.answers)
        for pending, answer in delivery.answers:
            if pending.answer.done():
                continue
            if isinstance(answer, FleetError):
                pending.answer.set_exception(answer)
            else:
                pending.answer.set_result(answer)

    def _release(self, revision: int) -> None:
        """Let the reads go on that waited for this revision."""
        for wanted, reached in [one for one in self._behind if one[0] <= revision]:
            self._behind.remove((wanted, reached))
            if not reached.done():
                reached.set_result(None)

    def _count(self, delivery: Delivery) -> None:
        self._metrics.gauge(metric_names.STORE_REVISION).set(delivery.revision)
        if delivery.commits:
            self._commits += delivery.commits
            self._metrics.counter(metric_names.STORE_COMMITS).inc(delivery.commits)
            self._metrics.histogram(metric_names.STORE_COMMIT_SECONDS).observe(delivery.commit_seconds)
        refused = sum(isinstance(answer, FleetError) for _, answer in delivery.answers)
        results = {
            "failed": refused if delivery.trouble else 0,
            "refused": 0 if delivery.trouble else refused,
            "stored": len(delivery.entries),
            "unchanged": len(delivery.answers) - refused - len(delivery.entries),
        }
        for result, count in results.items():
            if count > 0:
                self._metrics.counter(metric_names.STORE_WRITES, result=result).inc(count)


def _open(place: Path | str, fleet: str) -> SqliteDatabase | PostgresDatabase:
    return SqliteDatabase.open(place) if isinstance(place, Path) else PostgresDatabase.open(place, fleet)


def _write_token(resource: ResourceName, revision: int, last: Ref) -> str:
    token = msgspec.json.encode(_Continue(resource, revision, last.namespace, last.name))
    return base64.urlsafe_b64encode(token).decode().rstrip("=")


def _read_token(text: str, resource: ResourceName) -> tuple[int, Key]:
    try:
        padded = text.encode() + b"=" * (-len(text) % 4)
        token = msgspec.json.decode(base64.urlsafe_b64decode(padded), type=_Continue)
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise BadRequest("the continue token is not one of this server's") from error
    if token.resource != resource:
        raise BadRequest(f"the continue token is for {token.resource}, not for {resource}")
    return token.revision, (token.namespace, token.name)
