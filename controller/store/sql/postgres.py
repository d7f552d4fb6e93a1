"""PostgreSQL: the one writing connection of this controller, which begins turns, commits batches, and reads what other controllers wrote.

Every turn is a transaction that locks the one row of `counter` first. Revisions are taken inside it, so they become visible in the order of
their numbers: whoever reads events after a revision misses none. (A sequence would not do: its numbers are taken before they are visible.)
The row is also what a commit is conditional on: the revision it was planned on, and the term of the leader.

Nobody can hold the others up for long: a controller that stands still inside a turn is thrown out by the server
(`idle_in_transaction_session_timeout`), one that waits for a turn gives up (`lock_timeout`), and a connection that is cut is noticed
(`tcp_user_timeout`). Each commit sends one notification, so that the others look at once; they would look anyway (`freshness.py`).

One thread uses it. The settings are made for each session, because the server's defaults may be weaker: `synchronous_commit = on` means
that the write-ahead log is flushed before a commit is acknowledged. A server with `fsync = off` is named in the log.

Source: https://www.postgresql.org/docs/15/runtime-config-client.html, https://www.postgresql.org/docs/15/explicit-locking.html
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
import psycopg
import sqlalchemy as sa
from psycopg.rows import namedtuple_row
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from controller.store.sql import integrity, schema
from controller.store.sql.database import Batch, Contents, Tail
from controller.store.sql.jump import jump
from controller.store.sql.rows import entry_of, event_row, object_row
from rkfleet.errors import FailedPrecondition, FleetError, Invalid, Unavailable

__all__ = ["CHANNEL", "CONNECT", "PostgresDatabase", "address_of", "translated"]

CHANNEL: Final = "rkfleet_revision"
CONNECT_SECONDS_MAX: Final = 5
STATEMENT_SECONDS_MAX: Final = 30  # Reading everything of the largest fleet takes about one.
TURN_SECONDS_MAX: Final = 5  # A turn takes milliseconds; who holds one for so long stands still.
START_LOCK: Final = 0x726B666C  # Advisory lock of those who make or migrate tables: "rkfl".

_SESSION: Final = {
    "application_name": "rkfleet",
    "synchronous_commit": "on",
    "statement_timeout": f"{STATEMENT_SECONDS_MAX}s",
    "lock_timeout": f"{TURN_SECONDS_MAX}s",
    "idle_in_transaction_session_timeout": f"{TURN_SECONDS_MAX}s",
    "client_encoding": "UTF8",
}
CONNECT: Final[dict[str, Any]] = {
    "connect_timeout": CONNECT_SECONDS_MAX,
    "keepalives_idle": CONNECT_SECONDS_MAX,
    "keepalives_interval": 1,
    "keepalives_count": CONNECT_SECONDS_MAX,
    "tcp_user_timeout": 1_000 * CONNECT_SECONDS_MAX,
    "options": " ".join(f"-c {name}={value}" for name, value in _SESSION.items()),
}
"""How every connection is made: what is cut is noticed within seconds, and what is acknowledged is on the disk."""

_BEGIN: Final = "BEGIN; SELECT revision, compacted_revision, leader_term FROM counter WHERE id = 1 FOR UPDATE"
_EVENTS: Final = (
    "SELECT type, resource, namespace, name, uid, store_revision, body FROM events WHERE store_revision > %s ORDER BY store_revision"
)
_ADVANCE: Final = (
    "UPDATE counter SET revision = %(revision)s, compacted_revision = %(floor)s, leader_term = %(term)s"
    " WHERE id = 1 AND revision = %(base)s AND leader_term = %(base_term)s"
)
_COLUMNS: Final = "resource, namespace, name, uid, store_revision, body"
_ARRAYS: Final = (
    "%(resource)b::text[], %(namespace)b::text[], %(name)b::text[], %(uid)b::text[], %(store_revision)b::bigint[], %(body)b::bytea[]"
)
_PUT: Final = (
    f"INSERT INTO objects ({_COLUMNS}) SELECT * FROM unnest({_ARRAYS})"  # noqa: S608 (constants)
    " ON CONFLICT (resource, namespace, name) DO UPDATE"
    " SET uid = excluded.uid, store_revision = excluded.store_revision, body = excluded.body"
)
_LOG: Final = f"INSERT INTO events ({_COLUMNS}, type) SELECT * FROM unnest({_ARRAYS}, %(type)b::text[])"  # noqa: S608 (constants)
_REMOVE: Final = (
    "DELETE FROM objects USING unnest(%(resource)b::text[], %(namespace)b::text[], %(name)b::text[]) AS gone (resource, namespace, name)"
    " WHERE (objects.resource, objects.namespace, objects.name) = (gone.resource, gone.namespace, gone.name)"
)
_COMPACT: Final = "DELETE FROM events WHERE store_revision <= %(floor)s"

_log: Final = logging.getLogger(__name__)


def address_of(url: str) -> sa.URL:
    """Return a database URL for SQLAlchemy with the driver that is used here.

    Raises:
        Invalid: It is no `postgresql://` URL.
    """
    try:
        parsed = sa.make_url(url)
    except ArgumentError as error:
        raise Invalid("the database URL cannot be read; it looks like postgresql://user:password@host:5432/database") from error
    if parsed.drivername not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise Invalid(f"the database URL starts with {parsed.drivername}://, it must be postgresql://")
    return parsed.set(drivername="postgresql+psycopg")


class PostgresDatabase:
    """See `controller.store.sql.database.Database`; `open` is the way to one."""

    shared: Final = True

    def __init__(self, address: sa.URL) -> None:
        self._name: Final = f"database {address.database or ''} of {address.host or address.query.get('host') or 'the local server'}"
        self._engine: Final = sa.create_engine(address, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=CONNECT)
        self._connection: sa.Connection | None = None
        self.backend_pid = 0  # Of the server's process for this connection; it signs the notifications that are our own.

    @classmethod
    def open(cls, url: str, fleet: str = "") -> PostgresDatabase:
        """Connect, make the tables if there are none, and check that they are ours.

        Args:
            url: Of the database.
            fleet: The fleet and its keys, which everybody who uses the database must have; empty to ask nobody.

        Raises:
            FailedPrecondition: The database is another program's, was written by a newer rkfleet, or cannot hold our text.
            Invalid: The URL cannot be read.
            Unavailable: No server answers, or it refuses.
        """
        database = cls(address_of(url))
        try:
            with database._translated("be opened"):
                database._check(database._connect(), fleet)
        except FleetError:
            database.close()
            raise
        return database

    def jump(self) -> int:
        """Move the counter ahead after a restore (see `controller.store.sql.jump`), wake every controller, and return it.

        Raises:
            FailedPrecondition: There is no room above.
            Unavailable: The server does not answer, or refuses.
        """
        with self._translated("be written"):
            cursor = self._cursor()
            cursor.execute(_BEGIN)
            revision = jump(self._connect())
            cursor.execute(f"NOTIFY {CHANNEL}")
            cursor.execute("COMMIT")
            return revision

    def load(self) -> Contents:
        """See `Database.load`."""
        with self._translated("be read"):
            return self._contents(self._cursor())

    def begin(self, revision: int, *, unsure: bool) -> Tail:  # noqa: ARG002 (who holds the counter knows: a lost commit is over or was not)
        """See `Database.begin`."""
        with self._translated("be written"):
            cursor = self._cursor()
            cursor.execute(_BEGIN)
            cursor.nextset()
            counter = cursor.fetchone()
            return self._after(cursor, revision, counter)

    def tail(self, revision: int) -> Tail:
        """See `Database.tail`."""
        with self._translated("be read"):
            cursor = self._cursor()
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT revision, compacted_revision, leader_term FROM counter")
            cursor.nextset()
            tail = self._after(cursor, revision, cursor.fetchone())
            cursor.execute("COMMIT")
            return tail

    def commit(self, batch: Batch) -> None:
        """See `Database.commit`."""
        with self._translated("be written"):
            cursor = self._cursor()
            advance = {
                "revision": batch.revision, "floor": batch.floor, "term": batch.term, "base": batch.base, "base_term": batch.base_term,
            }  # fmt: skip
            if cursor.execute(_ADVANCE, advance).rowcount != 1:
                raise Unavailable(f"{self._name} was changed by another program since revision {batch.base} of term {batch.base_term}")
            with cursor.connection.pipeline():
                if batch.put:
                    cursor.execute(_PUT, _arrays([object_row(item) for item in batch.put]))
                if batch.removed:
                    cursor.execute(
                        _REMOVE,
                        _arrays([{"resource": ref.resource, "namespace": ref.namespace, "name": ref.name} for ref in batch.removed]),
                    )
                if batch.entries:
                    cursor.execute(_LOG, _arrays([event_row(entry) for entry in batch.entries]))
                    cursor.execute(f"NOTIFY {CHANNEL}")
                if batch.compact:
                    cursor.execute(_COMPACT, {"floor": batch.floor})
            cursor.execute("COMMIT")

    def leave(self) -> None:
        """See `Database.leave`."""
        with self._translated("be read"):
            self._cursor().execute("ROLLBACK")

    def close(self) -> None:
        """See `Database.close`."""
        if self._connection is not None:
            with contextlib.suppress(SQLAlchemyError, psycopg.Error):
                self._connection.close()
            self._connection = None
        self._engine.dispose()

    def _connect(self) -> sa.Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
            self.backend_pid = self._driver(self._connection).info.backend_pid
        return self._connection

    @staticmethod
    def _driver(connection: sa.Connection) -> psycopg.Connection[Any]:
        driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
        return driver

    def _cursor(self) -> psycopg.Cursor[Any]:
        """Return a cursor in no transaction but the turn."""
        return self._driver(self._connect()).cursor(row_factory=namedtuple_row)

    def _after(self, cursor: psycopg.Cursor[Any], revision: int, counter: Any) -> Tail:
        if counter.revision == revision:
            return Tail((), counter.compacted_revision, counter.leader_term)
        if counter.compacted_revision > revision or counter.revision < revision:
            return Tail((), counter.compacted_revision, counter.leader_term, self._contents(cursor))
        entries = [entry_of(row) for row in cursor.execute(_EVENTS, (revision,))]
        return Tail(entries, counter.compacted_revision, counter.leader_term)

    def _contents(self, cursor: psycopg.Cursor[Any]) -> Contents:
        """Read everything as of one moment: inside the caller's turn, or in a transaction of its own."""
        own = cursor.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        if own:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        counter: Any = cursor.execute("SELECT revision, compacted_revision, leader_term FROM counter WHERE id = 1").fetchone()
        items = list(integrity.checked_items(cursor.execute(f"SELECT {_COLUMNS} FROM objects"), self._name))  # noqa: S608 (constants)
        stored = {item.ref: item for item in items}
        entries = [entry_of(row, stored) for row in cursor.execute(_EVENTS, (0,))]
        if own:
            cursor.execute("COMMIT")
        integrity.checked_revision(counter.revision, integrity.newest_of(items, entries), self._name)
        return Contents(counter.revision, counter.compacted_revision, items, entries, counter.leader_term)

    def _check(self, connection: sa.Connection, fleet: str) -> None:
        cursor = self._cursor()
        settings: Any = cursor.execute("SELECT current_setting('server_encoding') AS e, current_setting('fsync') AS f").fetchone()
        encoding, fsync = settings
        if encoding != "UTF8":
            raise FailedPrecondition(f"{self._name} has the encoding {encoding}, it must be UTF8: make it with `createdb -E UTF8`")
        if fsync != "on":
            _log.warning("%s runs with fsync = %s: a crash of its machine loses what was acknowledged", self._name, fsync)
        cursor.execute(f"BEGIN; SELECT pg_advisory_xact_lock({START_LOCK})")
        schema.prepare(connection, self._announce, name=self._name)
        if fleet:
            cursor.execute("UPDATE counter SET fleet_id = %s WHERE fleet_id = ''", (fleet,))
        owner: Any = cursor.execute("SELECT fleet_id FROM counter WHERE id = 1").fetchone()
        cursor.execute("COMMIT")
        if fleet and owner.fleet_id != fleet:
            raise FailedPrecondition(
                f"{self._name} belongs to a fleet with other keys ({owner.fleet_id}; here {fleet}): give this controller the directory pki/"
                " of the controllers that use the database"
            )

    def _announce(self, version: int) -> None:
        _log.warning("migrating %s to schema version %d; a copy from before it is what pg_dump made of it", self._name, version)

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Turn the driver's errors into ours, and leave no transaction open after one."""
        try:
            with translated(self._name, what):
                yield
        except FleetError:
            self._undo()
            raise

    def _undo(self) -> None:
        """End what is open; a connection that cannot even do that is given up."""
        if self._connection is None:
            return
        try:
            self._driver(self._connection).execute("ROLLBACK")
        except (SQLAlchemyError, psycopg.Error):
            with contextlib.suppress(SQLAlchemyError, psycopg.Error):
                self._connection.invalidate()
            self._connection = None


def _arrays(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return rows as columns, so that one statement of one shape writes any number of them."""
    return {name: [row[name] for row in rows] for name in rows[0]}


@contextlib.contextmanager
def translated(name: str, what: str) -> Iterator[None]:
    """Turn errors of the driver into ours.

    Raises:
        FailedPrecondition: A row cannot be read.
        Unavailable: The server does not answer, or refuses.
    """
    try:
        yield
    except DBAPIError as error:
        raise _named(error.orig or error, name, what) from error
    except psycopg.Error as error:
        raise _named(error, name, what) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"{name} is damaged: an object cannot be read ({error}); restore a backup of it (pg_restore)") from error


def _named(error: BaseException, name: str, what: str) -> FleetError:
    reason = " ".join(str(error).split())
    match error:
        case psycopg.errors.LockNotAvailable():
            return Unavailable(f"{name} cannot {what}: another controller held it for more than {TURN_SECONDS_MAX} s", reason="Locked")
        case psycopg.errors.DiskFull():
            return Unavailable(f"{name} cannot {what}: its disk is full; free space there and it goes on by itself", reason="DiskFull")
        case psycopg.errors.InsufficientPrivilege() | psycopg.errors.InvalidPassword() | psycopg.errors.InvalidCatalogName():
            return FailedPrecondition(f"{name} cannot {what}: {reason}", reason=type(error).__name__)
        case _:
            return Unavailable(f"{name} cannot {what}: {reason} ({type(error).__name__})", reason=type(error).__name__)
