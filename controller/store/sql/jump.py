"""The jump of the counter after a restore: no revision is taken a second time, and nobody goes on from what he knew.

In: the tables as an older moment left them. Out: the same objects, with a counter far ahead and the whole log compacted below it. Between
that moment and the restore others were given revisions that the tables do not know. Taken again they would name other states: a client
would write over what it never saw, a watch would leave out what happened. After the jump every watch and every continue token from before
is too old (410 Gone, reason Expired), and its owner lists again. Objects keep their resource versions, because they are what they were.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from controller.store.sql import tables
from rkfleet.errors import FailedPrecondition

__all__ = ["JUMP_REVISIONS", "REVISION_MAX", "jump"]

JUMP_REVISIONS: Final = 1_000_000_000
"""How far the counter jumps: eleven days of a thousand writes a second, three years of ten. A backup is rarely a month old, and the store
that is replaced says how far it came, where it can be read. Nine million restores fit into what JSON's readers keep exactly."""

REVISION_MAX: Final = 2**53 - 1  # Numbers above are not exact in every JSON reader; etcd's are 63 bits, but nobody reads ours as numbers.

_counter: Final = tables.counter.c


def jump(connection: sa.Connection, at_least: int = 0) -> int:
    """Move the counter ahead in the caller's transaction, compact below it, and return it.

    Args:
        connection: Inside a transaction; the tables may be of an earlier schema version.
        at_least: Newest revision that is known to have been given.

    Raises:
        FailedPrecondition: There is no room above.
    """
    revision = connection.execute(sa.select(_counter.revision).where(_counter.id == 1)).scalar_one()
    ahead: int = max(revision, at_least) + JUMP_REVISIONS
    if ahead > REVISION_MAX:
        raise FailedPrecondition(f"the counter is at {revision} and would jump to {ahead}, at most {REVISION_MAX} is possible")
    connection.execute(sa.update(tables.counter).values(revision=ahead, compacted_revision=ahead))
    connection.execute(sa.delete(tables.events))
    return ahead
