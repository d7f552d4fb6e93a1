"""Real sessions for tests: hub, gRPC with mutual TLS on a free port, SQLite, certificates of the product; and a board's end of it.

The board's end is the agent's own runner with its own ledger and reports cell. The minter here numbers what a test puts into it, by the
rule of the assignment loop, so that sessions can be tested without planning.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.ledger import Ledger
from agent.reports import Reports
from agent.session.logs import Logs, NoLogs
from agent.session.runner import Machine, SessionRunner
from controller.machinery.events import EventRecorder
from controller.machinery.manager import Manager
from controller.outages import Outages
from controller.planning.assignment import next_number
from controller.reconcilers.act import Applier
from controller.reconcilers.assignment import AssignmentMinter
from controller.reconcilers.loops import add_loops
from controller.sessions.hub import Hub
from controller.sessions.seams import Seams, Tempo
from controller.sessions.servicer import serve_sessions
from controller.store.base import Store, decode_item
from controller.store.sql.store import SqlStore
from controller.trust.binding import Binding
from controller.trust.pki import Pki, PublicKey, read_request
from controller.trust.pull_tokens import GrantIssuer
from controller.trust.tokens import Tokens
from rkfleet.assignment import Assignment, assignment_sha256, encode_assignment
from rkfleet.clock import Clock, SystemClock, format_time
from rkfleet.disk import Disk, SystemDisk
from rkfleet.errors import Conflict
from rkfleet.identity import Identity
from rkfleet.kinds import KINDS
from rkfleet.kinds.board import Board
from rkfleet.kinds.event import Event
from rkfleet.kinds.replica import Replica
from rkfleet.meta import Ref
from rkfleet.metrics import Metrics
from rkfleet.report import BoardFacts, BoardState
from rkfleet.session import AssignmentOffer, Grant
from tests.support.api import new_id

QUICK = Tempo(heartbeat_seconds=0.5, report_interval_seconds_min=0.01, store_retry_seconds=0.05, refused_retry_seconds=0.1)
FACTS = BoardFacts(soc="cpu", memory_bytes=2 << 30, allocatable_memory_bytes=1 << 30)
PATIENCE_SECONDS = 10.0


async def until(level: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait on a level: return what `level` returns as soon as it is true; it may be a coroutine function."""
    async with asyncio.timeout(seconds):
        while True:
            found = level()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.005)  # noqa: TID251 (the one place where a test looks again)


def make_key() -> tuple[bytes, PublicKey]:
    """Return a new private key as PEM, and its public half as a request would show it."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]))
    pem = csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, read_request(pem)


class ListMinter:
    """Numbers the assignments that a test puts into `wanted`, by the rule of the assignment loop, without planning them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.wanted: dict[str, Assignment] = {}

    async def mint(self, board: str, held_number: int = 0, held_sha256: str = "") -> AssignmentOffer:
        body = encode_assignment(self.wanted.get(board, Assignment()))
        sha256 = assignment_sha256(body)
        while True:
            item = await self.store.get(board_ref(board))
            stored = decode_item(Board, item).status.assignment
            number = next_number(sha256, stored.number, stored.sha256, held_number, held_sha256)
            patch = {"status": {"assignment": {"number": number, "sha256": sha256}}}
            fence = {"status.assignment.number": stored.number or None}
            try:
                await self.store.patch(item.ref, patch, uid=item.uid, when=fence, subresource="status", now=SystemClock().now())
            except Conflict:
                continue
            return AssignmentOffer(number=number, body=body, sha256=sha256)


class EveryGrant:
    """Grants what is asked, except for digests of zeros."""

    async def grant(self, board: str, digests: tuple[str, ...]) -> Grant:
        if any(digest.endswith("0" * 64) for digest in digests):
            return Grant(request_id=0, refusal=f"{digests[0]} belongs to no replica assigned to board {board!r}")
        return Grant(request_id=0, sources=("https://registry.test/v2/default/m",), token="t", expires_in_seconds=900)


class EveryBlob:
    """A registry that holds everything."""

    async def missing_blobs(self, repository: str, digests: Iterable[str]) -> frozenset[str]:
        return frozenset()


def board_ref(name: str) -> Ref:
    return Ref(Board.resource.name, "", name)


def replica_ref(name: str) -> Ref:
    return Ref(Replica.resource.name, "default", name)


@dataclass
class SessionWorld:
    """A controller's session side; `presence` is the names of boards whose presence changed, in order."""

    directory: Path
    pki: Pki
    tokens: Tokens
    store: Store
    hub: Hub
    minter: ListMinter
    metrics: Metrics
    presence: list[str]
    outages: Outages
    port: int = 0
    serial: Iterator[int] = field(default_factory=itertools.count)

    async def want(self, name: str, assignment: Assignment) -> None:
        """Decide what a board must run, as the assignment loop would."""
        self.minter.wanted[name] = assignment
        self.hub.offer(name, await self.minter.mint(name))

    async def create_replica(self, name: str, board: str) -> str:
        """Make a Replica placed on a board, and return its uid."""
        ref, uid = replica_ref(name), new_id()
        metadata = {"name": name, "namespace": "default", "uid": uid, "creationTimestamp": format_time(SystemClock().now())}
        spec = {"deploymentName": "m", "revisionName": "m-1", "slot": "0", "boardName": board, "variantName": "any"}
        await self.store.create(ref, {"apiVersion": Replica.resource.api_version, "kind": "Replica", "metadata": metadata, "spec": spec})
        return uid

    async def replica(self, name: str) -> Replica:
        return decode_item(Replica, await self.store.get(replica_ref(name)))

    async def board(self, name: str) -> Board:
        return decode_item(Board, await self.store.get(board_ref(name)))

    async def events(self, reason: str) -> list[Event]:
        page = await self.store.list(Event.resource.name)
        found = [decode_item(Event, item) for item in page.items]
        return [event for event in found if event.reason == reason]

    async def create_board(self, name: str, binding: Binding, *, labels: Mapping[str, str] | None = None) -> None:
        metadata = {
            "name": name, "uid": new_id(), "creationTimestamp": format_time(SystemClock().now()),
            "annotations": binding.annotations(), "labels": dict(labels or {}),
        }  # fmt: skip
        body = {"apiVersion": Board.resource.api_version, "kind": "Board", "metadata": metadata, "spec": {}}
        await self.store.create(board_ref(name), body)

    async def join(self, name: str, *, machine_id: str = "machine-1", create: bool = True) -> Identity:
        """Return the identity of a new board, as enrolment would leave it."""
        private, public = make_key()
        if create:
            await self.create_board(name, Binding(public.sha256, machine_id))
        return self.write_identity(name, private, public)

    def write_identity(self, name: str, private: bytes, public: PublicKey) -> Identity:
        directory = self.directory / f"{name}-{next(self.serial)}" / "identity"
        directory.mkdir(parents=True)
        made = self.pki.issue_board(name, public, SystemClock().now())
        (directory / "key.pem").write_bytes(private)
        (directory / "cert.pem").write_text(made.client)
        (directory / "ca.pem").write_text(self.pki.ca_pem("servers"))
        return Identity(
            fleet_id=self.pki.fleet_id, name=name, controller="https://127.0.0.1:1", directory=directory,
            session_address=f"127.0.0.1:{self.port}",
        )  # fmt: skip


@contextlib.asynccontextmanager
async def session_world(
    directory: Path,
    *,
    tempo: Tempo = QUICK,
    wrap: Callable[[SqlStore], Store] = lambda store: store,
    port: int = 0,
    planning: bool = False,
    issuer: GrantIssuer | EveryGrant | None = None,
    loops: bool = False,
) -> AsyncIterator[SessionWorld]:
    """Run a controller's session side in this event loop.

    Args:
        directory: Of certificates, tokens and database; a second world on it continues the first.
        tempo: How often things happen.
        wrap: May put a faulty store around the real one.
        port: Where to listen; 0 for any.
        planning: Let the assignment loop's minter number assignments; the test's own `minter` then has no say.
        issuer: Gives out tokens for bytes; by default everything is granted.
        loops: Run the control loops over the store, as the controller does.
    """
    clock = SystemClock()
    directory.mkdir(parents=True, exist_ok=True)
    pki = Pki.ensure(directory / "pki", ["127.0.0.1"], clock.now(), "test-fleet")
    tokens = Tokens(directory / "tokens.json", clock, os.urandom)
    metrics = Metrics("controller")
    async with SqlStore.open(directory / "store.db", KINDS) as sql, asyncio.TaskGroup() as tasks:
        store = wrap(sql)
        recorder = EventRecorder(store, clock, new_id)
        recording = tasks.create_task(recorder.run())
        applier, manager = Applier(store, clock, new_id, recorder), Manager(clock=clock, random=random.Random(3))
        minter, planned = ListMinter(store), AssignmentMinter(store, applier)
        presence: list[str] = []
        outages = Outages(directory / "outages")

        def on_presence(board: str) -> None:
            presence.append(board)
            if loops:
                woken.wake_board(board)

        seams = Seams(
            store=store, clock=clock, jitter=random.Random(1), new_uid=new_id, minter=planned if planning else minter,
            issuer=issuer or EveryGrant(), tokens=tokens,
            record=recorder.record, metrics=metrics, on_presence=on_presence, tempo=tempo, samples=outages,
        )  # fmt: skip
        hub = Hub(fleet_id=pki.fleet_id, controller="c-0", seams=seams)
        woken = add_loops(
            manager, store, KINDS, clock=clock, random=random.Random(4), applier=applier, minter=planned, sessions=hub, offers=hub,
            identities=hub, blobs=EveryBlob(),
        )  # fmt: skip
        looping = tasks.create_task(manager.run()) if loops else None
        world = SessionWorld(directory, pki, tokens, store, hub, minter, metrics, presence, outages)
        async with serve_sessions(hub, pki, "127.0.0.1", port, metrics) as bound:
            world.port = bound
            yield world
        recording.cancel()
        if looping is not None:
            looping.cancel()


class RunningBoard:
    """The agent's end of a session, without an agent around it."""

    def __init__(
        self,
        identity: Identity,
        *,
        machine_id: str = "machine-1",
        boot_id: str = "boot-1",
        disk: Disk | None = None,
        clock: Clock | None = None,
        logs: Logs | None = None,
    ) -> None:
        self.ledger = Ledger(identity.directory.parent, disk or SystemDisk(), lambda: None)
        clock = clock or SystemClock()
        self.reports = Reports(clock)
        self.reports.publish(BoardState(assignment_number=self.ledger.held.number, facts=FACTS, serving_url="https://127.0.0.1:7490"))
        self.machine = Machine(machine_id=machine_id, boot_id=boot_id, facts=FACTS, serving_url="https://127.0.0.1:7490")
        self.runner = SessionRunner(
            identity=identity, machine=lambda: self.machine, clock=clock, jitter=random.Random(2), ledger=self.ledger,
            reports=self.reports, logs=logs or NoLogs(), on_change=self._note,
        )  # fmt: skip
        self.reasons: list[str] = []

    def _note(self) -> None:
        self.reasons.append(self.runner.connection.reason)

    @property
    def number(self) -> int:
        return self.runner.connection.number

    @property
    def reason(self) -> str:
        return self.runner.connection.reason


@contextlib.asynccontextmanager
async def running_board(identity: Identity, **options: Any) -> AsyncIterator[RunningBoard]:
    """Run a board's session in this event loop."""
    board = RunningBoard(identity, **options)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(board.runner.run())
        try:
            yield board
        finally:
            running.cancel()
