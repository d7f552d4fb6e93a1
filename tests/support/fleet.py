"""A whole fleet in memory for tests of the loops: a store, boards, and leaders whose caches lag as much as a test wants.

Real are the reconcilers, planners, caches with their indexes, and the rules of a write (`controller.store.writes`); the log, the boards
and the passing of time are modelled, so that Hypothesis can try thousands of moments. A pass of a loop is atomic against everything else
here: what two processes could do within the same millisecond is the store's business (it refuses an old leader), not the planners'.

Every write is watched. `Fleet` raises AssertionError at the write that breaks a promise: never below the minimum available by our own
hand, with minReadySeconds counted, never above replicas + maxSurge, never above a board's memory, a board set once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from controller.planning.assignment import Offer
from controller.planning.rollout import resolve_strategy
from controller.reconcilers import placement
from controller.reconcilers.act import Applier
from controller.reconcilers.assignment import AssignmentMinter, AssignmentReconciler
from controller.reconcilers.deployment import DeploymentReconciler
from controller.reconcilers.garbage import GarbageReconciler
from controller.reconcilers.health import HealthReconciler
from controller.reconcilers.views import PresenceReader, make_views
from controller.store import writes
from controller.store.base import Change, Item, Page, Selection, decode_item
from controller.store.selecting import Selector
from rkfleet import conditions
from rkfleet.clock import format_time, parse_time
from rkfleet.errors import FleetError, NotFound, Unavailable
from rkfleet.kinds import KINDS, Board, Model, ModelDeployment, Replica
from rkfleet.kinds.base import Object
from rkfleet.kinds.board import TAINT_DRAIN
from rkfleet.meta import Ref
from rkfleet.metrics import Metrics
from rkfleet.quantity import parse_bytes
from tests.support.clocks import ManualClock
from tests.support.sim_board import SimBoard, model_spec

Json = dict[str, Any]
MI = 2**20
LONG_SECONDS = 130.0  # More than any delay that a plan waits for.
SMALL, LARGE = "1Gi", "2Gi"  # What a replica of each model reserves; boards have 2Gi, so one holds two small ones or one large one.


class MemoryStore:
    """Keeps objects by the rules of `controller.store.writes` and tells `on_write` of every change before it is kept."""

    def __init__(self, on_write: Callable[[Change, Item | None], None]) -> None:
        self.items: dict[Ref, Item] = {}
        self.revision = 0
        self.log: dict[str, list[Change]] = {kind.resource.name: [] for kind in KINDS}
        self.writes = 0
        self.writes_left: int | None = None  # Then the process that writes is dead.
        self._on_write = on_write

    async def get(self, ref: Ref) -> Item:
        if ref not in self.items:
            raise NotFound(f"{ref} not found")
        return self.items[ref]

    async def list(self, resource: str, selection: Selection = Selection(), *, limit: int = 0, continue_token: str = "") -> Page:
        selector = Selector(selection)
        chosen = [item for ref, item in sorted(self.items.items()) if ref.resource == resource and selector.selects(item)]
        return Page(chosen, str(self.revision))

    async def create(self, ref: Ref, obj: Json, *, keep_status: bool = False) -> Item:
        return self._write(writes.Create(ref, obj, keep_status))

    async def update(self, ref: Ref, obj: Json, *, resource_version: str = "", uid: str = "", subresource: Any = "", now: datetime) -> Item:
        return self._write(writes.Update(ref, obj, resource_version, uid, subresource, now))

    async def patch(
        self, ref: Ref, patch: Json, *, resource_version: str = "", uid: str = "", when: Mapping[str, Any] | None = None,
        subresource: Any = "", now: datetime,
    ) -> Item:  # fmt: skip
        return self._write(writes.Patch(ref, patch, resource_version, uid, when or {}, subresource, now))

    async def patch_status(
        self, ref: Ref, uid: str, owner: str, fields: Mapping[str, Any], said: Sequence[Json], *,
        when: Mapping[str, Any] | None = None, now: datetime,
    ) -> Item:  # fmt: skip
        return self._write(writes.PatchStatus(ref, uid, owner, fields, said, when or {}, now))

    async def delete(self, ref: Ref, *, uid: str = "", resource_version: str = "", propagation: Any = "Background", now: datetime) -> Item:
        return self._write(writes.Delete(ref, uid, resource_version, propagation, now))

    async def watch(self, resource: str, selection: Selection = Selection(), *, resource_version: str, bookmarks: bool = False) -> Any:
        raise AssertionError("caches are fed by hand here")

    def all(self, kind: type[Any]) -> list[Any]:
        return [decode_item(kind, item) for ref, item in sorted(self.items.items()) if ref.resource == kind.resource.name]

    def _write(self, write: writes.Write) -> Item:
        kind = KINDS.find(write.ref.resource)
        assert kind is not None
        if self.writes_left is not None:
            self.writes_left -= 1
            if self.writes_left < 0:
                raise Unavailable("the process is gone")
        before = self.items.get(write.ref)
        outcome = writes.evaluate(write, before, kind.resource, self.revision + 1)
        if outcome.type:
            self.revision += 1
            self.writes += 1
            change = Change(outcome.type, str(self.revision), outcome.item)
            self._on_write(change, before)
            self.log[write.ref.resource].append(change)
            if outcome.type == "DELETED":
                del self.items[write.ref]
            else:
                self.items[write.ref] = outcome.item
        return outcome.item


class Leader:
    """One process that believes it leads: its own caches, which see nothing until they are told to."""

    def __init__(self, fleet: Fleet) -> None:
        store, clock = fleet.store, fleet.clock
        self._fleet = fleet
        self.views = make_views(store, clock=clock, random=random.Random(0), metrics=fleet.metrics)
        self._seen = {cache.kind.resource.name: 0 for cache in self.views}
        applier = Applier(store, clock, fleet.new_id, fleet)
        presence = PresenceReader(fleet, clock)
        minter = AssignmentMinter(store, applier)
        self.minter = minter
        self._deployment = DeploymentReconciler(self.views, store, presence, applier, clock)
        self._placement = placement.PlacementReconciler(self.views, applier)
        self._health = HealthReconciler(self.views, presence, applier)
        self._garbage = GarbageReconciler(self.views, store, KINDS, applier)
        self._assignment = AssignmentReconciler(minter, fleet, presence)

    def see(self, resource: str, count: int | None = None) -> None:
        """Let one cache see the next changes; None for all of them."""
        cache = next(cache for cache in self.views if cache.kind.resource.name == resource)
        log, seen = self._fleet.store.log[resource], self._seen[resource]
        until = len(log) if count is None else min(seen + count, len(log))
        for change in log[seen:until]:
            cache._take(change)
        self._seen[resource] = until

    def see_all(self) -> None:
        for resource in self._seen:
            self.see(resource)

    async def run(self, loop: str) -> None:
        """Run one loop over all of its keys, as far as its caches know them; a refused write ends that key's pass."""
        boards = [Ref(Board.resource.name, "", name) for name in self._fleet.boards]
        match loop:
            case "deployment":
                keys = [(self._deployment, one.ref) for one in self.views.deployments.snapshot()]
            case "placement":
                keys = [(self._placement, placement.KEY)]
            case "health":
                keys = [(self._health, board) for board in boards]
            case "garbage":
                keys = [(self._garbage, one.ref) for cache in (self.views.revisions, self.views.replicas) for one in cache.snapshot()]
            case "assignment":
                keys = [(self._assignment, board) for board in boards]
            case _:
                raise AssertionError(loop)
        for reconciler, key in keys:
            try:
                await reconciler.reconcile(key)
            except FleetError as error:
                self._fleet.refusals.append(f"{loop} {key.name}: {error.message}")

    LOOPS = ("garbage", "deployment", "placement", "assignment", "health")

    async def run_all(self) -> None:
        for loop in self.LOOPS:
            self.see_all()
            await self.run(loop)
        self.see_all()


class Fleet:
    """Store, boards and leaders; also the sessions (`presence`, `offer`) and the event recorder of the leaders."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.clock.advance(1000.0)
        self.metrics = Metrics("controller")
        self.store = MemoryStore(self._check)
        self.boards: dict[str, SimBoard] = {}
        self.events: list[tuple[str, str]] = []
        self.refusals: list[str] = []
        self._ids = 0

    def new_id(self) -> str:
        self._ids += 1
        return f"uid-{self._ids:04}"

    # What leaders ask and tell.

    def presence(self, board: str) -> tuple[bool, float]:
        found = self.boards.get(board)
        return (found.connected, found.since) if found else (False, 0.0)

    def offer(self, board: str, offer: Offer) -> None:
        if self.boards[board].connected:
            self.boards[board].take(offer)

    def record(self, ref: Ref, uid: str, type: str, reason: str, message: str, *, kind: str, api_version: str) -> None:
        self.events.append((reason, message))

    # What operators and boards do.

    async def create(self, kind: type[Object], name: str, spec: Json, *, namespace: str = "default", labels: Json | None = None) -> Item:
        ref = Ref(kind.resource.name, namespace if kind.resource.namespaced else "", name)
        metadata = {"name": name, "uid": self.new_id(), "creationTimestamp": format_time(self.clock.now()), "labels": labels or {}}
        return await self.store.create(ref, {"metadata": metadata, "spec": spec})

    async def create_model(self, name: str, memory: str = SMALL, digest: str = "a") -> Item:
        return await self.create(Model, name, model_spec(memory, digest))

    async def create_board(self, name: str, memory: str = "2Gi") -> SimBoard:
        item = await self.create(Board, name, {})
        board = self.boards[name] = SimBoard(name, item.uid, memory)
        return board

    async def connect(self, board: SimBoard, leader: Leader) -> None:
        """Open a session: fenced number, facts, first offer."""
        if not board.connected:
            await board.open_session(self.store, self.clock.now(), self.clock.monotonic())
            await board.report(self.store, self.clock.now())
            board.take(await leader.minter.mint(board.name, board.number, board.sha256))

    def disconnect(self, board: SimBoard) -> None:
        board.connected, board.since = False, self.clock.monotonic()

    async def work(self, *boards: SimBoard) -> None:
        """Let boards do a step each, all of them by default, and report."""
        for board in boards or tuple(self.boards.values()):
            board.work()
            await board.report(self.store, self.clock.now())

    async def cordon(self, board: str, unschedulable: bool = True) -> None:
        await self.store.patch(Ref(Board.resource.name, "", board), {"spec": {"unschedulable": unschedulable}}, now=self.clock.now())

    async def taint(self, board: str, effect: str = "NoExecute") -> None:
        """Give a board the taint of a drain with this effect; an empty effect takes it away."""
        taints = [{"key": TAINT_DRAIN, "effect": effect}] if effect else None
        await self.store.patch(Ref(Board.resource.name, "", board), {"spec": {"taints": taints}}, now=self.clock.now())

    async def edit(self, deployment: str, spec: Json) -> None:
        ref = Ref(ModelDeployment.resource.name, "default", deployment)
        if ref in self.store.items:
            await self.store.patch(ref, {"spec": spec}, now=self.clock.now())

    # The promises.

    def replicas_of(self, deployment: ModelDeployment) -> list[Replica]:
        uid = deployment.metadata.uid
        return [one for one in self.store.all(Replica) if any(owner.uid == uid for owner in one.metadata.owner_references)]

    def _check(self, change: Change, before: Item | None) -> None:
        assert change.item is not None
        if change.item.ref.resource != Replica.resource.name:
            return
        new = decode_item(Replica, change.item) if change.type != "DELETED" else None
        old = decode_item(Replica, before) if before else None
        if old and new and old.spec.board_name:
            assert (new.spec.board_name, new.spec.variant_name) == (old.spec.board_name, old.spec.variant_name), "a board is set once"
        subject = new or old
        assert subject is not None
        deployment = self._deployment_of(subject)
        if deployment is None:
            return
        others = [one for one in self.replicas_of(deployment) if one.metadata.uid != subject.metadata.uid]
        if new and new.spec.activation == "Serving" and (old is None or old.spec.activation != "Serving"):
            self._check_surge(deployment, [*others, new])
        if old and old.spec.activation == "Serving" and (new is None or new.spec.activation != "Serving"):
            self._check_minimum(deployment, old, others)
        if new and old and new.spec.board_name and not old.spec.board_name:
            self._check_memory(new)

    def _deployment_of(self, replica: Replica) -> ModelDeployment | None:
        ref = Ref(ModelDeployment.resource.name, replica.metadata.namespace, replica.spec.deployment_name)
        found = decode_item(ModelDeployment, self.store.items[ref]) if ref in self.store.items else None
        owners = {owner.uid for owner in replica.metadata.owner_references}
        return found if found is not None and found.metadata.uid in owners else None

    @staticmethod
    def _strategy(deployment: ModelDeployment) -> tuple[int, int]:
        strategy = deployment.spec.strategy
        return resolve_strategy(deployment.spec.replicas, strategy.max_unavailable, strategy.max_surge)

    def _check_surge(self, deployment: ModelDeployment, replicas: list[Replica]) -> None:
        _, surge = self._strategy(deployment)
        serving = sum(one.spec.activation == "Serving" for one in replicas)
        limit = deployment.spec.replicas + surge
        assert serving <= limit, f"{serving} replicas serve, replicas + maxSurge is {limit}"

    def _check_minimum(self, deployment: ModelDeployment, victim: Replica, others: list[Replica]) -> None:
        """An available replica may be taken away only if the minimum is available without it; a lost board's is gone already."""
        board = self.boards.get(victim.spec.board_name)
        if not conditions.is_true(victim.status.conditions, conditions.READY) or board is None or not board.connected:
            return
        unavailable, _ = self._strategy(deployment)
        seconds = float(deployment.spec.min_ready_seconds) if self._available(victim, deployment.spec.min_ready_seconds) else 0.0
        left = sum(self._available(one, seconds) for one in others)
        minimum = max(deployment.spec.replicas - unavailable, 0)
        assert left >= minimum, f"{victim.metadata.name} was taken away with {left} others available, the minimum is {minimum}"

    def _available(self, replica: Replica, min_ready_seconds: float) -> bool:
        board = self.boards.get(replica.spec.board_name)
        ready = conditions.find(replica.status.conditions, conditions.READY)
        if replica.spec.activation != "Serving" or ready is None or ready.status != "True" or board is None or not board.connected:
            return False
        return (self.clock.now() - parse_time(ready.last_transition_time)).total_seconds() >= min_ready_seconds

    def _check_memory(self, placed: Replica) -> None:
        board = self.boards[placed.spec.board_name]
        there = {one.metadata.uid: one for one in (*self.store.all(Replica), placed) if one.spec.board_name == board.name}
        need = {uid: self._memory_of(one) for uid, one in there.items()}
        shared = {one.spec.replaces: max(need[uid], need[one.spec.replaces]) for uid, one in there.items() if one.spec.replaces in there}
        pairs = {uid for uid, one in there.items() if one.spec.replaces in there} | set(shared)
        total = sum(shared.values()) + sum(memory for uid, memory in need.items() if uid not in pairs)
        assert total <= parse_bytes(board.memory), f"{total // MI} MiB are promised on {board.name}, which has {board.memory}"

    def _memory_of(self, replica: Replica) -> int:
        revision = self.store.items[Ref("modelrevisions.rkfleet.dev", "default", replica.spec.revision_name)]  # type: ignore[arg-type]
        name = msgspec.json.decode(revision.body)["spec"]["template"]["model"]
        model = decode_item(Model, self.store.items[Ref(Model.resource.name, "default", name)])
        return parse_bytes(model.spec.variants[0].requires.memory)

    def check_boards(self) -> None:
        """No board has more loaded than it holds, and it reports no more than one number per content."""
        for board in self.boards.values():
            assert sum(one.memory_bytes for one in board.loaded.values()) <= parse_bytes(board.memory)

    async def settle(self, leader: Leader, *, rounds: int, seconds: float = 5.0) -> int:
        """Let time pass with everything working until nothing more is written, also not much later; return the rounds that it took."""
        quiet = 0
        for number in range(rounds):
            before = self.store.writes
            await leader.run_all()
            await self.work()
            leader.see_all()
            quiet = quiet + 1 if self.store.writes == before else 0
            if quiet == 4:
                return number
            self.clock.advance(LONG_SECONDS if quiet == 2 else seconds)
        raise AssertionError(f"no fixpoint after {rounds} rounds; refused: {self.refusals[-5:]}")
