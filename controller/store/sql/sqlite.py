"""SQLite: the one connection to the database file, which opens it, reads everything once, and commits batches.

In: a path, then batches of rows. Out: what the file holds, and commits that are durable when they return. Errors of the driver end here:
they become Unavailable with a sentence for the operator, or FailedPrecondition where the file must not be used.

After an error the same connection goes on, for a reason: a commit whose fsync failed has left its frames in the write-ahead log, but the
connection does not count them, and the next commit writes over them. A new connection would find them and bring the transaction back.
Only where nothing can be undone a new connection is made; the next `begin` then tells what became of the last commit.

One thread at a time uses it. The settings are SQLite's for a server: write-ahead log, and `synchronous=FULL`, which means an fsync of
the log in each commit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from controller.store.base import Item
from controller.store.sql import copying, integrity, schema, tables
from controller.store.sql.database import Batch, Contents, Tail
from controller.store.sql.rows import entry_of, event_row, object_row
from rkfleet.errors import FailedPrecondition, FleetError, Unavailable
from rkfleet.meta import Ref

__all__ = ["SqliteDatabase"]

BUSY_MILLISECONDS: Final = 1_000  # Somebody with a sqlite3 shell holds the file; longer than a backup's step, shorter than a request.
CHECKPOINT_PAGES: Final = 1_000  # SQLite's default: the log is copied into the file every 4 MB.
JOURNAL_BYTES_MAX: Final = 64 << 20  # What a burst leaves of the write-ahead log on the disk.

_SETTINGS: Final = (
    f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}",
    f"PRAGMA journal_size_limit = {JOURNAL_BYTES_MAX}",
    "PRAGMA temp_store = MEMORY",
)

_log: Final = logging.getLogger(__name__)

_objects, _events, _counter = tables.objects.c, tables.events.c, tables.counter.c

_insert = sqlite.insert(tables.objects)
_PUT: Final = _insert.on_conflict_do_update(
    index_elements=["resource", "namespace", "name"],
    set_={"uid": _insert.excluded.uid, "store_revision": _insert.excluded.store_revision, "body": _insert.excluded.body},
)
_REMOVE: Final = sa.delete(tables.objects).where(
    _objects.resource == sa.bindparam("r"), _objects.namespace == sa.bindparam("ns"), _objects.name == sa.bindparam("n")
)
_LOG: Final = sa.insert(tables.events)
_COMPACT: Final = sa.delete(tables.events).where(_events.store_revision <= sa.bindparam("floor"))
_ADVANCE: Final = (
    sa.update(tables.counter)
    .where(_counter.id == 1, _counter.revision == sa.bindparam("base"))
    .values(revision=sa.bindparam("top"), compacted_revision=sa.bindparam("floor"))
)
_SINCE: Final = sa.select(tables.events).where(_events.store_revision > sa.bindparam("base")).order_by(_events.store_revision)


class SqliteDatabase:
    """A database file that is open, for one process; see `controller.store.sql.database.Database`. `open` is the way to one."""

    shared: Final = False

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._engine: Final = sa.create_engine(
            sa.URL.create("sqlite", database=str(path)), poolclass=NullPool, connect_args={"check_same_thread": False, "timeout": 0}
        )
        sa.event.listen(self._engine, "connect", _configure)
        sa.event.listen(self._engine, "begin", _begin)
        self._connection: sa.Connection | None = None
        self._kept = Tail((), 0, 0)  # What `begin` tells; terms are kept here only, because no other process can lead.

    @classmethod
    def open(cls, path: Path) -> SqliteDatabase:
        """Open the file, make it if it is not there, and check that it is whole and ours.

        Raises:
            FailedPrecondition: It is damaged, no store, or written by a newer rkfleet.
            Unavailable: The disk is full or refuses (also the copy that is kept before a migration), or another program holds the file.
        """
        database = cls(path)
        try:
            with database._translated("be opened"):
                database._check(database._connect())
        except FleetError:
            database.close()
            raise
        _sync_directory(path.parent)
        return database

    def load(self) -> Contents:
        """See `Database.load`."""
        with self._translated("be read"):
            connection = self._connect()
            revision = connection.execute(sa.select(_counter.revision)).scalar_one()
            items = list(integrity.checked_items(connection.execute(sa.select(tables.objects)), str(self._path)))
            connection.rollback()
        tail = self._since(0, {item.ref: item for item in items})
        integrity.checked_revision(revision, integrity.newest_of(items, tail.entries), str(self._path))
        self._kept = Tail((), tail.floor, 0)
        return Contents(revision, tail.floor, items, tail.entries)

    def begin(self, revision: int, *, unsure: bool) -> Tail:
        """See `Database.begin`: nobody else writes, so there is something to tell only after a commit whose end nobody knows."""
        if not unsure:
            return self._kept
        tail = self.tail(revision)
        if tail.entries:
            top = tail.entries[-1].revision
            durable = Batch(base=top, revision=top, floor=tail.floor, compact=False, put=(), removed=(), entries=())
            self.commit(msgspec.structs.replace(durable, base_term=tail.term, term=tail.term))
        return tail

    def tail(self, revision: int) -> Tail:
        """See `Database.tail`."""
        return self._since(revision, {})

    def _since(self, revision: int, stored: Mapping[Ref, Item]) -> Tail:
        with self._translated("be read"):
            connection = self._connect()
            floor = connection.execute(sa.select(_counter.compacted_revision)).scalar_one()
            entries = [entry_of(row, stored) for row in connection.execute(_SINCE, {"base": revision})]
            connection.rollback()
        return Tail(entries, floor, self._kept.term)

    def leave(self) -> None:
        """See `Database.leave`: a turn holds nothing here."""

    def commit(self, batch: Batch) -> None:
        """See `Database.commit`."""
        with self._translated("be written"):
            connection = self._connect()
            with connection.begin():
                advanced = connection.execute(_ADVANCE, {"base": batch.base, "top": batch.revision, "floor": batch.floor})
                if advanced.rowcount != 1:
                    raise Unavailable(f"{self._path} was changed by another program since revision {batch.base}")
                if batch.put:
                    connection.execute(_PUT, [object_row(item) for item in batch.put])
                if batch.removed:
                    connection.execute(_REMOVE, [{"r": ref.resource, "ns": ref.namespace, "n": ref.name} for ref in batch.removed])
                if batch.entries:
                    connection.execute(_LOG, [event_row(entry) for entry in batch.entries])
                if batch.compact:
                    connection.execute(_COMPACT, {"floor": batch.floor})
        self._kept = Tail((), batch.floor, batch.term)

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                self._connection.close()
            self._connection = None
        self._engine.dispose()

    def _connect(self) -> sa.Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _check(self, connection: sa.Connection) -> None:
        found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if found != "ok":
            raise FailedPrecondition(f"{self._path} is damaged ({found}); {integrity.RESTORE}")
        connection.rollback()
        with connection.begin():
            schema.prepare(connection, self._keep, name=str(self._path))

    def _keep(self, version: int) -> None:
        """Keep the file as it is before it is brought to a version."""
        kept = self._path.with_name(f"{self._path.name}.before-{version}")
        copying.copy_store(self._path, kept)
        _log.info("kept a copy of %s as %s before its migration to schema version %d", self._path, kept, version)

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Turn the driver's errors into ours, and leave no transaction open after one."""
        try:
            yield
        except DBAPIError as error:
            self._undo()
            raise _translate(error, self._path, what) from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._undo()
            raise FailedPrecondition(f"{self._path} is damaged: an object cannot be read ({error}); {integrity.RESTORE}") from error
        except FleetError:
            self._undo()
            raise

    def _undo(self) -> None:
        if self._connection is None:
            return
        try:
            self._connection.rollback()
            raw: Any = self._connection.connection.driver_connection
            raw.rollback()  # What SQLAlchemy does not know of: a COMMIT that failed half way.
        except (SQLAlchemyError, sqlite3.Error):
            self.close()


def _configure(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # `_begin` says when; the driver's own transactions start too late.
    for setting in _SETTINGS:
        connection.execute(setting)


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _sync_directory(directory: Path) -> None:
    """Make the name of a new file durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _translate(error: DBAPIError, path: Path, what: str) -> FleetError:
    name = getattr(error.orig, "sqlite_errorname", "") or type(error.orig).__name__
    reason = str(error.orig)
    if name == "SQLITE_FULL" or "disk is full" in reason:
        return Unavailable(f"{path} cannot {what}: the disk is full; free space on its file system and it goes on by itself", reason=name)
    if name in ("SQLITE_BUSY", "SQLITE_LOCKED"):
        return Unavailable(f"{path} cannot {what}: another program holds it locked", reason=name)
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return FailedPrecondition(f"{path} cannot {what}: it is damaged or no database ({reason}); {integrity.RESTORE}", reason=name)
    return Unavailable(f"{path} cannot {what}: {reason} ({name})", reason=name)
