"""A whole fleet in one event loop: a controller, boards, a gateway, a registry, an operator, and the network between them.

In: a seed and a scenario, which is a coroutine that is given the fleet. Out: a transcript (time, actor, event), the hash of everything that
was said and stored, or the first promise that was broken. The same seed gives the same transcript in every process.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import hashlib
import itertools
import logging
import os
import random
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from controller.store.base import Item
from controller.store.sql.database import Database
from controller.trust.binding import Binding
from rkfleet import conditions
from rkfleet.clock import format_time
from rkfleet.errors import AlreadyExists, FleetError, NotFound
from rkfleet.kinds import Board as BoardKind
from rkfleet.kinds import Model, ModelDeployment, ModelRevision, Replica
from rkfleet.kinds.base import Object
from rkfleet.meta import Ref
from rkfleet.packaging import repository_name
from rkfleet.session import AssignmentAnswer, AssignmentOffer, Goodbye, Hello, Welcome
from rkfleet.v1 import agent_pb2 as pb
from rkfleet.wire import decode_controller_message
from tests.support.scenario.board import Board, digest_of
from tests.support.scenario.controller import Controller, Registry
from tests.support.scenario.files import MemoryFile, StoreFile, settle
from tests.support.scenario.gateway import Gateway
from tests.support.scenario.lag import Lag
from tests.support.scenario.network import Network
from tests.support.scenario.promises import PromiseBroken, Promises
from tests.support.scenario.virtual import Process, VirtualClock, VirtualLoop

Json = dict[str, Any]
Scenario = Callable[["Fleet"], Awaitable[None]]

# From the moment at which every fault has ended to everything as declared. The longest chain: a board that was refused stays away for up
# to 90 s, then each of up to eight replicas is exchanged in turn, at most 30 s of drain and some ten of load, fetch and back-off each.
CONVERGE_SECONDS_MAX = 900.0
QUIET_SECONDS = 130.0  # More than any period that something is done again in (reports are asserted every 60 s).
CALM = Lag()
PATH_LENGTH = 48


@functools.cache
def signing_key() -> tuple[bytes, bytes]:
    key = Ed25519PrivateKey.from_private_bytes(b"rkfleet scenario tests sign this".ljust(32)[:32])
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


class Outcome(msgspec.Struct):
    """What a run came to.

    Attributes:
        sha256: Of every line, every stored object and every message.
        broken: The promise that was broken; None for none.
    """

    lines: list[str]
    sha256: str
    virtual_seconds: float
    real_seconds: float
    commits: int
    checks: int
    steps: int
    broken: BaseException | None = None

    @property
    def transcript(self) -> str:
        return "\n".join(self.lines) + "\n"


class Fleet:
    """See the module; scenarios call its verbs."""

    fleet_id = "f-scenario"

    def __init__(self, seed: str, loop: VirtualLoop, directory: Path, *, sqlite: bool = False) -> None:
        self.seed = seed
        self.loop = loop
        self.directory = directory
        self.chance = random.Random(f"{seed} fleet")
        self.clock = VirtualClock(loop)
        self.signing_key = signing_key()
        self.lag = Lag()
        self.log_events_max = 10_000
        self.lines: list[str] = []
        self._hash = hashlib.sha256()
        self._ids = 0
        self._sqlite = directory / "store.db" if sqlite else None
        self.promises = Promises(self)
        self.network = Network(loop, self.fleet_id)
        self.network.heard = self._heard
        self.registry = Registry(self)
        self.store_file = StoreFile(Database.open(self._sqlite) if self._sqlite else MemoryFile())
        self.store_file.committed = self.promises.committed
        self.store_file.now = loop.time
        self.boards: dict[str, Board] = {}
        self.controller: Controller | None = None
        self.controller_up_at = 0.0
        self.gateway: Gateway | None = None
        self._starts = 0
        self.began = loop.time()

    # ---- What is written down -----------------------------------------------------------------------------------------------------

    def new_id(self) -> str:
        self._ids += 1
        return f"uid-{self._ids:05}"

    def say(self, actor: str, text: str) -> None:
        """Add a line to the transcript."""
        line = f"{self.loop.time() - self.began:9.3f}  {actor:<11} {text.replace(str(self.directory), 'DATA')}"
        self.lines.append(line)
        self._hash.update(line.encode())

    def trace(self, what: str, body: bytes) -> None:
        """Add to the hash what is too much for the transcript."""
        self._hash.update(f"{self.loop.time()!r} {what}".encode())
        self._hash.update(body.replace(str(self.directory).encode(), b"DATA"))

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def _heard(self, board: str, what: str, message: Any) -> None:
        if isinstance(message, pb.SessionResponse):
            self.trace(what, message.SerializeToString(deterministic=True))
            message = decode_controller_message(message)
        else:
            self.trace(what, repr(message).encode())
        self.promises.heard(board, message)
        if " in old session " in what:
            self.say("controller", f"hears {type(message).__name__} of {board}{what.removeprefix('controller hears')}")
            return
        match message:
            case Hello(assignment_number=number):
                self.say(board, f"says Hello, holds assignment {number}")
            case Welcome(session_number=number):
                self.say(board, f"is welcome, session {number}")
            case AssignmentOffer(number=number):
                self.say(board, f"is offered assignment {number}")
            case AssignmentAnswer(number=number, verdict=verdict):
                self.say(board, f"answered assignment {number}: {verdict.value}")
            case Goodbye(reason=reason, message=text):
                self.say(board, f"{'hears' if 'controller' not in what else 'says'} Goodbye {reason.value}: {text}")

    def tell(self, old: Object | None, new: Object | None) -> None:
        """Say what a stored change means, as far as a reader of a transcript wants to know."""
        subject = new or old
        assert subject is not None
        said = [f"{subject.resource.kind} {subject.metadata.name}"]
        match old, new:
            case None, _:
                said.append("is created" + _spec_of(new))
            case _, None:
                said.append("is deleted")
            case _:
                if isinstance(new, Replica) and isinstance(old, Replica):
                    said += _changes_of_replica(old, new)
                elif old.metadata.generation != new.metadata.generation:  # type: ignore[union-attr]
                    said.append("is edited")
                said += _transitions(getattr(old, "status", None), getattr(new, "status", None))
                if isinstance(new, ModelDeployment) and len(said) > 1:
                    status = new.status
                    said.append(f"({status.updated_replicas} updated, {status.available_replicas} available of {new.spec.replicas})")
        if len(said) > 1:
            self.say("store", " ".join(said))

    # ---- Programs -----------------------------------------------------------------------------------------------------------------

    def start_controller(self) -> None:
        """Start the controller on what the store's file holds."""
        assert self.controller is None or not self.controller.process.alive
        self._starts += 1
        name = f"c-{self._starts}"
        self.say("controller", f"starts ({name})")
        if self._sqlite and self._starts > 1:
            self.store_file.file = Database.open(self._sqlite)
        self.store_file.kill = None
        self.store_file.on_kill = lambda: self.kill_controller("dies around a commit")
        process = Process(name, self.loop, random.Random(f"{self.seed} controller {self._starts}"))
        self.promises.controller_began()
        self.controller = process.run(Controller, self, process)
        self.controller_up_at = self.loop.time()
        process.spawn(self.controller.start(), name="controller")

    def kill_controller(self, how: str = "is killed") -> None:
        """End the controller as the kernel does."""
        if self.controller is not None and self.controller.process.alive:
            self.say("controller", how)
            self.network.listener = None
            self.controller.process.kill()
            if self._sqlite:
                self.store_file.close()

    async def stop_controller(self) -> None:
        """End the controller as systemd does: every board hears Goodbye."""
        controller = self.controller
        if controller is not None and controller.process.alive:
            self.say("controller", "is stopped")
            self.network.listener = None
            closing = controller.process.spawn(controller.hub.close(), name="closing")
            await asyncio.wait((closing,), timeout=5.0)
            await settle(0.2)
            self.kill_controller("has ended")

    def start_gateway(self) -> None:
        process = Process("gateway", self.loop, random.Random(f"{self.seed} gateway"))
        self.gateway = process.run(Gateway, self, process)
        process.spawn(self.gateway.run(), name="gateway")

    async def add_board(self, name: str, slots: int = 2, slot_bytes: int = 1 << 30) -> Board:
        """Enrol a board and start its agent."""
        board = self.boards[name] = Board(self, name, slots * slot_bytes)
        await self.enrol(name)
        board.boot()
        return board

    async def enrol(self, name: str) -> None:
        await self.create(BoardKind, name, {}, annotations=Binding(f"key-of-{name}", f"machine-{name}").annotations())

    # ---- The operator -------------------------------------------------------------------------------------------------------------

    async def write(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        """Have the API write, again and again until a controller answers."""
        while True:
            controller = self.controller
            if controller is not None and controller.process.alive:
                try:
                    async with asyncio.timeout(5.0):
                        return await call(controller.store)
                except (TimeoutError, FleetError) as error:
                    if isinstance(error, (NotFound, AlreadyExists)):
                        return None
            await settle(0.5)

    async def create(self, kind: type[Object], name: str, spec: Json, *, annotations: Json | None = None) -> Item | None:
        ref = ref_of(kind, name)
        metadata = {
            "name": name,
            "uid": self.new_id(),
            "creationTimestamp": format_time(self.clock.now()),
            "annotations": annotations or {},
        }
        created: Item | None = await self.write(lambda store: store.create(ref, {"metadata": metadata, "spec": spec}))
        return created

    async def push_model(self, name: str, *, memory: str = "1Gi", size: int = 2600) -> None:
        """Push a model: its bytes to the registry, its object to the API."""
        body = random.Random(f"{self.seed} model {name}").randbytes(size)
        file = {"path": f"{name}.gguf", "digest": digest_of(body), "sizeBytes": size, "role": "weight"}
        self.registry.blobs[repository_name("default", name), digest_of(body)] = body
        variant = {"name": "q4", "soc": "any", "dtype": "q4_k_m", "runtime": "llamacpp", "contextTokens": 4096}
        await self.create(Model, name, {"variants": [{**variant, "artifact": {"files": [file]}, "requires": {"memory": memory}}]})

    async def model_is_there(self, name: str) -> None:
        """Push a model again if it is gone; one that is deleted and still used stays until nobody uses it."""
        if self.promises.named(Model, name) is None:
            await self.push_model(name)

    async def deploy(self, name: str, model: str, replicas: int, **spec: Any) -> None:
        template = {"model": model, "serving": {"drainSeconds": 10}}
        await self.create(ModelDeployment, name, {"replicas": replicas, "template": template, **spec})

    async def edit(self, kind: type[Object], name: str, spec: Json) -> None:
        """Patch the spec of an object, if it is there."""
        self.say("operator", f"{kind.resource.kind} {name} <- {msgspec.json.encode(spec).decode()}")
        await self.write(lambda store: store.patch(ref_of(kind, name), {"spec": spec}, now=self.clock.now()))

    async def delete(self, kind: type[Object], name: str) -> None:
        self.say("operator", f"deletes {kind.resource.kind} {name}")
        await self.write(lambda store: store.delete(ref_of(kind, name), now=self.clock.now()))

    # ---- Waiting ------------------------------------------------------------------------------------------------------------------

    async def sleep(self, seconds: float) -> None:
        await settle(seconds)

    async def until(self, holds: Callable[[], bool], seconds: float = 300.0, what: str = "") -> None:
        """Wait on a level; time that is over is a broken promise."""
        end = self.loop.time() + seconds
        while not holds():
            if self.loop.time() >= end:
                raise PromiseBroken(f"not within {seconds:.0f} s: {what or holds}")
            await settle(0.25)

    def replicas(self, deployment: str = "") -> list[Replica]:
        found: list[Replica] = self.promises.of(Replica)
        return [one for one in found if not deployment or one.spec.deployment_name == deployment]

    def is_complete(self, deployment: str) -> bool:
        found = self.promises.named(ModelDeployment, deployment)
        if found is None or found.status.observed_generation != found.metadata.generation:
            return False
        return all(conditions.is_true(found.status.conditions, type) for type in (conditions.READY, conditions.AVAILABLE)) and (
            _reason(found, conditions.PROGRESSING) == conditions.ROLLOUT_COMPLETE
        )

    async def calm(self) -> None:
        """End every fault: everybody runs, everything passes, every disk has room, the wind has gone."""
        self.say("world", "every fault ends")
        self.lag.chance_of_stall, self.lag.seconds, self.lag.chance_of_expiry = CALM.chance_of_stall, CALM.seconds, CALM.chance_of_expiry
        self.registry.away, self.registry.spoils, self.registry.breaks = False, 0.0, 0.0
        self.store_file.full, self.store_file.kill = False, None
        self.clock.offset_seconds = 0.0
        if self.controller is None or not self.controller.process.alive:
            self.start_controller()
        for board in self.boards.values():
            board.weather = type(board.weather)()
            board.disk.room, board.disk.kill_after = None, None
            board.cable.latency, board.cable.bytes_per_second = (0.001, 0.02), 1e6
            board.cable.heal()
            board.clock.offset_seconds = 0.0
            if not board.running:
                board.boot()

    async def converge(self, seconds: float = CONVERGE_SECONDS_MAX) -> float:
        """Wait until all is as declared, and see that nothing is written from then on; return how long it took."""
        began = self.loop.time()
        while missing := self.missing():
            if self.loop.time() - began >= seconds:
                raise PromiseBroken(f"not as declared {seconds:.0f} s after the last fault: {'; '.join(missing[:6])}")
            await settle(1.0)
        took = self.loop.time() - began
        self.say("world", "all is as declared")
        if self.gateway is not None:
            self.gateway.busy = False
        await settle(15.0)  # What clients began ends, and its speed is reported once.
        for _ in range(4):
            before = self.promises.commits
            await settle(QUIET_SECONDS)
            if self.promises.commits == before:
                break
        else:
            raise PromiseBroken("all is as declared, and still something is written")
        if missing := self.missing():
            raise PromiseBroken(f"what was as declared is so no more: {'; '.join(missing[:6])}")
        self.say("world", "nothing more is written")
        return took

    def missing(self) -> list[str]:
        """Return what is not as declared, in sentences."""
        return list(self._missing())

    def _missing(self) -> Iterator[str]:
        promises = self.promises
        replicas = promises.of(Replica)
        waiting = False
        for replica in replicas:
            name, said = replica.metadata.name, replica.status.conditions
            owner = next(
                (one for one in promises.of(ModelDeployment) if one.metadata.uid in {ref.uid for ref in replica.metadata.owner_references}),
                None,
            )
            if owner is None:
                yield f"replica {name} has no owner"
                continue
            if not replica.spec.board_name:
                if any(
                    self._free_bytes(board) >= promises.memory_of(replica)
                    for board in promises.of(BoardKind)
                    if not board.spec.unschedulable
                ):
                    yield f"replica {name} waits though a board has room"
                elif conditions.is_true(said, conditions.SCHEDULED) or not _reason(replica, conditions.SCHEDULED):
                    yield f"replica {name} has no board and does not say why"
                waiting = True
                continue
            if replica.spec.activation != "Serving":
                yield f"replica {name} is {replica.spec.activation}"
            for type in (conditions.SCHEDULED, conditions.ARTIFACT_AVAILABLE, conditions.LOADED, conditions.READY):
                if not conditions.is_true(said, type):
                    yield f"replica {name} is not {type}: {_reason(replica, type)}"
            if replica.status.observed_generation != replica.metadata.generation:
                yield f"replica {name} is reported at generation {replica.status.observed_generation} of {replica.metadata.generation}"
        for deployment in promises.of(ModelDeployment):
            name = deployment.metadata.name
            mine = [one for one in replicas if one.spec.deployment_name == name]
            if len(mine) != deployment.spec.replicas:
                yield f"{name} has {len(mine)} replicas of {deployment.spec.replicas}"
            revisions = {one.spec.revision_name for one in mine}
            if revisions - {deployment.status.update_revision}:
                yield f"{name} has replicas of {sorted(revisions)}"
            if not self.is_complete(name) and not waiting:
                yield f"{name} is not complete: {[(one.type, one.status, one.reason) for one in deployment.status.conditions]}"
        for board in promises.of(BoardKind):
            yield from self._missing_on(board, replicas)
        if (names := {one.metadata.name for one in promises.of(BoardKind)}) != set(self.boards):
            yield f"boards are {sorted(names)}"
        for model in promises.of(Model):
            if not conditions.is_true(model.status.conditions, conditions.READY):
                yield f"model {model.metadata.name} is not Ready"
        if self.gateway is not None:
            table = self.gateway.endpoints.table
            routed = sorted(target.replica for served in table.models.values() for target in served.targets)
            wanted = sorted(f"default/{one.metadata.name}" for one in replicas if one.spec.board_name)
            if routed != wanted:
                yield f"the gateway routes to {routed}, not to {wanted}"

    def _missing_on(self, board: BoardKind, replicas: list[Replica]) -> Iterator[str]:
        name, status = board.metadata.name, board.status
        machine = self.boards.get(name)
        if machine is None or not machine.running:
            yield f"board {name} does not run"
            return
        agent = machine.agent
        assert agent is not None
        if not conditions.is_true(status.conditions, conditions.READY):
            yield f"board {name} is not Ready: {_reason(board, conditions.READY)}"
        for type in (conditions.MEMORY_PRESSURE, conditions.DISK_PRESSURE):
            if (found := conditions.find(status.conditions, type)) is None or found.status != "False":
                yield f"board {name} says {type} {found.status if found else 'nothing'}"
        held = agent.ledger.held
        if (held.number, held.sha256, held.number) != (
            status.assignment.number,
            status.assignment.sha256,
            status.assignment.accepted_number,
        ):
            yield f"board {name} holds assignment {held.number}, stored is {status.assignment}"
        if agent.session.connection.number != status.session.number:
            yield f"board {name} is in session {agent.session.connection.number}, stored is {status.session.number}"
        wanted = sorted(one.metadata.uid for one in replicas if one.spec.board_name == name)
        running = sorted(uid for uid, state in agent.supervisor.states().items() if state.phase == "Ready")
        if wanted != running or len(agent.supervisor.states()) != len(running):
            yield f"board {name} runs {running}, not {wanted}"
        if sorted(one.uid for one in status.running) != wanted:
            yield f"board {name} is stored to run {sorted(one.uid for one in status.running)}, not {wanted}"
        if [one.replica.uid for one in agent.served if not one.endpoint or one.draining]:
            yield f"board {name} has routes without a worker"

    def _free_bytes(self, board: BoardKind) -> int:
        machine = self.boards.get(board.metadata.name)
        used = sum(self.promises.memory_of(one) for one in self.promises.of(Replica) if one.spec.board_name == board.metadata.name)
        return machine.memory_bytes - used if machine else 0


def ref_of(kind: type[Object], name: str) -> Ref:
    return Ref(kind.resource.name, "default" if kind.resource.namespaced else "", name)


def _reason(obj: Any, type: str) -> str:
    found = conditions.find(obj.status.conditions, type)
    return found.reason if found else ""


def _spec_of(obj: Any) -> str:
    match obj:
        case Replica(spec=spec):
            return f" {spec.activation}" + (f", replaces {spec.replaces}" if spec.replaces else "")
        case ModelDeployment(spec=spec):
            return f", {spec.replicas} of {spec.template.model}"
        case ModelRevision(spec=spec):
            return f", number {spec.revision}"
        case _:
            return ""


def _changes_of_replica(old: Replica, new: Replica) -> list[str]:
    said = []
    if old.spec.board_name != new.spec.board_name:
        said.append(f"is placed on {new.spec.board_name}")
    if old.spec.activation != new.spec.activation:
        said.append(f"is {new.spec.activation}")
    return said


def _transitions(old: Any, new: Any) -> list[str]:
    if new is None or not hasattr(new, "conditions"):
        return []
    before = {one.type: (one.status, one.reason) for one in old.conditions}
    return [f"{one.type}={one.status}/{one.reason}" for one in new.conditions if before.get(one.type) != (one.status, one.reason)]


def play(seed: str, scenario: Scenario, *, sqlite: bool = False) -> Outcome:
    """Play a scenario; a broken promise is in the outcome, not raised."""
    directory = _directory()
    began = time.perf_counter()
    loop = VirtualLoop()
    collecting = gc.isenabled()
    gc.disable()  # Finalizers run when they must, not when memory happens to be short.
    broken: BaseException | None = None
    try:
        with _errors_break(loop):
            asyncio.set_event_loop(loop)
            fleet = Fleet(seed, loop, directory, sqlite=sqlite)
            try:
                loop.run_until_complete(scenario(fleet))
            except Exception as error:  # noqa: BLE001 - whatever ended it is the outcome
                broken = loop.broken or error
            lines, sha256 = list(fleet.lines), fleet.sha256
            virtual, real = loop.time() - fleet.began, time.perf_counter() - began
            loop.dispose()
        return Outcome(lines, sha256, virtual, real, fleet.promises.commits, fleet.promises.checks, loop.steps, broken)
    finally:
        asyncio.set_event_loop(None)
        if collecting:
            gc.enable()
        shutil.rmtree(directory, ignore_errors=True)


def _directory() -> Path:
    """Return a new directory whose name is always equally long: it is in messages, and long messages take longer."""
    parent = Path("/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir())
    for number in itertools.count():
        directory = parent / f"rkfleet-{os.getpid():0{PATH_LENGTH - len(str(parent)) - 15}}-{number:05}"
        try:
            directory.mkdir()
        except FileExistsError:
            continue
        return directory
    raise AssertionError("unreachable")


class _Breaks(logging.Handler):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__(logging.ERROR)
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and not self._loop.disposing:
            error = AssertionError(f"logged: {record.getMessage()}: {record.exc_info[1]!r}")
            error.__cause__ = record.exc_info[1]
            self._loop.broken = self._loop.broken or error


@contextmanager
def _errors_break(loop: VirtualLoop) -> Iterator[None]:
    """An exception that a loop's edge logs and survives is a mistake of ours, and ends the scenario."""
    handler = _Breaks(loop)
    loggers = [logging.getLogger(name) for name in ("controller", "agent", "gateway")]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.ERROR)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
