"""What must hold at every moment, in sentences; the first that is broken ends the scenario.

In: every commit of the store, every message that a board hears, every call of a board's disk, every start of a worker, every request of a
gateway. "By our own hand" means: by a write of the controller. What a board, an operator or the network does is nobody's broken promise, so
a check compares with what the controller could know when it decided: what was so at any moment of the last `KNOWN_SECONDS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agent.planning.values import Served
from agent.workers.base import WorkerSpec
from controller.machinery.workqueue import RETRY_SECONDS_MAX
from controller.planning import health
from controller.planning.rollout import resolve_strategy
from controller.store.broadcaster import Entry
from rkfleet import conditions
from rkfleet.assignment import Assignment, decode_assignment
from rkfleet.kinds import Board as BoardKind
from rkfleet.kinds import Model, ModelDeployment, ModelRevision, Replica
from rkfleet.kinds.base import Object, decode
from rkfleet.quantity import parse_bytes
from rkfleet.session import AssignmentOffer

if TYPE_CHECKING:
    from tests.support.scenario.board import Board
    from tests.support.scenario.fleet import Fleet

KNOWN_SECONDS = 0.25  # From the last look at the store to the commit of what was decided: a few commits.
ROUTE_SECONDS = 3.0  # How long a gateway may name a replica that is gone, beyond the longest lag of its watch.
MI = 1 << 20

KINDS = {kind.resource.name: kind for kind in (BoardKind, Model, ModelDeployment, ModelRevision, Replica)}


class PromiseBroken(AssertionError):
    """A sentence of this module does not hold."""


class Promises:
    """Watches one fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.objects: dict[str, dict[str, Any]] = {name: {} for name in KINDS}  # By resource and uid.
        self.commits = 0
        self.checks = 0
        self._limits: dict[str, list[tuple[float, int, int]]] = {}  # Minimum and most serving of a deployment, since when.
        self._not_ready_since: dict[str, float] = {}
        self._absent_since: dict[str, float] = {}
        self._present_since: dict[str, float] = {}
        self._board_made_at: dict[str, float] = {}
        self._gone_at: dict[str, float] = {}
        self._accepted: dict[tuple[str, int], str] = {}
        self._told: dict[str, str] = {}

    def broke(self, sentence: str) -> None:
        """End the scenario."""
        error = PromiseBroken(f"at {self._fleet.loop.time():.3f}: {sentence}")
        self._fleet.loop.broken = self._fleet.loop.broken or error

    def hold(self, holds: bool, sentence: Callable[[], str]) -> None:
        self.checks += 1
        if not holds:
            self.broke(sentence())

    def of(self, kind: type[Any]) -> list[Any]:
        return list(self.objects[kind.resource.name].values())

    def named(self, kind: type[Any], name: str) -> Any:
        return next((one for one in self.of(kind) if one.metadata.name == name), None)

    # ---- The store ----------------------------------------------------------------------------------------------------------------

    def committed(self, entries: Sequence[Entry]) -> None:
        """Look at what a commit changed, in order."""
        for entry in entries:
            self.commits += 1
            self._fleet.trace(f"{entry.type} {entry.item.ref.resource}/{entry.item.ref.name}", entry.item.body)
            kind = KINDS.get(entry.item.ref.resource)
            if kind is None:
                continue
            known = self.objects[kind.resource.name]
            old = known.get(entry.item.uid)
            new = decode(kind, entry.item.body) if entry.type != "DELETED" else None
            if new is None:
                known.pop(entry.item.uid, None)
                self._gone_at[entry.item.uid] = self._now
            else:
                known[entry.item.uid] = new
            self._look(old, new)
            self._fleet.tell(old, new)

    @property
    def _now(self) -> float:
        return self._fleet.loop.time()

    def _look(self, old: Any, new: Any) -> None:
        match new or old:
            case Replica():
                self._look_at_replica(old, new)
            case ModelDeployment():
                if new is not None and (old is None or old.spec != new.spec):
                    self._note_limits(new)
            case BoardKind():
                if old is None:
                    self._board_made_at[new.metadata.name] = self._now
                if new is not None and conditions.is_true(new.status.conditions, conditions.READY):
                    self.hold(
                        new.status.session.number > 0,
                        lambda: f"a board is Ready only in a session of its own: {new.metadata.name} has none",
                    )
                if old is not None and new is not None:
                    before, after = old.status.assignment, new.status.assignment
                    self.hold(
                        after.number > before.number or (after.number, after.sha256) == (before.number, before.sha256),
                        lambda: f"numbers of assignments rise with every change: {new.metadata.name} had {before}, has {after}",
                    )

    def _look_at_replica(self, old: Replica | None, new: Replica | None) -> None:
        subject = new or old
        assert subject is not None
        name = subject.metadata.name
        serves = new is not None and new.spec.activation == "Serving"
        served = old is not None and old.spec.activation == "Serving"
        if serves and new is not None and conditions.is_true(new.status.conditions, conditions.READY):
            self._not_ready_since.pop(new.metadata.uid, None)
        else:
            self._not_ready_since.setdefault(subject.metadata.uid, self._now)
        if old is not None and new is not None and old.spec.board_name:
            before, after = (old.spec.board_name, old.spec.variant_name), (new.spec.board_name, new.spec.variant_name)
            self.hold(before == after, lambda: f"a board is set once: {name} was on {before} and is on {after}")
        owner = _owner(subject)
        deployment = self.objects[ModelDeployment.resource.name].get(owner)
        if deployment is None or deployment.metadata.deletion_timestamp:
            return
        others = [one for one in self.of(Replica) if _owner(one) == owner and one.metadata.uid != subject.metadata.uid]
        if old is None and new is not None:
            self.hold(
                all(one.spec.slot != new.spec.slot for one in others), lambda: f"a slot has one replica: {name} is a second one of {owner}"
            )
        if serves and not served:
            most = max(most for _, _, most in self._known_limits(owner))
            serving = 1 + sum(one.spec.activation == "Serving" for one in others)
            self.hold(
                serving <= most, lambda: f"never more than replicas + maxSurge serve by our hand: {serving} with {name}, at most {most}"
            )
        if served and not serves and old is not None:
            self._look_at_minimum(owner, old, others)
        if new is not None and new.spec.board_name and not (old and old.spec.board_name):
            self._look_at_memory(new)

    def _look_at_minimum(self, owner: str, victim: Replica, others: list[Replica]) -> None:
        if not conditions.is_true(victim.status.conditions, conditions.READY) or not self._was_there_all_along(victim.spec.board_name):
            return  # It did not serve, as far as the controller could know.
        minimum = min(minimum for _, minimum, _ in self._known_limits(owner))
        left = [one.metadata.name for one in others if one.spec.activation == "Serving" and self._was_available(one)]
        self.hold(
            len(left) >= minimum,
            lambda: f"never below the minimum by our hand: {victim.metadata.name} was taken away with {left} available of {minimum}",
        )

    def _was_available(self, replica: Replica) -> bool:
        since = self._not_ready_since.get(replica.metadata.uid)
        return (since is None or self._now - since <= KNOWN_SECONDS) and self._present(replica.spec.board_name, KNOWN_SECONDS)

    def _present(self, board: str, seconds: float) -> bool:
        since = self._absent_since.get(board, 0.0)
        return since == float("inf") or (since > 0.0 and self._now - since <= seconds)

    def _was_there_all_along(self, board: str) -> bool:
        since = self._present_since.get(board)
        exists = self.named(BoardKind, board) is not None and self._now - self._board_made_at.get(board, 0.0) > KNOWN_SECONDS
        return exists and since is not None and self._now - since > KNOWN_SECONDS

    def presence(self, board: str, connected: bool) -> None:
        """The hub says that a board came or went; what it says, the planners know."""
        self._absent_since[board] = float("inf") if connected else self._now
        if connected:
            self._present_since.setdefault(board, self._now)
        else:
            self._present_since.pop(board, None)

    def controller_began(self) -> None:
        """A new controller knows no board yet."""
        self._absent_since.clear()
        self._present_since.clear()

    def _note_limits(self, deployment: ModelDeployment) -> None:
        strategy = deployment.spec.strategy
        unavailable, surge = resolve_strategy(deployment.spec.replicas, strategy.max_unavailable, strategy.max_surge)
        minimum = max(deployment.spec.replicas - unavailable, 0)
        self._limits.setdefault(deployment.metadata.uid, []).append((self._now, minimum, deployment.spec.replicas + surge))

    def _known_limits(self, owner: str) -> list[tuple[float, int, int]]:
        """Return the newest limits, and those that held until a moment ago."""
        limits = self._limits[owner]
        return [
            one for one, after in zip(limits, [*limits[1:], None], strict=True) if after is None or self._now - after[0] <= KNOWN_SECONDS
        ]

    def _look_at_memory(self, placed: Replica) -> None:
        board = self._fleet.boards.get(placed.spec.board_name)
        if board is None:
            return
        there = {one.metadata.uid: one for one in self.of(Replica) if one.spec.board_name == placed.spec.board_name}
        need = {uid: self.memory_of(one) for uid, one in there.items()}
        shared = {one.spec.replaces: max(need[uid], need[one.spec.replaces]) for uid, one in there.items() if one.spec.replaces in there}
        pairs = {uid for uid, one in there.items() if one.spec.replaces in there} | set(shared)
        total = sum(shared.values()) + sum(memory for uid, memory in need.items() if uid not in pairs)
        self.hold(
            total <= board.memory_bytes,
            lambda: f"memory is promised once: {total // MI} of {board.memory_bytes // MI} MiB on {board.name} with {placed.metadata.name}",
        )

    def memory_of(self, replica: Replica) -> int:
        revision = self.named(ModelRevision, replica.spec.revision_name)
        model = self.named(Model, revision.spec.template.model) if revision else None
        return parse_bytes(model.spec.variants[0].requires.memory) if model else 0

    # ---- What boards hear ---------------------------------------------------------------------------------------------------------

    def heard(self, board: str, message: Any) -> None:
        """A board or the controller decoded a message."""
        if isinstance(message, AssignmentOffer):
            for replica in decode_assignment(message.body).replicas:
                first = self._told.setdefault(replica.uid, board)
                self.hold(first == board, lambda: f"a replica is told to one board: {replica.name} to {first} and to {board}")  # noqa: B023

    # ---- Ledger -------------------------------------------------------------------------------------------------------------------

    def accepted(self, board: Board, number: int, sha256: str) -> None:
        """The board is about to answer ACCEPTED."""
        before = self._accepted.setdefault((board.name, number), sha256)
        self.hold(
            before == sha256,
            lambda: f"a board accepts one content for a number: {board.name} took {number} as {before[:8]} and {sha256[:8]}",
        )
        self.hold(number >= board.accepted, lambda: f"a ledger never goes back: {board.name} accepted {number} after {board.accepted}")
        board.accepted, board.ledger_spoiled = number, False
        self.hold(
            _ledger_number(board.disk.directory) >= number,
            lambda: f"what was accepted is on disk: {board.name} accepted {number}, the disk holds {_ledger_number(board.disk.directory)}",
        )

    def forget_accepted(self, board: Board) -> None:
        """The board's disk has lost its ledger: what it accepted is known to nobody, if its Board was deleted too."""
        self._accepted = {key: value for key, value in self._accepted.items() if key[0] != board.name}

    def ledger_read(self, board: Board, number: int) -> None:
        """The board has booted and holds this."""
        self.hold(number >= board.accepted, lambda: f"a board remembers what it accepted: {board.name} holds {number} of {board.accepted}")

    def ledger_looked(self, board: Board) -> Callable[[Path], None]:
        return lambda directory: self._look_at_ledger(board, directory)

    def ledger_left(self, board: Board) -> None:
        self._look_at_ledger(board, board.disk.directory)

    def _look_at_ledger(self, board: Board, directory: Path) -> None:
        if board.ledger_spoiled:
            return  # Until the next assignment is written.
        try:
            number = _ledger_number(directory)
        except msgspec.MsgspecError as error:
            self.broke(f"the ledger is readable at every moment: {board.name}: {error}")
        else:
            self.hold(
                number >= board.accepted, lambda: f"the ledger holds old or new: {board.name} holds {number}, accepted was {board.accepted}"
            )

    # ---- Workers and routes -------------------------------------------------------------------------------------------------------

    def starting(self, board: Board, spec: WorkerSpec, running: Sequence[Any], verified: Mapping[str, float], ended: float) -> None:
        """A worker is about to start beside those that run."""
        path = Path(spec.model_path)
        digest = f"sha256:{path.name}"
        moment = verified.get(digest, -2.0)
        self.hold(
            moment >= ended,
            lambda: f"every load is of verified files: {board.name} starts {spec.name} of {moment:.1f} after {ended:.1f}",
        )
        if board.rotten.get(path.name, -1.0) <= moment:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            self.hold(found == path.name, lambda: f"no worker loads other bytes: {board.name} starts {spec.name} from a spoiled file")
        total = spec.memory_bytes + sum(one.spec.memory_bytes for one in running)
        names = [one.spec.name for one in running]
        self.hold(
            total <= board.memory_bytes,
            lambda: f"never more is loaded than fits: {spec.name} beside {names}: {total // MI} of {board.memory_bytes // MI} MiB",
        )

    def published(self, board: Board, served: Sequence[Served], assignment: Assignment) -> None:
        """A board made its routes."""
        serving = {one.uid for one in assignment.replicas if one.activation == "Serving"}
        for one in served:
            takes = bool(one.endpoint) and not one.draining
            self.hold(
                not takes or one.replica.uid in serving,
                lambda: f"a board answers for what it is assigned: {board.name} routes to {one.replica.name}",  # noqa: B023
            )

    def routed(self, target: Any) -> None:
        """A gateway is about to ask a replica."""
        gone = self._gone_at.get(target.uid)
        controller = self._fleet.controller
        if controller is None or not controller.process.alive or controller.process.stopped:
            return
        connected, since = controller.hub.presence(target.board)
        if not connected:
            self._look_at_route_to_absent(target, since, controller.process.resumed_at)
        if gone is None:
            return
        since = max(gone, self._fleet.controller_up_at)
        allowed = ROUTE_SECONDS + self._fleet.lag.limit_so_far
        self.hold(
            self._now - since <= allowed,
            lambda: f"gateways route to replicas that exist: {target.replica} is gone for {self._now - gone:.1f} s",
        )

    def _look_at_route_to_absent(self, target: Any, since: float, resumed_at: float) -> None:
        # Health may have to wait for two caches, and the gateway for its own.
        known = max(since + health.SILENT_SECONDS, resumed_at, self._fleet.store_file.full_at + RETRY_SECONDS_MAX)
        allowed = known + ROUTE_SECONDS + 3 * self._fleet.lag.limit_so_far
        self.hold(
            self._now <= allowed,
            lambda: f"gateways pass over boards that are away: {target.replica} on {target.board}, away for {self._now - since:.1f} s",
        )


def _owner(replica: Object) -> str:
    return next((one.uid for one in replica.metadata.owner_references), "")


def _ledger_number(directory: Path) -> int:
    """Return the number that the board would boot with: of `ledger.json`, else of the one before; 0 for none."""
    for name in ("ledger.json", "ledger.prev.json"):
        try:
            found: int = msgspec.json.decode((directory / name).read_bytes(), type=_Numbered).number
        except (FileNotFoundError, msgspec.DecodeError):
            continue
        return found
    return 0


class _Numbered(msgspec.Struct):
    number: int
    sha256: str
    body: str
