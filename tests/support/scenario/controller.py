"""The controller's process: everything that `controller/app.py` wires but its listeners and certificates.

Shipped: store and writer, caches, work queues, manager, all reconcilers, event recorder, hub, holders, status writers, minter, grants.
Replaced: the thread of the writer, the clock, the gRPC servicer, the registry's answers, join tokens (boards here have enrolled).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from controller.api.namespaces import DEFAULT_NAMESPACE, ensure_namespace
from controller.machinery.events import EventRecorder
from controller.machinery.manager import Manager
from controller.reconcilers.act import Applier
from controller.reconcilers.assignment import AssignmentMinter
from controller.reconcilers.loops import add_loops
from controller.sessions.hub import Hub
from controller.sessions.seams import Seams
from controller.store.base import Item, decode_item
from controller.store.sql.store import SqlStore
from controller.trust.pull_tokens import GrantIssuer, TokenSigner, TokenVerifier
from rkfleet.errors import Unavailable
from rkfleet.kinds import KINDS
from rkfleet.kinds import Board as BoardKind
from rkfleet.meta import Ref
from rkfleet.metrics import Metrics
from tests.support.scenario.files import open_store, settle
from tests.support.scenario.lag import LaggedStore
from tests.support.scenario.network import STREAM
from tests.support.scenario.virtual import Process

if TYPE_CHECKING:
    from tests.support.scenario.fleet import Fleet

REGISTRY_URL = "https://registry.test"


class Controller:
    """One life of the controller; make it as its process.

    Attributes:
        hub: Its sessions.
        store: What it reads and writes.
    """

    def __init__(self, fleet: Fleet, process: Process) -> None:
        self.process = process
        self._fleet = fleet
        clock, chance, metrics = fleet.clock, process.chance, Metrics("controller")
        self.store: SqlStore = open_store(fleet.store_file, process, fleet.loop, metrics, log_events_max=fleet.log_events_max)
        self._events = EventRecorder(self.store, clock, fleet.new_id, metrics=metrics)
        self.manager = Manager(clock=clock, random=chance, metrics=metrics)
        applier = Applier(self.store, clock, fleet.new_id, self._events)
        minter = AssignmentMinter(self.store, applier)
        seams = Seams(
            store=_FencedStore(self.store, fleet, self),  # type: ignore[arg-type]
            clock=clock,
            jitter=chance,
            new_uid=fleet.new_id,
            minter=minter,
            issuer=GrantIssuer(fleet.registry.signer, REGISTRY_URL, lambda board: self.hub.assignment_of(board)),  # noqa: PLW0108 (made below)
            tokens=_NoTokens(),
            record=self._events.record,
            metrics=metrics,
            on_presence=self._presence,
            samples=fleet.outages,
        )
        self.hub = Hub(fleet_id=fleet.fleet_id, controller=process.name, seams=seams)
        self._loops = add_loops(
            self.manager,
            LaggedStore(self.store, fleet.loop, f"{fleet.seed} {process.name}", fleet.lag),  # type: ignore[arg-type]
            KINDS,
            clock=clock,
            random=chance,
            applier=applier,
            minter=minter,
            sessions=self.hub,
            offers=self.hub,
            identities=self.hub,
            blobs=fleet.registry,
            metrics=metrics,
        )

    async def start(self) -> None:
        """Run until killed."""
        await ensure_namespace(self.store, DEFAULT_NAMESPACE, clock=self._fleet.clock, ids=self._fleet.new_id)
        self.process.spawn(self._events.run(), name="events")
        self._fleet.network.listener = (self.process, self.hub)
        await self.manager.run()

    def _presence(self, board: str) -> None:
        self._fleet.promises.presence(board, self.hub.presence(board)[0])
        self._loops.wake_board(board)


class Registry:
    """What boards fetch from and the model loop asks.

    Attributes:
        away: Whether nobody answers.
        spoils: Share of chunks of which a byte is wrong.
        breaks: Share of chunks after which the connection breaks.
    """

    def __init__(self, fleet: Fleet) -> None:
        private, public = fleet.signing_key
        self._fleet = fleet
        self.signer, self.verifier = TokenSigner(private, fleet.clock), TokenVerifier(public, fleet.clock)
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.away = False
        self.spoils = 0.0
        self.breaks = 0.0

    async def missing_blobs(self, repository: str, digests: Iterable[str]) -> frozenset[str]:
        """See `controller.reconcilers.views.Blobs`."""
        await settle(0.01)
        if self.away:
            raise Unavailable("the registry cannot be reached: connection refused")
        return frozenset(digest for digest in digests if (repository, digest) not in self.blobs)


class _NoTokens:
    def settles(self, name: str, key_sha256: str) -> bool:
        return False

    def settle(self, name: str, key_sha256: str) -> None:
        raise AssertionError("nothing to settle")


class _FencedStore:
    """The store as sessions hold it; sees to it that a session that was superseded changes no status any more."""

    def __init__(self, real: SqlStore, fleet: Fleet, controller: Controller) -> None:
        self._real, self._fleet, self._controller = real, fleet, controller

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def patch(self, ref: Ref, patch: Any, **keywords: Any) -> Item:
        superseded = self._superseded(ref)
        before = self._version(ref)
        item = await self._real.patch(ref, patch, **keywords)
        self._judge(superseded, before, item)
        return item

    async def patch_status(
        self, ref: Ref, uid: str, owner: str, fields: Mapping[str, Any], conditions: Sequence[Any], **keywords: Any
    ) -> Item:
        wire = STREAM.get()
        if owner == "session":
            item = await self._real.patch_status(ref, uid, owner, fields, conditions, **keywords)
            assert wire is not None
            wire.session = (ref.name, fields["session"]["number"])
            return item
        superseded = self._superseded(ref)
        before = self._version(ref)
        item = await self._real.patch_status(ref, uid, owner, fields, conditions, **keywords)
        self._judge(superseded, before, item)
        return item

    def _version(self, ref: Ref) -> str:
        found = self._real._catalog.find(ref)
        return found.resource_version if found else ""

    def _superseded(self, ref: Ref) -> str:
        """Return which session this write is of, if another one has taken its place by now."""
        wire = STREAM.get()
        if wire is None or wire.session is None:
            return ""
        board, number = wire.session
        if ref.resource == BoardKind.resource.name:
            found = self._real._catalog.find(ref)
            newest = decode_item(BoardKind, found).status.session.number if found else number
        else:  # Another object cannot be fenced by the store; here the hub's own knowledge counts.
            holder = self._controller.hub._in_session.get(board)
            newest = holder.taken.number if holder else number
        return f"session {number} of {board} (now {newest})" if newest != number else ""

    def _judge(self, superseded: str, before: str, item: Item) -> None:
        if superseded and item.resource_version != before:
            self._fleet.promises.broke(f"a superseded session writes nothing: {superseded} wrote to {item.ref.name}")
