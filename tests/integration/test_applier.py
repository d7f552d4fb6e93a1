"""The applier over the real store: what it answers when the world is not as the plan saw it."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from controller.planning.actions import Action, Activate, CreateReplica, Delete, Record, WriteStatus
from controller.reconcilers.act import Applier
from controller.store.sql.store import SqlStore
from rkfleet.clock import SystemClock
from rkfleet.errors import Conflict
from rkfleet.kinds import KINDS, Replica
from rkfleet.kinds.replica import ReplicaSpec
from rkfleet.meta import OwnerReference, Ref

GONE = Ref(Replica.resource.name, "default", "gone")


class Quiet:
    """A recorder that nobody reads."""

    def record(self, *_about: object, **_what: object) -> None:
        return


async def apply(data_dir: Path, action: Action) -> None:
    async with SqlStore.open(data_dir / "store.db", KINDS) as store:
        await Applier(store, SystemClock(), lambda: "uid", Quiet()).apply((action,))


@pytest.mark.parametrize(
    "action",
    [
        Activate(ref=GONE, uid="u", resource_version="1", activation="Serving"),
        WriteStatus(ref=GONE, uid="u", owner="placement", fields={}),
    ],
)
def test_an_object_that_was_deleted_since_the_plan_is_a_conflict_like_one_that_changed(tmp_path: Path, action: Action) -> None:
    """Planned again it is seen to be gone; nothing went wrong that anybody should be warned of."""
    with pytest.raises(Conflict, match='"gone" not found'):
        asyncio.run(apply(tmp_path, action))


def test_deleting_what_is_gone_is_done(tmp_path: Path) -> None:
    asyncio.run(apply(tmp_path, Delete(ref=GONE, uid="u", resource_version="1")))


class Noting:
    """A recorder that keeps the reasons, in order."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def record(self, _ref: Ref, _uid: str, _type: str, reason: str, _message: str, *, kind: str, api_version: str) -> None:
        self.reasons.append(reason)


def test_creations_with_something_to_tell_share_their_commits(tmp_path: Path) -> None:
    """A Record between two creations does not make them wait for each other, and tells of its own creation only."""

    def create(slot: int) -> CreateReplica:
        owner = OwnerReference(api_version="v1", kind="ModelDeployment", name="d", uid="u")
        spec = ReplicaSpec(deployment_name="d", revision_name="d-1", slot=str(slot))
        return CreateReplica(ref=Ref(Replica.resource.name, "default", f"d-1-{slot}"), owner=owner, labels={}, spec=spec)

    def told(slot: int) -> Record:
        return Record(ref=GONE, uid="u", kind="Replica", api_version="v1", type="Normal", reason=f"Created{slot}", message="")

    async def scenario() -> None:
        events, ids = Noting(), itertools.count()
        async with SqlStore.open(tmp_path / "store.db", KINDS) as store:
            applier = Applier(store, SystemClock(), lambda: f"uid-{next(ids)}", events)
            await applier.apply((create(7),))
            commits = store.commits
            with pytest.raises(Conflict, match="exists already"):
                await applier.apply([action for slot in range(40) for action in (create(slot), told(slot))])
            assert len((await store.list(Replica.resource.name)).items) == 40
            assert store.commits - commits <= 10
        assert sorted(events.reasons) == sorted(f"Created{slot}" for slot in range(40) if slot != 7)

    asyncio.run(scenario())
