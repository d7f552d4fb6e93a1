"""Where controllers that share a database keep tokens: the same whole and changes as in `token_file.py`, as rows that all of them read.

In: changes, one token each. Out: the tokens, and what other controllers changed since. A change is decided while nobody else can make one:
`exclusive` holds a lock of the database, tells first what others changed, and commits what is appended inside it. So a join token cannot be
used at two controllers at once.

The rows stand in a schema of their own, `rkfleet_trust`: they are no declared state, and `pg_dump --exclude-schema=rkfleet_trust` leaves
them out of a backup, so that a restore does not bring used tokens back to life. Secrets are hashed before they come here.

Methods block for the database; one caller at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec
import psycopg
from psycopg.conninfo import make_conninfo

from controller.store.sql.postgres import CONNECT, address_of, translated
from rkfleet.errors import FailedPrecondition

__all__ = ["TokenTable"]

ROWS_MAX: Final = 1_000  # Changes at which all tokens are written anew, as lines in `token_file.py`.

_MAKE: Final = (
    "CREATE SCHEMA IF NOT EXISTS rkfleet_trust",
    "CREATE TABLE IF NOT EXISTS rkfleet_trust.tokens (number BIGINT PRIMARY KEY, whole BOOLEAN NOT NULL, body BYTEA NOT NULL)",
)
_LOCK: Final = "SELECT pg_advisory_xact_lock(1919641195)"  # Any number that nothing else here locks; "rktk".
_READ: Final = "SELECT number, whole, body FROM rkfleet_trust.tokens WHERE number > %s ORDER BY number"
_APPEND: Final = "INSERT INTO rkfleet_trust.tokens (number, whole, body) VALUES (%s, %s, %s)"
_FORGET: Final = "DELETE FROM rkfleet_trust.tokens WHERE number < %s"

Whole = TypeVar("Whole", bound=msgspec.Struct)
Change = TypeVar("Change", bound=msgspec.Struct)


class TokenTable(Generic[Whole, Change]):
    """The rows of one database.

    Args:
        url: Of the database.
        whole: Type of a row with all tokens.
        change: Type of a row with one.
        rows_max: Changes at which all tokens are written anew.
    """

    def __init__(self, url: str, whole: type[Whole], change: type[Change], rows_max: int = ROWS_MAX) -> None:
        self._conninfo: Final = make_conninfo(address_of(url).set(drivername="postgresql").render_as_string(hide_password=False), **CONNECT)
        self._whole: Final = whole
        self._change: Final = change
        self._rows_max: Final = rows_max
        self._connection: psycopg.Connection[Any] | None = None
        self._number = 0  # Newest row that was read or written.
        self._changes = 0  # Rows since the newest one with all tokens.

    def load(self) -> Sequence[Whole | Change]:
        """Make the table if there is none, and return what it holds.

        Raises:
            FailedPrecondition: A row cannot be read.
            Unavailable: The database does not answer.
        """
        with translated("the tokens of the database", "be opened"):
            connection = self._connect()
            with connection.transaction():
                connection.execute(_LOCK)
                for statement in _MAKE:
                    connection.execute(statement)
        with self.exclusive() as found:
            return found

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[Sequence[Whole | Change]]:
        """Let nobody else change tokens inside the block; what others changed before it is given, what is appended in it counts at its end.

        Raises:
            FailedPrecondition: A row cannot be read.
            Unavailable: The database does not answer, or nobody knows whether what was appended counts.
        """
        number, changes = self._number, self._changes
        try:
            with translated("the tokens of the database", "be changed"):
                connection = self._connect()
                with connection.transaction():
                    connection.execute(_LOCK)
                    yield self._read(connection)
        except BaseException:
            self._number, self._changes = number, changes  # What was appended is read again if it counts after all.
            raise

    @property
    def wants_whole(self) -> bool:
        """Whether the next change should be kept by `replace` instead of `append`."""
        return self._changes >= self._rows_max

    def append(self, change: Change) -> None:
        """Keep one change; only inside `exclusive`."""
        self._write(msgspec.json.encode(change), whole=False)
        self._changes += 1

    def replace(self, whole: Whole) -> None:
        """Keep all tokens and forget the changes; only inside `exclusive`."""
        self._write(msgspec.json.encode(whole), whole=True)
        self._connect().execute(_FORGET, (self._number,))
        self._changes = 0

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed or self._connection.broken:
            self._connection = psycopg.connect(self._conninfo, autocommit=True)
        return self._connection

    def _write(self, body: bytes, *, whole: bool) -> None:
        self._connect().execute(_APPEND, (self._number + 1, whole, body))
        self._number += 1

    def _read(self, connection: psycopg.Connection[Any]) -> list[Whole | Change]:
        found: list[Whole | Change] = []
        for number, whole, body in connection.execute(_READ, (self._number,)):
            try:
                found.append(msgspec.json.decode(body, type=self._whole if whole else self._change))
            except msgspec.MsgspecError as error:
                raise FailedPrecondition(f"row {number} of rkfleet_trust.tokens cannot be read: {error}") from error
            self._number = number
            self._changes = 0 if whole else self._changes + 1
        return found
