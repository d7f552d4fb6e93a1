"""A scenario made by chance: a fleet of a random shape, minutes of faults and of an operator at work, then calm, then all as declared.

The seed decides everything. Faults overlap; each has its own moment, length and strength. What the operator wants at the end can be had:
every deployment fits, nothing is paused, every board is in the fleet.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from rkfleet.kinds import Board as BoardKind
from rkfleet.kinds import Model, ModelDeployment
from tests.support.scenario.board import Board
from tests.support.scenario.fleet import Fleet

STRATEGIES = ((1, 0), (1, 1), (0, 1), (2, 0), ("50%", 0), ("25%", "50%"))
MODELS = ("qwen2", "qwen3")


class Chaos:
    """One such scenario."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.chance = random.Random(f"{fleet.seed} chaos")
        self.deployments: dict[str, int] = {}

    async def play(self) -> None:
        chance, fleet = self.chance, self.fleet
        self._lag()
        fleet.log_events_max = chance.choice((20, 60, 10_000))
        fleet.start_controller()
        fleet.start_gateway()
        for model in MODELS:
            await fleet.push_model(model)
        slots = 0
        for number in range(chance.randint(2, 5)):
            size = chance.choice((1, 1, 2, 3))
            slots += size
            await fleet.add_board(f"b{number}", size)
        room = slots
        for name in ("chat", "code")[: chance.randint(1, 2)]:
            replicas = chance.randint(1, max(1, min(room - 1, 4)))
            room -= replicas
            if room < 0:
                break
            self.deployments[name] = replicas
            lost = chance.choice((20, 60, 300))
            await fleet.deploy(name, chance.choice(MODELS), replicas, strategy=self._strategy(), placement={"boardLostSeconds": lost})
        if chance.random() < 0.6:
            await fleet.sleep(chance.uniform(1.0, 40.0))
        await self._faults(slots)
        await fleet.calm()
        await self._declare(slots)
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(self._keep_models())
            await fleet.converge()
            keeping.cancel()

    def _lag(self) -> None:
        chance, lag = self.chance, self.fleet.lag
        longest = chance.choice((0.02, 0.3, 3.0, 15.0))
        lag.chance_of_stall, lag.seconds = chance.uniform(0.1, 0.9), (0.0, longest)
        lag.chance_of_expiry = chance.choice((0.0, 0.0, 0.05))

    def _strategy(self) -> dict[str, int | str]:
        unavailable, surge = self.chance.choice(STRATEGIES)
        return {"maxUnavailable": unavailable, "maxSurge": surge}

    async def _faults(self, slots: int) -> None:
        chance = self.chance
        length = chance.uniform(60.0, 300.0)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(chance.randint(3, 14)):
                fault = chance.choice(FAULTS)
                tasks.create_task(self._later(chance.uniform(0.0, length), fault))
            for _ in range(chance.randint(1, 8)):
                tasks.create_task(self._later(chance.uniform(0.0, length), Chaos.operate))

    async def _later(self, seconds: float, act: Callable[[Chaos], Awaitable[None]]) -> None:
        await self.fleet.sleep(seconds)
        await act(self)

    async def _declare(self, slots: int) -> None:
        """Undo what the operator did for the time being; what is wanted from now on can be had."""
        fleet = self.fleet
        for name in fleet.boards:
            if fleet.promises.named(BoardKind, name) is None:
                await fleet.enrol(name)
            await fleet.edit(BoardKind, name, {"unschedulable": False, "taints": []})
        room = slots
        for name, replicas in self.deployments.items():
            wanted = min(replicas, room)
            room -= wanted
            strategy = {"maxUnavailable": 1, "maxSurge": self.chance.choice((0, 1))}
            await fleet.edit(ModelDeployment, name, {"paused": False, "replicas": wanted, "strategy": strategy})

    async def _keep_models(self) -> None:
        """Push again what goes because it was deleted while it was used and is not used any more."""
        while True:
            for model in MODELS:
                await self.fleet.model_is_there(model)
            await self.fleet.sleep(5.0)

    def _board(self) -> Board:
        return self.chance.choice(list(self.fleet.boards.values()))

    # ---- The operator -------------------------------------------------------------------------------------------------------------

    async def operate(self) -> None:
        """Do one of the things that operators do."""
        chance, fleet = self.chance, self.fleet
        name = chance.choice(list(self.deployments))
        match chance.randrange(11):
            case 0:
                self.deployments[name] = chance.randint(0, 5)
                await fleet.edit(ModelDeployment, name, {"replicas": self.deployments[name]})
            case 1 | 2:
                await fleet.edit(ModelDeployment, name, {"template": {"model": chance.choice(MODELS)}})
            case 3:
                tokens = chance.choice((512, 1024, 2048))
                await fleet.edit(ModelDeployment, name, {"template": {"serving": {"contextTokens": tokens}}})
            case 4:
                await fleet.edit(ModelDeployment, name, {"strategy": self._strategy()})
            case 5:
                await fleet.edit(ModelDeployment, name, {"paused": True})
                await fleet.sleep(chance.uniform(1.0, 60.0))
                await fleet.edit(ModelDeployment, name, {"paused": False})
            case 6:
                board = self._board().name
                await fleet.edit(BoardKind, board, {"unschedulable": True})
                await fleet.sleep(chance.uniform(1.0, 90.0))
                await fleet.edit(BoardKind, board, {"unschedulable": False})
            case 7:
                await fleet.delete(ModelDeployment, name)
                await fleet.sleep(chance.choice((0.0, 0.0, 20.0)))
                await fleet.deploy(name, chance.choice(MODELS), max(self.deployments[name], 1), strategy=self._strategy())
            case 8:
                board = self._board().name
                await fleet.delete(BoardKind, board)
                await fleet.sleep(chance.choice((0.0, 1.0, 100.0)))
                await fleet.enrol(board)
            case 9:
                board = self._board().name
                await fleet.edit(BoardKind, board, {"taints": [{"key": "work", "value": "", "effect": "NoSchedule"}]})
                await fleet.sleep(chance.uniform(1.0, 90.0))
                await fleet.edit(BoardKind, board, {"taints": []})
            case 10:
                model = chance.choice(MODELS)
                await fleet.delete(Model, model)
                await fleet.sleep(chance.choice((0.0, 5.0, 40.0)))
                await fleet.model_is_there(model)

    # ---- Faults -------------------------------------------------------------------------------------------------------------------

    async def controller_dies(self) -> None:
        self.fleet.kill_controller()
        await self.fleet.sleep(self.chance.choice((0.1, 2.0, self.chance.uniform(2.0, 120.0))))
        self._restart_controller()

    async def controller_dies_around_a_commit(self) -> None:
        self.fleet.store_file.kill = (self.chance.randrange(12), self.chance.random() < 0.5)
        await self.fleet.sleep(self.chance.uniform(5.0, 30.0))
        self._restart_controller()

    async def controller_is_stopped(self) -> None:
        await self.fleet.stop_controller()
        await self.fleet.sleep(self.chance.uniform(0.1, 20.0))
        self._restart_controller()

    async def controller_stands_still(self) -> None:
        if self.fleet.controller is not None and self.fleet.controller.process.alive:
            seconds = self.chance.uniform(0.5, 40.0)
            self.fleet.say("controller", f"stands still for {seconds:.1f} s")
            self.fleet.controller.process.stop(seconds)

    def _restart_controller(self) -> None:
        self.fleet.store_file.kill = None
        if self.fleet.controller is None or not self.fleet.controller.process.alive:
            self.fleet.start_controller()

    async def store_is_full(self) -> None:
        self.fleet.say("store", "disk is full")
        self.fleet.store_file.full = True
        await self.fleet.sleep(self.chance.uniform(1.0, 60.0))
        self.fleet.say("store", "disk has room")
        self.fleet.store_file.full = False

    async def agent_dies(self) -> None:
        await self._die(power=False)

    async def board_loses_power(self) -> None:
        await self._die(power=True)

    async def ledger_is_spoiled(self) -> None:
        board = self._board()
        board.kill(power=True)
        await self.fleet.sleep(self.chance.choice((5.0, self.chance.uniform(5.0, 90.0))))
        if not board.running:
            board.spoil_ledger()
            board.boot()

    async def _die(self, *, power: bool) -> None:
        board = self._board()
        board.kill(power=power)
        await self.fleet.sleep(self.chance.choice((0.1, 5.0, self.chance.uniform(5.0, 150.0))))
        if not board.running:
            board.boot()

    async def agent_dies_in_a_write(self) -> None:
        board = self._board()
        board.disk.kill_after = self.chance.randrange(14)
        await self.fleet.sleep(self.chance.uniform(5.0, 60.0))
        board.disk.kill_after = None
        if not board.running:
            board.boot()

    async def agent_is_stopped(self) -> None:
        board = self._board()
        await board.stop()
        await self.fleet.sleep(self.chance.uniform(0.1, 30.0))
        if not board.running:
            board.boot()

    async def board_stands_still(self) -> None:
        board = self._board()
        if board.running and board.agent is not None:
            seconds = self.chance.uniform(0.5, 50.0)
            self.fleet.say(board.name, f"stands still for {seconds:.1f} s")
            board.agent.process.stop(seconds)

    async def cable_is_cut(self) -> None:
        chance = self.chance
        boards = list(self.fleet.boards.values()) if chance.random() < 0.2 else [self._board()]
        up, down = chance.choice(((True, True), (True, False), (False, True)))
        way = {(True, True): "both ways", (True, False): "upwards", (False, True): "downwards"}[up, down]
        registry = chance.random() < 0.7
        for board in boards:
            self.fleet.say(board.name, f"is cut off {way}")
            board.cable.cut(up=up, down=down, registry=registry)
        await self.fleet.sleep(chance.choice((chance.uniform(0.5, 10.0), chance.uniform(10.0, 150.0))))
        for board in boards:
            self.fleet.say(board.name, "is connected again")
            board.cable.heal((0.0, chance.choice((0.2, 5.0, 40.0))))

    async def old_stream_is_late(self) -> None:
        """A path dies under one connection: the board dials anew, and what the old stream carried arrives beside the new session."""
        board, chance = self._board(), self.chance
        before, after = chance.uniform(1.0, 14.0), chance.uniform(1.0, 14.0)
        wires = board.cable.hold(before + after)
        self.fleet.say(board.name, "stream is held back")
        await self.fleet.sleep(before)
        for wire in wires:
            wire.board.break_("connection timed out", tell=False)

    async def link_is_slow(self) -> None:
        board = self._board()
        before = board.cable.latency, board.cable.bytes_per_second
        board.cable.latency, board.cable.bytes_per_second = (0.2, self.chance.uniform(0.5, 6.0)), self.chance.uniform(300.0, 20_000.0)
        self.fleet.say(board.name, f"has a slow link, {board.cable.latency[1]:.1f} s")
        await self.fleet.sleep(self.chance.uniform(5.0, 90.0))
        board.cable.latency, board.cable.bytes_per_second = before

    async def board_disk_is_full(self) -> None:
        board = self._board()
        self.fleet.say(board.name, "disk is full")
        board.disk.room = self.chance.choice((0, 0, 50, 700, 3000))
        await self.fleet.sleep(self.chance.uniform(2.0, 90.0))
        self.fleet.say(board.name, "disk has room")
        board.disk.room = None

    async def workers_fail(self) -> None:
        board, chance = self._board(), self.chance
        weather = board.weather
        weather.load_fails = chance.choice((0.0, 0.5, 1.0))
        weather.crash_seconds = chance.choice((0.0, 5.0, 40.0))
        weather.hang_share, weather.stubborn_share = chance.choice((0.0, 0.5)), chance.choice((0.0, 0.5))
        weather.load_seconds = chance.choice(((0.5, 4.0), (5.0, 60.0)))
        self.fleet.say(board.name, "workers fail")
        await self.fleet.sleep(chance.uniform(10.0, 120.0))
        board.weather = type(weather)()
        self.fleet.say(board.name, "workers are well")

    async def registry_is_away(self) -> None:
        self.fleet.say("registry", "is away")
        self.fleet.registry.away = True
        await self.fleet.sleep(self.chance.uniform(2.0, 120.0))
        self.fleet.say("registry", "is back")
        self.fleet.registry.away = False

    async def registry_is_bad(self) -> None:
        registry, chance = self.fleet.registry, self.chance
        registry.spoils, registry.breaks = chance.choice((0.0, 0.2)), chance.choice((0.0, 0.3))
        for board in self.fleet.boards.values():
            board.weather.chunk_seconds = (0.1, chance.choice((1.0, 8.0)))
        self.fleet.say("registry", "is slow and breaks off")
        await self.fleet.sleep(chance.uniform(5.0, 100.0))
        registry.spoils = registry.breaks = 0.0
        for board in self.fleet.boards.values():
            board.weather.chunk_seconds = type(board.weather)().chunk_seconds

    async def a_file_rots(self) -> None:
        self._board().rot()

    async def wall_clock_jumps(self) -> None:
        board = self._board()
        board.clock.offset_seconds += self.chance.choice((-1e9, -3600.0, -20.0, 20.0, 3600.0, 1e8))
        self.fleet.say(board.name, f"wall clock is off by {board.clock.offset_seconds:.0f} s")

    async def clock_of_the_controller_jumps(self) -> None:
        self.fleet.clock.offset_seconds += self.chance.choice((-3600.0, -20.0, 20.0, 3600.0))
        self.fleet.say("controller", f"wall clock is off by {self.fleet.clock.offset_seconds:.0f} s")


FAULTS: tuple[Callable[[Chaos], Awaitable[None]], ...] = (
    Chaos.controller_dies, Chaos.controller_dies_around_a_commit, Chaos.controller_is_stopped, Chaos.controller_stands_still,
    Chaos.store_is_full, Chaos.agent_dies, Chaos.board_loses_power, Chaos.agent_dies_in_a_write, Chaos.agent_is_stopped,
    Chaos.board_stands_still, Chaos.cable_is_cut, Chaos.cable_is_cut, Chaos.old_stream_is_late, Chaos.link_is_slow,
    Chaos.board_disk_is_full, Chaos.workers_fail, Chaos.registry_is_away, Chaos.registry_is_bad, Chaos.a_file_rots, Chaos.wall_clock_jumps,
    Chaos.ledger_is_spoiled, Chaos.clock_of_the_controller_jumps,
)  # fmt: skip


async def chaos(fleet: Fleet) -> None:
    await Chaos(fleet).play()
