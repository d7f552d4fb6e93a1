"""One simulated machine with the shipped agent on it.

Shipped: loop, planner, ledger, reports, artifact cache, fetches, verifications, supervisor, session runner, pump, routes. Replaced: the
machine's sensors, the runtime library (`Backend`), the connection to the registry (`BlobSource`), gRPC's channel, and the HTTP listener.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from agent.artifacts.cache import Cache
from agent.artifacts.fetch import Fetcher
from agent.artifacts.prompt_caches import PromptCaches
from agent.board.memory import Memory
from agent.board.storage import Storage
from agent.demand import Demand
from agent.fetching import Bytes
from agent.ledger import Ledger
from agent.loop import Loop
from agent.metrics import AgentMetrics
from agent.outage import Outage
from agent.planning.values import Abilities, InstalledLibrary, Served
from agent.reports import Reports
from agent.samples import read_series
from agent.session.runner import Machine, SessionRunner
from agent.workers.base import Exit, Listener, WorkerSpec
from agent.workers.supervisor import Supervisor
from rkfleet.errors import NotFound, PermissionDenied, Unavailable
from rkfleet.fleet_time import FleetTime
from rkfleet.identity import Identity
from rkfleet.kinds.board import Runtime
from rkfleet.kinds.replica import ExitReason, Measured
from rkfleet.metrics import Metrics
from rkfleet.report import BoardFacts
from rkfleet.session import AssignmentAnswer, AssignmentOffer, Verdict
from tests.support.scenario.files import STORAGE_BYTES, BoardDisk, settle
from tests.support.scenario.network import Cable
from tests.support.scenario.virtual import Process, VirtualClock

if TYPE_CHECKING:
    from tests.support.scenario.fleet import Fleet

MI = 1 << 20
CHUNK_BYTES = 1024
RUNTIME = Runtime(name="llamacpp", version="1.0", backend="llamacpp")
OLDER = Runtime(name="llamacpp", version="0.9", backend="llamacpp")


class Weather(msgspec.Struct):
    """What the runtime and the machine of one board do at the moment; faults change it.

    Attributes:
        load_seconds: How long a load takes, at least and at most.
        load_fails: Share of loads that fail.
        crash_seconds: Mean time to a crash of a loaded worker; 0 for never.
        hang_share: Of these crashes the share that hangs instead.
        stubborn_share: Share of workers that do not end when asked.
        chunk_seconds: How long a chunk of an artifact takes.
    """

    load_seconds: tuple[float, float] = (0.5, 4.0)
    load_fails: float = 0.0
    crash_seconds: float = 0.0
    hang_share: float = 0.0
    stubborn_share: float = 0.0
    chunk_seconds: tuple[float, float] = (0.02, 0.3)


class Board:
    """The machine; it can be booted again and again.

    Attributes:
        agent: The agent that runs, or None.
        since_ack: Highest assignment number that was ever answered ACCEPTED: what the disk must remember.
    """

    def __init__(self, fleet: Fleet, name: str, memory_bytes: int, runtimes: tuple[Runtime, ...] = (RUNTIME,)) -> None:
        self.fleet = fleet
        self.runtimes = runtimes
        self.name = name
        self.memory_bytes = memory_bytes
        self.chance = random.Random(f"{fleet.seed} board {name}")
        self.clock = VirtualClock(fleet.loop)
        self.weather = Weather()
        directory = fleet.directory / name
        directory.mkdir()
        self.disk = BoardDisk(directory, random.Random(f"{fleet.seed} disk {name}"))
        self.cable: Cable = fleet.network.cable(name, random.Random(f"{fleet.seed} cable {name}"))
        self.agent: Agent | None = None
        self.boots = 0
        self.powers = 0
        self.accepted = 0
        self.ledger_spoiled = False
        self.rotten: dict[str, float] = {}
        self.stamps: dict[Path, int] = {}

    @property
    def running(self) -> bool:
        return self.agent is not None and self.agent.process.alive

    def boot(self) -> None:
        """Start the agent on what the disk holds."""
        assert not self.running
        self.boots += 1
        self.fleet.say(self.name, f"boots ({self.boots})")
        process = Process(f"{self.name}.{self.boots}", self.fleet.loop, random.Random(f"{self.fleet.seed} {self.name} boot {self.boots}"))
        self.disk.on_kill = lambda: self._died(process, "killed in the middle of a write", power=False)
        self.disk.looked = self.fleet.promises.ledger_looked(self)
        self.agent = process.run(Agent, self, process)
        process.spawn(self.agent.run(), name=f"agent {self.name}")

    def kill(self, *, power: bool) -> None:
        """End the agent as the kernel does, or as the mains does."""
        if self.running:
            assert self.agent is not None
            self._died(self.agent.process, "lost its power" if power else "is killed", power=power)

    def _died(self, process: Process, how: str, *, power: bool) -> None:
        self.fleet.say(self.name, how)
        if power:
            self.powers += 1
            self.cable.darken()
        process.kill()
        self.disk.leave(power=power)
        self.fleet.promises.ledger_left(self)

    async def stop(self) -> None:
        """Ask the agent to end, as systemd does."""
        if self.running:
            assert self.agent is not None
            self.fleet.say(self.name, "is stopped")
            agent = self.agent
            agent.task_of_run.cancel()
            await asyncio.wait((agent.task_of_run,), timeout=30.0)
            agent.process.kill()
            self.disk.leave(power=False)

    def rot(self) -> None:
        """Flip a byte of a file that no load is about to use."""
        files = sorted((self.disk.directory / "artifacts" / "sha256").glob("*"))
        if files:
            path = self.chance.choice(files)
            body = bytearray(path.read_bytes())
            if body:
                body[self.chance.randrange(len(body))] ^= 0xFF
                path.write_bytes(body)
                self.rotten[path.name] = self.fleet.loop.time()
                self.fleet.say(self.name, f"a byte of {path.name[:8]} rots")

    def spoil_ledger(self) -> None:
        """Flip a byte of the newest ledger, or of both, while no agent runs."""
        for name in ("ledger.json", "ledger.prev.json")[: self.chance.choice((1, 1, 2))]:
            path = self.disk.directory / name
            if path.exists() and (body := bytearray(path.read_bytes())):
                body[self.chance.randrange(len(body))] ^= 0x10
                path.write_bytes(body)
                self.accepted, self.ledger_spoiled = 0, True
                self.fleet.promises.forget_accepted(self)
                self.fleet.say(self.name, f"a byte of {name} rots")

    def restamp(self) -> None:
        """Give files that were used their virtual time of use: eviction goes by it, and the machine's own clock is not of this world."""
        for path in sorted((self.disk.directory / "artifacts" / "sha256").glob("*")) + sorted((self.disk.directory / "partial").glob("*")):
            stamp = path.stat().st_mtime_ns
            if self.stamps.get(path) != stamp:
                now = int(self.fleet.loop.time() * 1e9)
                os.utime(path, ns=(now, now))
                self.stamps[path] = now


class _Sensors:
    """The machine's figures; the shipped sensors read /proc."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def facts(self, cached_bytes: int) -> BoardFacts:
        return BoardFacts(
            soc="cpu", memory_bytes=self._board.memory_bytes + (1 << 30), storage_bytes=STORAGE_BYTES,
            allocatable_memory_bytes=self._board.memory_bytes, allocatable_storage_bytes=STORAGE_BYTES // 2, runtimes=self._board.runtimes,
        )  # fmt: skip

    def memory(self) -> Memory:
        return Memory(self._board.memory_bytes + (1 << 30), self._board.memory_bytes)

    def storage(self) -> Storage:
        return Storage(STORAGE_BYTES, self._board.disk.free_bytes(Path("/")))


class Traffic:
    """Requests of this board, as its HTTP side would count them."""

    def __init__(self) -> None:
        self.running: dict[str, int] = {}
        self.done: dict[str, int] = {}

    def in_flight(self, uid: str) -> int:
        return self.running.get(uid, 0)

    def measured(self, uid: str) -> Measured | None:
        return Measured(time_to_first_token_seconds=0.2, decode_tokens_per_second=10.0) if self.done.get(uid) else None


class _Ledger(Ledger):
    """The shipped ledger; the board remembers what it answered."""

    board: Board

    async def accept(self, offer: AssignmentOffer) -> AssignmentAnswer:
        answer = await super().accept(offer)
        if answer.verdict is Verdict.ACCEPTED:
            self.board.fleet.promises.accepted(self.board, answer.number, self.held.sha256)
        return answer


class _Cache(Cache):
    """The shipped cache; remembers when what was verified."""

    board: Board
    verified: dict[str, float]

    async def verify(self, digest: str) -> Path:
        path = await super().verify(digest)
        self.board.restamp()
        self.verified[digest] = self.board.fleet.loop.time()
        return path


class Agent:
    """What `agent/app.py` wires, with this world's clock, disk, network and runtime."""

    def __init__(self, board: Board, process: Process) -> None:
        fleet, directory = board.fleet, board.disk.directory
        board.restamp()
        self.board = board
        self.process = process
        wake, metrics = asyncio.Event(), Metrics("agent")
        jitter = process.chance
        self.time = FleetTime(board.clock)
        self.reports = Reports(board.clock, self.time)
        self.ledger = _Ledger(directory, board.disk, wake.set)
        self.ledger.board = board
        fleet.promises.ledger_read(board, self.ledger.held.number)
        self.cache = _Cache(directory, 0, board.disk, metrics, reserve_bytes=0)
        self.cache.board, self.cache.verified = board, {}
        self.backend = Backend(self, RUNTIME)
        others = [Backend(self, runtime, self.backend) for runtime in board.runtimes[1:]]
        self.supervisor = Supervisor([self.backend, *others], clock=board.clock, random=jitter, metrics=metrics, on_change=wake.set)
        self.traffic = Traffic()
        self.demand = Demand(board.clock, wake.set)
        self.served: tuple[Served, ...] = ()
        identity = Identity(
            fleet_id=fleet.fleet_id,
            name=board.name,
            controller="https://controller.test",
            directory=directory,
            session_address="controller.test:7444",
        )
        sensors, url = _Sensors(board), f"https://{board.name}.test:7490"
        self.session = SessionRunner(
            identity=identity,
            machine=lambda: Machine(
                machine_id=f"machine-{board.name}", boot_id=f"boot-{board.boots}", facts=sensors.facts(0), serving_url=url
            ),
            clock=board.clock,
            jitter=jitter,
            ledger=self.ledger,
            reports=self.reports,
            on_time=self.time.tell,
            connect=lambda: fleet.network.call(board.name),
        )
        self.outage = Outage(
            directory, board.disk, boot_id=f"power-{board.powers}", clock=board.clock, reports=self.reports,
            read=lambda: read_series(metrics), in_session=lambda: self.session.connection.number > 0,
        )  # fmt: skip
        fetcher = Fetcher(
            self.cache, None, board.disk, metrics, CHUNK_BYTES, open_source=lambda url, token, _tls: Source(board, url, token)
        )
        self._loop = Loop(
            clock=board.clock,
            wake=wake,
            ledger=self.ledger,
            cache=self.cache,
            bytes=Bytes(cache=self.cache, fetcher=fetcher, grants=self.session, clock=board.clock, jitter=jitter, on_change=wake.set),
            supervisor=self.supervisor,
            traffic=self.traffic,
            sensors=sensors,
            reports=self.reports,
            metrics=AgentMetrics(metrics),
            abilities=Abilities(
                libraries={"llamacpp": tuple(InstalledLibrary(version=one.version) for one in board.runtimes)},
                cores=4,
                memory_bytes=board.memory_bytes,
                serving_url=url,
            ),
            publish=self._publish,
            demand=self.demand,
            prompt_caches=PromptCaches(directory),
        )
        self.task_of_run: asyncio.Task[Any]

    async def run(self) -> None:
        """Run as `agent/app.py` does: the workers outlive loop and session."""
        task = asyncio.current_task()
        assert task is not None
        self.task_of_run = task
        await self.outage.load()
        async with asyncio.TaskGroup() as tasks:
            working, remembering = tasks.create_task(self.supervisor.run()), tasks.create_task(self.outage.run())
            async with asyncio.TaskGroup() as converging:
                converging.create_task(self._loop.run())
                converging.create_task(self.session.run())
            working.cancel()
            remembering.cancel()

    def answers(self, uid: str) -> bool:
        """Whether a request for this replica would be let in."""
        return any(one.replica.uid == uid and one.endpoint and not one.draining for one in self.served)

    def _publish(self, served: tuple[Served, ...]) -> None:
        self.served = served
        self.board.fleet.promises.published(self.board, served, self.ledger.held.assignment)


class Backend:
    """A runtime whose workers load for a while, and crash, hang and fail as the board's weather says."""

    def __init__(self, agent: Agent, runtime: Runtime, beside: Backend | None = None) -> None:
        self._agent = agent
        self.runtime = runtime
        self.workers: list[_Worker] = beside.workers if beside else []
        self.ended: dict[str, float] = beside.ended if beside else {}

    async def start(self, spec: WorkerSpec, tasks: asyncio.TaskGroup, beat: Callable[[], None], log: Callable[[str], None]) -> _Worker:
        board = self._agent.board
        assert spec.library == self.runtime.version
        self.workers[:] = [one for one in self.workers if not one.gone]
        board.fleet.promises.starting(board, spec, self.workers, self._agent.cache.verified, self.ended.get(spec.uid, -1.0))
        worker = _Worker(self._agent, spec, beat)
        self.workers.append(worker)
        tasks.create_task(worker.live())
        return worker


class _Worker:
    def __init__(self, agent: Agent, spec: WorkerSpec, beat: Callable[[], None]) -> None:
        self._agent, self._beat = agent, beat
        self.spec = spec
        self.gone = False
        self._loaded: asyncio.Future[Listener | None] = asyncio.get_running_loop().create_future()
        self._exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        weather, chance = agent.board.weather, agent.process.chance
        self._load_seconds = chance.uniform(*weather.load_seconds)
        self._fails = chance.random() < weather.load_fails
        self._dies_after = chance.expovariate(1.0 / weather.crash_seconds) if weather.crash_seconds else None
        self._hangs = chance.random() < weather.hang_share
        self._stubborn = chance.random() < weather.stubborn_share
        self._stopping = False

    @property
    def pid(self) -> int:
        return 0

    async def live(self) -> None:
        board = self._agent.board
        name = f"{self.spec.namespace}/{self.spec.name}"
        try:
            board.fleet.say(board.name, f"worker {name} loads")
            await settle(self._load_seconds)
            if self._fails:
                self._end(Exit(reason="LoadFailed", message="the model cannot be loaded"))
            if self._exited.done():
                return
            self._loaded.set_result(Listener(endpoint=f"http://127.0.0.1:1/{self.spec.uid}", api_key="k"))
            lived = 0.0
            while not self._exited.done():
                self._beat()
                await settle(5.0)
                lived += 5.0
                if self._dies_after is not None and lived >= self._dies_after and not self._exited.done():
                    if self._hangs:
                        board.fleet.say(board.name, f"worker {name} hangs")
                        await asyncio.shield(self._exited)
                    else:
                        self._end(Exit(reason="Crashed", message="signal 11"))
        finally:
            self._end(Exit(reason=None))

    async def loaded(self) -> Listener | None:
        return await asyncio.shield(self._loaded)

    async def exited(self) -> Exit:
        return await asyncio.shield(self._exited)

    def stop(self) -> None:
        if not self._stubborn and not self._stopping and not self._exited.done():
            self._stopping = True
            asyncio.get_running_loop().call_later(self._agent.process.chance.uniform(0.0, 0.3), self._end, Exit(reason=None))

    def kill(self, reason: ExitReason | None, message: str) -> None:
        self._end(Exit(reason=reason, message=message))

    def _end(self, exit: Exit) -> None:
        if self._exited.done():
            return
        board = self._agent.board
        self.gone = True
        self._agent.backend.ended[self.spec.uid] = board.fleet.loop.time()
        board.fleet.say(board.name, f"worker {self.spec.namespace}/{self.spec.name} ended: {exit.reason or 'as asked'}")
        self._exited.set_result(exit)
        if not self._loaded.done():
            self._loaded.set_result(None)


class Source:
    """A repository of the registry, as `agent.artifacts.source.BlobSource` is one over HTTPS."""

    def __init__(self, board: Board, url: str, token: str) -> None:
        self._board, self._token = board, token
        self._repository = url.partition("/v2/")[2]
        self.url = url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def read(self, digest: str, *, start: int, end: int, size_bytes: int, take: Callable[[bytearray], Any]) -> int:
        board, registry = self._board, self._board.fleet.registry
        await settle(board.chance.uniform(*board.weather.chunk_seconds))
        if registry.away or not board.cable.registry:
            raise Unavailable(f"{self.url} broke off: connection refused")
        if not registry.verifier.verify(self._token).allows(self._repository, "pull", digest):
            raise PermissionDenied(f"{self.url}: the token does not open {digest}")
        body = registry.blobs.get((self._repository, digest))
        if body is None:
            raise NotFound(f"{self.url}: no blob {digest}")
        piece = bytearray(body[start:end])
        if board.chance.random() < registry.spoils:
            piece[0] ^= 0xFF
            board.fleet.say(board.name, f"a byte of {digest[7:15]} is spoiled on the way")
        half = len(piece) // 2
        await take(piece[:half])
        if board.chance.random() < registry.breaks:
            raise Unavailable(f"{self.url} broke off: connection reset")
        await take(piece[half:])
        board.restamp()
        return end


def digest_of(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"
