"""The applier over the real store: what it answers when the world is not as the plan saw it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from controller.planning.actions import Action, Activate, Delete, WriteStatus
from controller.reconcilers.act import Applier
from controller.store.sql.store import SqlStore
from rkfleet.clock import SystemClock
from rkfleet.errors import Conflict
from rkfleet.kinds import KINDS, Replica
from rkfleet.meta import Ref

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
