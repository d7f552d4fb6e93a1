"""A gateway's process: the shipped routing (`gateway/endpoints.py`) fed from watches that lag, and clients that ask whom it names."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.endpoints import Endpoints
from gateway.snapshot import Snapshot
from rkfleet.client import Followed
from rkfleet.errors import Expired, FleetError
from rkfleet.meta import ResourceName
from rkfleet.metrics import Metrics
from tests.support.scenario.files import settle
from tests.support.scenario.lag import LaggedStore
from tests.support.scenario.virtual import Process

if TYPE_CHECKING:
    from tests.support.scenario.fleet import Fleet

REQUEST_SECONDS = (0.1, 8.0)
PAUSE_SECONDS = (0.05, 3.0)


class Gateway:
    """The process; its clients ask now and then as long as `busy`."""

    def __init__(self, fleet: Fleet, process: Process) -> None:
        self._fleet = fleet
        self.process = process
        self._chance = process.chance
        self.busy = True
        self.asked = 0
        self.refused = 0
        path = fleet.directory / "routing.json"
        self.endpoints = Endpoints(_Client(fleet), fleet.fleet_id, Snapshot(path), fleet.clock, Metrics("gateway"))  # type: ignore[arg-type]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.endpoints.run())
            tasks.create_task(self._ask())

    async def _ask(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                await settle(self._chance.uniform(*PAUSE_SECONDS))
                if self.busy:
                    for served in self.endpoints.table.models.values():
                        if served.targets:
                            tasks.create_task(self._request(self._chance.choice(served.targets)))

    async def _request(self, target: Any) -> None:
        self._fleet.promises.routed(target)
        board = self._fleet.boards.get(target.board)
        if board is None or not board.running:
            return
        assert board.agent is not None
        agent, uid = board.agent, target.uid
        if not agent.answers(uid):
            self.refused += 1
            return
        self.asked += 1
        agent.traffic.running[uid] = agent.traffic.running.get(uid, 0) + 1
        await settle(self._chance.uniform(*REQUEST_SECONDS))
        agent.traffic.running[uid] -= 1
        agent.traffic.done[uid] = 1


class _Client:
    """What `Endpoints` uses of the API client: `follow`, over whichever controller is up."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.cluster = None

    async def follow(self, resource: ResourceName) -> AsyncIterator[Followed]:
        while True:
            controller = self._fleet.controller
            if controller is None or not controller.process.alive:
                await settle(0.5)
                continue
            store = LaggedStore(
                controller.store, self._fleet.loop, f"{self._fleet.seed} gateway {controller.process.name}", self._fleet.lag
            )
            try:
                page = await controller.store.list(resource)
                yield Followed("REPLACED", tuple(msgspec.json.decode(item.body) for item in page.items))
                changes = aiter(await store.watch(resource, resource_version=page.resource_version))
                while (change := await _or_death(anext(changes), controller.process)) is not None:
                    if change.item is not None:
                        yield Followed(change.type, (msgspec.json.decode(change.item.body),))
            except Expired:
                continue
            except FleetError:
                await settle(0.5)


async def _or_death(change: Any, process: Process) -> Any:
    """Await the next change, or return None when the process that would tell is gone."""
    died = asyncio.get_running_loop().create_future()
    tell = lambda: died.done() or died.set_result(None)  # noqa: E731
    process.ended.append(tell)
    waiting = asyncio.ensure_future(change)
    try:
        await asyncio.wait((waiting, died), return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        waiting.cancel()
        process.ended.remove(tell)


def chance_of(fleet: Fleet) -> random.Random:
    return random.Random(f"{fleet.seed} gateway")
