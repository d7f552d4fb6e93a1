"""A copy of a SQLite file that is in use: whole, of one moment, and durable.

In: the file of a store that a controller may be writing, even this process. Out: a file beside or elsewhere that stands by itself (it needs
no write-ahead log). Called before a migration and by backups.

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
from typing import Final

from rkfleet.disk import move_durably
from rkfleet.errors import FailedPrecondition, FleetError, Unavailable

__all__ = ["copy_store", "opened", "refused"]

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


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a file that is there, for plain statements outside of any transaction."""
    if not path.exists():
        raise FailedPrecondition(f"{path} is not there; name the --data-dir of a controller that has run")
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
