"""Two controllers on one PostgreSQL database: one leads, both serve, and the fleet goes on when the leader dies."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rkfleet.errors import FleetError
from rkfleet.kinds import Board, ModelDeployment, Namespace
from rkfleet.meta import Ref
from tests.support.standby import Controller, Fleet, ready_boards, standby_fleet
from tests.support.up import eventually

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

READY = {"rk3588-1": ("True", "SessionOpen"), "rk3588-2": ("True", "SessionOpen")}
DEPLOYMENTS = ModelDeployment.resource.name


def test_a_standby_takes_over_sessions_and_loops(tmp_path: Path) -> None:
    async def story() -> None:
        async with standby_fleet(tmp_path) as fleet:
            leader = await fleet.leader()
            standby = fleet.other(leader)
            await _all_ready(leader)
            assert await ready_boards(standby) == READY
            await _the_loops_run(standby, "first")
            async with _followed(standby) as seen:
                await _the_leader_dies(fleet, leader, standby)
                await _the_old_one_comes_back_and_stands_by(fleet, leader, standby)
                names = {name for name, _ in await _namespaces(standby)}
                await eventually(lambda: {name for _, name in seen} >= names, lambda: f"{names} is not all in {seen}")
            assert len(seen) == len(set(seen)), "the watch of the standby told something twice"

    asyncio.run(story())


@pytest.mark.soak  # Boards find out after half a minute of silence that nobody answers any more.
def test_a_leader_that_stands_still_is_replaced(tmp_path: Path) -> None:
    async def story() -> None:
        async with standby_fleet(tmp_path) as fleet:
            leader = await fleet.leader()
            await _all_ready(leader)
            await _the_leader_stands_still(fleet, leader, fleet.other(leader))

    asyncio.run(story())


async def _all_ready(controller: Controller) -> None:
    async def ready() -> bool:
        return await ready_boards(controller) == READY

    await eventually(ready, controller.last_words, 90.0)


async def _the_loops_run(controller: Controller, name: str) -> None:
    """A deployment that is written here is judged by the loops of the leader."""
    spec = {"replicas": 1, "template": {"model": "absent"}}
    async with controller.client() as api:
        await api.create(Ref(DEPLOYMENTS, "default", name), {"metadata": {"name": name}, "spec": spec})

        async def judged() -> bool:
            conditions = (await api.get(Ref(DEPLOYMENTS, "default", name))).get("status", {}).get("conditions", ())
            return any("absent" in one.get("message", "") for one in conditions)

        await eventually(judged, controller.last_words)


async def _the_leader_dies(fleet: Fleet, leader: Controller, standby: Controller) -> None:
    leader.signal(signal.SIGKILL)
    await leader.ended()
    await _write(standby, "while-nobody-leads")
    assert await fleet.leader() is standby
    await _all_ready(standby)
    await _the_loops_run(standby, "second")


async def _the_old_one_comes_back_and_stands_by(fleet: Fleet, old: Controller, leader: Controller) -> None:
    await old.start()
    assert await fleet.leader() is leader
    await _write(old, "through-the-old-one")
    assert {name for name, _ in await _namespaces(leader)} >= {"while-nobody-leads", "through-the-old-one"}


async def _the_leader_stands_still(fleet: Fleet, leader: Controller, other: Controller) -> None:
    """Stopped, replaced, and continued: it finds out, and what it still meant to write is not there."""
    leader.signal(signal.SIGSTOP)
    try:
        await eventually(other.leads, other.last_words, 60.0)
        await _all_ready(other)
    finally:
        leader.signal(signal.SIGCONT)
    assert await fleet.leader() is other
    await _all_ready(leader)
    async with other.client() as api:
        sessions = {board["metadata"]["name"]: board["status"]["session"] for board in (await api.list(Board.resource.name)).items}
    assert len({one["controller"] for one in sessions.values()}) == 1


async def _write(controller: Controller, name: str) -> None:
    async with controller.client() as api:
        await api.create(Ref(Namespace.resource.name, "", name), {"metadata": {"name": name}})


async def _namespaces(controller: Controller) -> list[tuple[str, Any]]:
    async with controller.client() as api:
        return [(one["metadata"]["name"], one) for one in (await api.list(Namespace.resource.name)).items]


@contextlib.asynccontextmanager
async def _followed(controller: Controller) -> AsyncIterator[list[tuple[str, str]]]:
    """Note every change of namespaces that a watch of this controller tells, by version and name, from the list on."""
    seen: list[tuple[str, str]] = []

    async def follow() -> None:
        async with controller.client() as api, contextlib.aclosing(api.follow(Namespace.resource.name)) as changes:
            async for change in changes:
                seen.extend((one["metadata"]["resourceVersion"], one["metadata"]["name"]) for one in change.items)

    task = asyncio.create_task(follow())
    try:
        yield seen
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, FleetError):
            await task
