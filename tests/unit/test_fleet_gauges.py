"""The fleet as gauges: what a scrape says about boards and deployments, over real caches."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from controller.reconcilers.fleet_gauges import follow_fleet
from controller.reconcilers.views import make_views
from controller.store.base import Store
from controller.store.sql.store import SqlStore
from rkfleet.clock import SystemClock
from rkfleet.kinds import KINDS, ModelDeployment
from rkfleet.meta import Ref
from rkfleet.metrics import Metrics
from tests.support.objects import deployment
from tests.support.stores import NOW, board, board_ref


def said(type: str, status: str, reason: str) -> dict[str, str]:
    return {"type": type, "status": status, "reason": reason, "message": ""}


async def add_board(store: Store, name: str, *, pressure: str = "") -> None:
    """Make a simulated RK3588 in session, whose agent reports this reason of DiskPressure if there is one."""
    await store.create(board_ref(name), board(name))
    facts = {"soc": "rk3588", "simulated": True}
    reported = [said("DiskPressure", "True", pressure)] if pressure else []
    await store.patch_status(board_ref(name), f"uid-{name}", "agent", facts, reported, now=NOW)
    await store.patch_status(board_ref(name), f"uid-{name}", "health", {}, [said("Ready", "True", "SessionOpen")], now=NOW)


@asynccontextmanager
async def gauges(path: Path) -> AsyncIterator[tuple[Store, Callable[[], set[str]]]]:
    """Give a store, and what a scrape says about the fleet that is in it."""
    metrics = Metrics("controller")
    async with SqlStore.open(path / "store.db", KINDS) as store, asyncio.TaskGroup() as tasks:
        views = make_views(store, clock=SystemClock(), random=random.Random(1))
        follow_fleet(views, metrics)

        def lines() -> set[str]:
            return {line for line in metrics.text().decode().splitlines() if line.startswith(("rkfleet_boards{", "rkfleet_deployment_"))}

        assert lines() == set()
        running = [tasks.create_task(cache.run()) for cache in views]
        yield store, lines
        for one in running:
            one.cancel()


async def until(lines: Callable[[], set[str]], expected: set[str]) -> None:
    clock = SystemClock()
    try:
        async with asyncio.timeout(10):
            while lines() != expected:
                await clock.sleep(0.001)
    except TimeoutError:
        assert lines() == expected


def test_boards_are_counted_by_condition_chip_and_whether_they_are_simulated(tmp_path: Path) -> None:
    """A board counts once for each condition; one that said nothing yet counts as Ready Unknown; a deleted one is gone."""

    async def scenario() -> None:
        async with gauges(tmp_path) as (store, lines):
            await add_board(store, "a")
            await add_board(store, "b", pressure="DiskFull")
            await store.create(board_ref("c"), board("c"))
            labels = 'condition="Ready",reason="SessionOpen",simulated="true",soc="rk3588",status="True"'
            disk = 'rkfleet_boards{condition="DiskPressure",reason="DiskFull",simulated="true",soc="rk3588",status="True"} 1.0'
            new = 'rkfleet_boards{condition="Ready",reason="",simulated="false",soc="",status="Unknown"} 1.0'
            await until(lines, {f"rkfleet_boards{{{labels}}} 2.0", disk, new})
            await store.delete(board_ref("b"), now=NOW)
            await store.delete(board_ref("c"), now=NOW)
            await until(lines, {f"rkfleet_boards{{{labels}}} 1.0"})

    asyncio.run(scenario())


def test_a_deployment_says_what_it_wants_has_and_is(tmp_path: Path) -> None:
    """Its samples go with it."""

    async def scenario() -> None:
        async with gauges(tmp_path) as (store, lines):
            ref = Ref(ModelDeployment.resource.name, "default", "qwen")
            body = deployment(replicas=3)
            body["metadata"] |= {"uid": "uid-qwen", "creationTimestamp": "2026-01-01T00:00:00Z"}
            await store.create(ref, body)
            counts = {"availableReplicas": 1, "updatedReplicas": 2}
            await store.patch_status(ref, "uid-qwen", "deployment", counts, [said("Ready", "False", "RollingOut")], now=NOW)
            labels = 'deployment="qwen",namespace="default"'
            condition = 'condition="Ready",deployment="qwen",namespace="default",reason="RollingOut",status="False"'
            await until(
                lines,
                {
                    f"rkfleet_deployment_replicas{{{labels}}} 3.0",
                    f"rkfleet_deployment_replicas_available{{{labels}}} 1.0",
                    f"rkfleet_deployment_replicas_updated{{{labels}}} 2.0",
                    f"rkfleet_deployment_condition{{{condition}}} 1.0",
                },
            )
            await store.delete(ref, now=NOW)
            await until(lines, set())

    asyncio.run(scenario())
