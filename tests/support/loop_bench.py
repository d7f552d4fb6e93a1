"""The real loops in the real manager over a given store, with scripted boards in the place of the hub."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from controller.machinery.events import EventRecorder
from controller.machinery.manager import Manager
from controller.planning.assignment import Offer
from controller.reconcilers.act import Applier
from controller.reconcilers.assignment import AssignmentMinter
from controller.reconcilers.loops import Loops, add_loops
from controller.store.base import Store, decode_item
from rkfleet import conditions
from rkfleet.clock import SystemClock, format_time
from rkfleet.errors import Unavailable
from rkfleet.kinds import KINDS, Board, Model, ModelDeployment
from rkfleet.kinds.base import Object
from rkfleet.meta import Ref
from tests.support.sim_board import SimBoard, model_spec

SPEED = 20.0  # Fleet seconds in a second of the test.


class NoIdentities:
    """Nobody holds a session by a key here, and nobody is refused."""

    def held(self, board: str) -> None:
        return None

    def attempt(self, board: str) -> None:
        return None

    def revoke(self, board: str, message: str) -> None:
        raise AssertionError(board)


class FastClock:
    """The machine's clock, running faster."""

    def __init__(self) -> None:
        self._real = SystemClock()
        self._start = self._real.monotonic()

    def monotonic(self) -> float:
        return 1000.0 + (self._real.monotonic() - self._start) * SPEED

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.monotonic())

    async def sleep(self, seconds: float) -> None:
        await self._real.sleep(seconds / SPEED)


class Bench:
    """A controller without its network: store, manager, loops; and scripted boards in the place of the hub."""

    def __init__(self, store: Store, clock: FastClock, loops_store: Store) -> None:
        self.store, self.clock = store, clock
        self.ids = (f"uid-{number}" for number in itertools.count(1))
        self.boards: dict[str, SimBoard] = {}
        self.gone_digests: set[str] = set()
        self.registry_is_up = True
        self.recorder = EventRecorder(loops_store, clock, self.new_id)
        applier = Applier(loops_store, clock, self.new_id, self.recorder)
        self.minter = AssignmentMinter(loops_store, applier)
        self.manager = Manager(clock=clock, random=random.Random(1))
        self.loops: Loops = add_loops(
            self.manager, loops_store, KINDS, clock=clock, random=random.Random(1), applier=applier, minter=self.minter,
            sessions=self, offers=self, identities=NoIdentities(), blobs=self,
        )  # fmt: skip

    def new_id(self) -> str:
        return next(self.ids)

    def presence(self, board: str) -> tuple[bool, float]:
        found = self.boards.get(board)
        return (found.connected, found.since) if found else (False, 0.0)

    def offer(self, board: str, offer: Offer) -> None:
        self.boards[board].take(offer)

    async def missing_blobs(self, repository: str, digests: Any) -> frozenset[str]:
        if not self.registry_is_up:
            raise Unavailable("connection refused")
        return frozenset(self.gone_digests) & frozenset(digests)

    async def create(self, kind: type[Object], name: str, spec: dict[str, Any]) -> str:
        namespace = "default" if kind.resource.namespaced else ""
        metadata = {"name": name, "uid": self.new_id(), "creationTimestamp": format_time(self.clock.now())}
        return (await self.store.create(Ref(kind.resource.name, namespace, name), {"metadata": metadata, "spec": spec})).uid

    async def create_model(self, name: str, memory: str) -> None:
        await self.create(Model, name, model_spec(memory))

    async def join(self, name: str, memory: str = "2Gi") -> SimBoard:
        board = self.boards[name] = SimBoard(name, await self.create(Board, name, {}), memory)
        await self.connect(board)
        return board

    async def connect(self, board: SimBoard) -> None:
        await board.open_session(self.store, self.clock.now(), self.clock.monotonic())
        board.take(await self.minter.mint(board.name, board.number, board.sha256))
        self.loops.wake_board(board.name)

    def disconnect(self, board: SimBoard) -> None:
        board.connected, board.since = False, self.clock.monotonic()
        self.loops.wake_board(board.name)

    async def run_boards(self) -> None:
        while True:
            for board in tuple(self.boards.values()):
                board.work()
                await board.report(self.store, self.clock.now())
            await self.clock.sleep(0.2)

    async def until(self, holds: Callable[[], Any], seconds: float = 20.0) -> None:
        """Wait until a level is reached; looks at every change of the world's pace."""
        async with asyncio.timeout(seconds):
            while not await holds():
                await self.clock.sleep(0.2)

    async def deployment(self, name: str = "chat") -> ModelDeployment:
        return decode_item(ModelDeployment, await self.store.get(Ref(ModelDeployment.resource.name, "default", name)))

    async def all(self, kind: type[Any]) -> list[Any]:
        return [decode_item(kind, item) for item in (await self.store.list(kind.resource.name)).items]

    async def is_ready(self) -> bool:
        found = await self.deployment()
        seen = found.status.observed_generation == found.metadata.generation
        return seen and conditions.is_true(found.status.conditions, conditions.READY)


@contextlib.asynccontextmanager
async def running_loops(store: Store, loops_store: Store | None = None) -> AsyncIterator[Bench]:
    """Run every loop over `loops_store`, by default the store through which boards report and the test looks at the world."""
    async with asyncio.timeout(60):
        bench = Bench(store, FastClock(), loops_store or store)
        async with asyncio.TaskGroup() as tasks:
            mine = [tasks.create_task(work()) for work in (bench.manager.run, bench.recorder.run, bench.run_boards)]
            yield bench
            for task in mine:
                task.cancel()
