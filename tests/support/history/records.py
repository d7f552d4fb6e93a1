"""What clients of a store did and saw: the words in which a history is written down.

Every write of a history brings a value of its own, so whatever anybody sees names the write that made it. A create or an update sets the
value and takes the note away, a merge patch sets the note and keeps the value; both are JSON of the object (see `client.py`). Times are
seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

__all__ = ["Connection", "Delivery", "History", "Operation", "Outcome", "Seen", "Verb", "group_of", "selects"]

Verb = Literal["create", "update", "patch", "delete", "get", "list"]
Outcome = Literal["ok", "absent", "exists", "conflict", "expired", "refused", "unknown"]

WRITES = ("create", "update", "patch", "delete")


class Seen(msgspec.Struct, frozen=True):
    """One object as somebody saw it.

    Attributes:
        revision: Its resource version.
        value: Of the create or update that made it.
        note: Of the patch that came last; empty if none came after the value.
    """

    name: str
    uid: str
    revision: int
    value: str
    note: str = ""

    @property
    def author(self) -> str:
        """Value of the write that made this state."""
        return self.note or self.value


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One request and what came of it.

    Attributes:
        name: Of the object; empty for lists.
        value: What it writes; empty for deletions and reads.
        expected: Revision that it expects of the object; 0 for any.
        uid: Identity that a deletion expects; empty for any. After success, that of the object that was deleted.
        invoked: Not done before.
        returned: Done before, unless the outcome is unknown.
        outcome: `ok`; a definite refusal; or unknown, which may have been done, and at any later time.
        seen: What the answer showed.
        pages: Revision of each page of a list.
        selection: Of a list, see `selects`.
    """

    client: str
    verb: Verb
    name: str = ""
    value: str = ""
    expected: int = 0
    uid: str = ""
    invoked: float
    returned: float = math.inf
    outcome: Outcome = "unknown"
    seen: tuple[Seen, ...] = ()
    pages: tuple[int, ...] = ()
    selection: str = ""

    @property
    def writes(self) -> bool:
        """Whether it is meant to change something."""
        return self.verb in WRITES


class Delivery(msgspec.Struct, frozen=True):
    """One line of a watch; a bookmark shows no object."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    revision: int
    at: float
    seen: Seen | None = None


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """One watch from its start to its end.

    Attributes:
        watcher: Who watches; it makes one connection after the other.
        start: Revision that it asked to see everything after.
        last: The watcher wanted nothing more: it was told to stop when it had caught up.
    """

    watcher: str
    start: int
    deliveries: tuple[Delivery, ...]
    selection: str = ""
    last: bool = False


class History(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was recorded.

    Attributes:
        base: Revision before the first operation, when there was no object.
        operations: In any order.
        connections: Those of one watcher in order.
    """

    base: int
    operations: tuple[Operation, ...]
    connections: tuple[Connection, ...]


def group_of(value: str) -> str:
    """Return the label that goes with a value."""
    return "odd" if int(value[1:]) % 2 else "even"


def selects(selection: str, name: str, value: str) -> bool:
    """Whether a selection (`""`, `name=x`, `group=odd`) chooses an object of this name and value."""
    what, _, wanted = selection.partition("=")
    match what:
        case "name":
            return name == wanted
        case "group":
            return group_of(value) == wanted
        case _:
            return True
