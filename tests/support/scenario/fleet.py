"""A whole fleet in one event loop: a controller, boards, a gateway, a registry, an operator, and the network between them.

In: a seed and a scenario, which is a coroutine that is given the fleet. Out: a transcript (time, actor, event), the hash of everything that
was said and stored, or the first promise that was broken. The same seed gives the same transcript in every process.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from controller.outages import Outages
from controller.store.base import Item
from controller.store.sql.sqlite import SqliteDatabase
from controller.trust.binding import Binding
from rkfleet.clock import format_time
from rkfleet.errors import AlreadyExists, FleetError, NotFound
from rkfleet.kinds import Board as BoardKind
from rkfleet.kinds import Model, ModelDeployment, Replica
from rkfleet.kinds.base import Object
from rkfleet.kinds.board import Runtime
from rkfleet.meta import Ref
from rkfleet.packaging import repository_name
from rkfleet.session import AssignmentAnswer, AssignmentOffer, Goodbye, Hello, Welcome
from rkfleet.v1 import agent_pb2 as pb
from rkfleet.wire import decode_controller_message
from tests.support.scenario.board import RUNTIME, Board, digest_of
from tests.support.scenario.controller import Controller, Registry
from tests.support.scenario.declared import missing
from tests.support.scenario.files import MemoryFile, StoreFile, settle
from tests.support.scenario.gateway import Gateway
from tests.support.scenario.lag import Lag
from tests.support.scenario.network import Network
from tests.support.scenario.promises import PromiseBroken, Promises
from tests.support.scenario.virtual import Process, VirtualClock, VirtualLoop
from tests.support.scenario.words import sentence_of

Json = dict[str, Any]
Scenario = Callable[["Fleet"], Awaitable[None]]

# From the moment at which every fault has ended to everything as declared. The longest chain: a board that was refused stays away for up
# to 90 s, then each of up to eight replicas is exchanged in turn, at most 30 s of drain and some ten of load, fetch and back-off each.
CONVERGE_SECONDS_MAX = 900.0
QUIET_SECONDS = 130.0  # More than any period that something is done again in (reports are asserted every 60 s).
CALM = Lag()


@functools.cache
def signing_key() -> tuple[bytes, bytes]:
    key = Ed25519PrivateKey.from_private_bytes(b"rkfleet scenario tests sign this".ljust(32)[:32])
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


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
        self.store_file = StoreFile(SqliteDatabase.open(self._sqlite) if self._sqlite else MemoryFile())
        self.store_file.committed = self.promises.committed
        self.store_file.now = loop.time
        self.outages = Outages(directory / "outages")
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
        """Say what a stored change means."""
        if said := sentence_of(old, new):
            self.say("store", said)

    # ---- Programs -----------------------------------------------------------------------------------------------------------------

    def start_controller(self) -> None:
        """Start the controller on what the store's file holds."""
        assert self.controller is None or not self.controller.process.alive
        self._starts += 1
        name = f"c-{self._starts}"
        self.say("controller", f"starts ({name})")
        if self._sqlite and self._starts > 1:
            self.store_file.file = SqliteDatabase.open(self._sqlite)
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

    async def add_board(self, name: str, slots: int = 2, slot_bytes: int = 1 << 30, runtimes: tuple[Runtime, ...] = (RUNTIME,)) -> Board:
        """Enrol a board and start its agent; `runtimes` are what it has, the newest first."""
        board = self.boards[name] = Board(self, name, slots * slot_bytes, runtimes)
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
                # As the API would: in the controller's process, which may die or stand still meanwhile.
                writing = controller.process.spawn(_call(call, controller.store), name="api")
                await asyncio.wait((writing,), timeout=5.0)
                if writing.done():
                    result, error = writing.result()
                    if error is None or isinstance(error, (NotFound, AlreadyExists)):
                        return result
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
        while found := missing(self):
            if self.loop.time() - began >= seconds:
                raise PromiseBroken(f"not as declared {seconds:.0f} s after the last fault: {'; '.join(found[:6])}")
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
        if found := missing(self):
            raise PromiseBroken(f"what was as declared is so no more: {'; '.join(found[:6])}")
        self.say("world", "nothing more is written")
        return took


async def _call(call: Callable[[Any], Awaitable[Any]], store: Any) -> tuple[Any, FleetError | None]:
    """Return the result or the error: nobody may be left to ask for it."""
    try:
        return await call(store), None
    except FleetError as error:
        return None, error


def ref_of(kind: type[Object], name: str) -> Ref:
    return Ref(kind.resource.name, "default" if kind.resource.namespaced else "", name)
