"""Who may hold a board's session, and whether somebody else has tried to: pure.

In: a Board as the store has it now, the session that is held, the last attempt of somebody else. Out: why the session must end, and the
writes that make the condition `IdentityConflict` say what is known. Called by `reconcilers/identity.py`.

A Board that was deleted takes its key with it: whoever holds the session of a Board that is not there, or is another one, or is bound to
another key by now, must leave. Nothing is kept about deleted Boards. A certificate is believed only for the key that a Board names, so one
without a Board is good for nothing, also after a restart of the controller and also when a Board of that name is made again.
"""

from __future__ import annotations

from typing import Final

from controller.planning.actions import Plan, Value, WriteStatus
from rkfleet import conditions
from rkfleet.conditions import condition
from rkfleet.kinds.board import Board

__all__ = ["CONFLICT_SECONDS", "Attempt", "Held", "deleted", "join_again", "plan_conflict", "why_revoked"]

CONFLICT_SECONDS: Final = 1200.0  # A machine that was refused comes again every quarter of an hour at the latest, by its own back-off.


class Held(Value, frozen=True, kw_only=True):
    """A session that is held: of which Board, and with which key (hex SHA-256)."""

    uid: str
    key_sha256: str


class Attempt(Value, frozen=True, kw_only=True):
    """Somebody else's use of a board's certificate, which was refused.

    Attributes:
        reason: OtherMachine or OtherKey.
        message: Sentence and command, for people.
        seconds: Since the last time.
    """

    reason: str
    message: str
    seconds: float


def join_again(board: str) -> str:
    """Return what somebody does about a board whose key is revoked."""
    return (
        f"join again: remove the directory identity/ from its data directory, and run on it what this prints:"
        f" rkfleet join-token create --name {board}"
    )


def deleted(board: str) -> str:
    """Return what a board is told whose Board is gone."""
    return f"board {board} was deleted and its key is revoked; it goes on serving its own network; {join_again(board)}"


def why_revoked(name: str, held: Held, uid: str | None, key_sha256: str) -> str:
    """Return why the holder of a session must leave; empty if it may stay.

    Args:
        name: Of the Board.
        held: The session.
        uid: Of the Board of that name in the store; None if there is none.
        key_sha256: What that Board is bound to.
    """
    if uid is None:
        return deleted(name)
    if uid != held.uid:
        return f"board {name} was deleted and made again, and the key of the first one is revoked; {join_again(name)}"
    if key_sha256 != held.key_sha256:
        return f"board {name} is bound to another key by now, and this one is revoked; {join_again(name)}"
    return ""


def plan_conflict(board: Board, attempt: Attempt | None, running_seconds: float) -> Plan:
    """Return the write that makes `IdentityConflict` say what is known.

    Args:
        board: As the store has it.
        attempt: The last one that this process has refused; None for none.
        running_seconds: How long this process has been listening: what was refused before it started may be tried again yet.
    """
    before = conditions.find(board.status.conditions, conditions.IDENTITY_CONFLICT)
    if attempt is not None and attempt.seconds < CONFLICT_SECONDS:
        after = condition(conditions.IDENTITY_CONFLICT, "True", attempt.reason, attempt.message)
        again = CONFLICT_SECONDS - attempt.seconds
    elif before is None or before.status != "True":
        return Plan()
    elif attempt is None and running_seconds < CONFLICT_SECONDS:
        return Plan(again_after_seconds=CONFLICT_SECONDS - running_seconds)
    else:
        quiet = f"Nobody else has used the certificate of board {board.metadata.name} for {CONFLICT_SECONDS / 60:.0f} minutes."
        after, again = condition(conditions.IDENTITY_CONFLICT, "False", conditions.SOLE_HOLDER, quiet), None
    if before is not None and (before.status, before.reason, before.message) == (after.status, after.reason, after.message):
        return Plan(again_after_seconds=again)
    write = WriteStatus(ref=board.ref, uid=board.metadata.uid, owner="identity", conditions=(after,))
    return Plan(actions=(write,), again_after_seconds=again)
