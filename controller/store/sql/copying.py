"""A copy of a SQLite file that is in use: whole, of one moment, durable, and proven to be a store.

In: the file of a store that a controller may be writing, even this process. Out: a file beside or elsewhere that stands by itself (it needs
no write-ahead log). Called before a migration and by backups. `examined` proves a copy: every page,
every object against its row, and the counter; a file that nobody could restore is found on the day it is made.

The copy is read inside one transaction, so it is of one moment however long it takes. In write-ahead mode a reader keeps no writer waiting;
it only keeps the log from being emptied, which then grows by what is written meanwhile. The copy goes in steps, so that a thread that makes
it gives the interpreter back to the event loop. Nothing here opens a store's file but SQLite: closing any other descriptor of it would
drop the locks of the whole process. Source: https://www.sqlite.org/backup.html, https://www.sqlite.org/howtocorrupt.html
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from controller.store.sql import integrity
from rkfleet.disk import move_durably
from rkfleet.errors import FailedPrecondition, FleetError, Unavailable

__all__ = ["Figures", "copy_store", "examined", "names_in", "opened", "refused", "revision_of"]

STEP_PAGES: Final = 256  # 1 MiB at SQLite's page size: a few milliseconds.
BUSY_SECONDS_MAX: Final = 5.0  # Only a shell that holds the file exclusively keeps a reader waiting.


def copy_store(source: Path, target: Path) -> None:
    """Make `target` (mode 0600) a copy of the store's file `source`, replacing what is there; durable when this returns.

    Raises:
        FailedPrecondition: `source` is not there, damaged, or no database.
        Unavailable: The disk is full or refuses, or another program holds the file.
    """
    scratch = target.with_name(f".{target.name}.partial")
    try:
        with refused(source, "copied"):
            descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                with opened(source) as reader, contextlib.closing(sqlite3.connect(scratch, isolation_level=None)) as writer:
                    writer.execute("PRAGMA synchronous = OFF")  # It is flushed once, below.
                    reader.execute("BEGIN")
                    reader.execute("SELECT count(*) FROM sqlite_master").fetchone()  # The moment that is copied.
                    reader.backup(writer, pages=STEP_PAGES)
                    writer.execute("PRAGMA journal_mode = DELETE").fetchone()
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            move_durably(scratch, target)
    finally:
        with contextlib.suppress(OSError):  # What is wrong there was told already.
            scratch.unlink(missing_ok=True)


class Figures(NamedTuple):
    """What a store's file holds; `fleet` is empty where it belongs to none yet."""

    schema_version: int
    revision: int
    objects: int
    fleet: str


def examined(path: Path) -> Figures:
    """Prove that a file that nobody writes is a whole store, and return what it holds.

    Raises:
        FailedPrecondition: It is damaged or no store; objects that are wrong are named.
        Unavailable: The disk refuses.
    """
    with refused(path, "examined"), opened(path) as connection:
        (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise FailedPrecondition(f"{path} is damaged ({found}); {integrity.RESTORE}")
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'counter'").fetchone():
            raise FailedPrecondition(f"{path} is no store of rkfleet: it has no table counter")
        cursor = connection.execute("SELECT * FROM counter WHERE id = 1")
        counter = dict(zip((column[0] for column in cursor.description), cursor.fetchone(), strict=True))
        rows = map(_Row._make, connection.execute(f"SELECT {', '.join(_Row._fields)} FROM objects"))  # noqa: S608 (constants)
        newest, objects = 0, 0
        for item in integrity.checked_items(rows, str(path)):
            newest, objects = max(newest, int(item.resource_version)), objects + 1
        (logged,) = connection.execute("SELECT coalesce(max(store_revision), 0) FROM events").fetchone()
        integrity.checked_revision(counter["revision"], max(newest, logged), str(path))
        return Figures(counter["schema_version"], counter["revision"], objects, counter.get("fleet_id", ""))


def revision_of(path: Path) -> int | None:
    """Return the newest revision that a store's file holds, without changing it; None where that cannot be read."""
    found = _read_only(path, "SELECT revision FROM counter WHERE id = 1")
    return found[0][0] if found else None


def names_in(path: Path, resource: str) -> frozenset[str] | None:
    """Return the names of the cluster-scoped objects of a resource in a store's file; None where that cannot be read."""
    found = _read_only(path, "SELECT name FROM objects WHERE resource = ?", resource)
    return None if found is None else frozenset(row[0] for row in found)


def _read_only(path: Path, query: str, *values: str) -> list[tuple[Any, ...]] | None:
    if not path.exists():
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS_MAX)) as connection:
            return connection.execute(query, values).fetchall()
    except sqlite3.Error:
        return None


class _Row(NamedTuple):
    resource: str
    namespace: str
    name: str
    uid: str
    store_revision: int
    body: bytes


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a file that is there, for plain statements outside of any transaction."""
    if not path.exists():
        raise FailedPrecondition(
            f"{path} is not there; name the --data-dir of a controller that has run; or give --files-only, if its store is in PostgreSQL"
        )
    with contextlib.closing(sqlite3.connect(path, timeout=BUSY_SECONDS_MAX, isolation_level=None)) as connection:
        yield connection


@contextlib.contextmanager
def refused(path: Path, what: str) -> Iterator[None]:
    """Turn errors of the driver and of the disk into ours.

    Raises:
        FailedPrecondition: The file is damaged or no database.
        Unavailable: The disk is full or refuses, or another program holds the file.
    """
    try:
        yield
    except FleetError:
        raise
    except sqlite3.DatabaseError as error:
        reason = getattr(error, "sqlite_errorname", type(error).__name__)
        if reason.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            raise FailedPrecondition(f"{path} cannot be {what}: it is damaged or no database ({error})", reason=reason) from error
        raise Unavailable(f"{path} cannot be {what}: {error} ({reason})", reason=reason) from error
    except OSError as error:
        raise Unavailable(f"{path} cannot be {what}: {error.strerror or error}: {error.filename or ''}") from error
