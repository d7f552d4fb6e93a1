"""What wakes which loop, where an event alone would mislead."""

from __future__ import annotations

from typing import Any

import msgspec

from controller.reconcilers import loops
from rkfleet.kinds import KINDS, ModelDeployment
from tests.support import planned


def test_the_assignment_loop_is_woken_by_a_boards_tuning_and_by_nothing_else_of_it() -> None:
    """A first look at a board is no change of it: it gets its assignment with its session."""
    before, after = planned.board("b"), planned.board("b", spec={"tuning": {"clocks": "Fixed"}})
    assert list(loops._of_tuning(before, after)) == [after.ref]
    assert list(loops._of_tuning(after, before)) == [after.ref]
    assert list(loops._of_tuning(None, after)) == []
    assert list(loops._of_tuning(after, None)) == []
    assert list(loops._of_tuning(before, planned.board("b", ready=False, spec={"unschedulable": True}))) == []


class Dependents:
    """A garbage loop that knows one replica of the deployment with uid `old`."""

    def __init__(self) -> None:
        self.replica = planned.replica("r-1-0", planned.deployment(), "r-1")

    def dependents(self, uid: str) -> list[Any]:
        return [self.replica] if uid == "old" else []


def deployment(uid: str) -> ModelDeployment:
    made = planned.deployment()
    return msgspec.structs.replace(made, metadata=msgspec.structs.replace(made.metadata, uid=uid))


def test_dependents_are_woken_when_their_owner_was_deleted_and_made_again_between_two_lists() -> None:
    """A cache that lists again sees one object become another under the same name, and no deletion."""
    garbage = Dependents()
    keys = loops.garbage_keys(garbage, KINDS)  # type: ignore[arg-type]
    assert list(keys(deployment("old"), None)) == [garbage.replica.ref]
    assert list(keys(deployment("old"), deployment("new"))) == [garbage.replica.ref]
    assert list(keys(deployment("old"), deployment("old"))) == []


def test_an_owner_is_woken_when_a_dependent_lets_go_of_it() -> None:
    """Deletion with orphaned dependents ends when the last of them has let go, not when everything is looked at again."""
    keys = loops.garbage_keys(Dependents(), KINDS)  # type: ignore[arg-type]
    owned = Dependents().replica
    free = msgspec.structs.replace(owned, metadata=msgspec.structs.replace(owned.metadata, owner_references=()))
    (owner,) = owned.metadata.owner_references
    assert [ref.name for ref in keys(owned, free)] == [owner.name]
    assert list(keys(free, free)) == []
