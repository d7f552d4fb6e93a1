"""What wakes which loop, where an event alone would mislead."""

from __future__ import annotations

from typing import Any

import msgspec

from controller.reconcilers import loops
from rkfleet.kinds import KINDS, ModelDeployment
from tests.support import planned


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
    keys = loops._garbage(garbage, KINDS)  # type: ignore[arg-type]
    assert list(keys(deployment("old"), None)) == [garbage.replica.ref]
    assert list(keys(deployment("old"), deployment("new"))) == [garbage.replica.ref]
    assert list(keys(deployment("old"), deployment("old"))) == []
