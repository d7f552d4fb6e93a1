"""The seam to the database: what the writer asks of SQLite and of PostgreSQL.

One thread uses a `Database`. It writes in turns: `begin` opens a turn, in which nobody else writes, and tells what others wrote before it;
`commit` makes the rows of one batch durable and ends the turn, `leave` ends it without. On SQLite the process has the file for itself, so
nobody else ever wrote and a turn costs nothing. On PostgreSQL several controllers share the tables: a turn is a transaction that holds the
one row of `counter`, so that revisions are taken, and become visible, in order.

Errors of the drivers end in the implementations: they become Unavailable with a sentence for the operator, or FailedPrecondition where the
database must not be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from controller.store.base import Item
from controller.store.broadcaster import Entry
from rkfleet.meta import Ref

__all__ = ["Batch", "Contents", "Database", "Tail"]


class Contents(msgspec.Struct, frozen=True):
    """Everything the database holds.

    Attributes:
        revision: Newest revision.
        floor: Events up to here are compacted.
        items: All objects.
        entries: The event log after `floor`, in order.
        term: Term of the newest leader; 0 before the first.
    """

    revision: int
    floor: int
    items: Sequence[Item]
    entries: Sequence[Entry]
    term: int = 0


class Tail(msgspec.Struct, frozen=True):
    """What the database holds beyond what the asker knows.

    Attributes:
        entries: What was committed after the revision that was asked for, in order.
        floor: Events up to here are compacted.
        term: Term of the newest leader.
        contents: Everything, where some of those entries are compacted already; `entries` is empty then.
    """

    entries: Sequence[Entry]
    floor: int
    term: int
    contents: Contents | None = None


class Batch(msgspec.Struct, frozen=True):
    """Rows of one transaction.

    Attributes:
        base: Revision that the batch was planned on; the commit is refused if the database has another.
        revision: Newest revision after it.
        floor: Events up to here are compacted after it.
        compact: Whether `floor` moved.
        put: Objects that are there after it and changed.
        removed: Names of objects that are not there after it.
        entries: Events of it, in order.
        base_term: Term of the leader that it was planned in; the commit is refused if the database has another.
        term: Term of the leader after it.
    """

    base: int
    revision: int
    floor: int
    compact: bool
    put: Sequence[Item]
    removed: Sequence[Ref]
    entries: Sequence[Entry]
    base_term: int = 0
    term: int = 0


class Database(Protocol):
    """An open database; see the module."""

    @property
    def shared(self) -> bool:
        """Whether other processes write to it."""
        ...

    def load(self) -> Contents:
        """Read everything.

        Raises:
            FailedPrecondition: The contents contradict each other.
            Unavailable: It cannot be read.
        """
        ...

    def begin(self, revision: int, *, unsure: bool) -> Tail:
        """Begin a turn and return what was committed after `revision`.

        Args:
            revision: Newest revision that the caller knows.
            unsure: The caller's last commit failed, and nobody knows whether it is there; what this returns of it is durable.

        Raises:
            Unavailable: There is no turn to be had.
        """
        ...

    def tail(self, revision: int) -> Tail:
        """Return what was committed after `revision`, outside of a turn.

        Raises:
            Unavailable: It cannot be read.
        """
        ...

    def commit(self, batch: Batch) -> None:
        """Write the rows of a batch and end the turn; they are durable when this returns.

        Raises:
            Unavailable: They were not written, or nobody knows: the next `begin` tells.
        """
        ...

    def leave(self) -> None:
        """End a turn that wrote nothing."""
        ...

    def close(self) -> None:
        """Close the database."""
        ...
