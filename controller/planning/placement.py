"""Replicas without a board -> bindings, or the sentence that says why not.

In: every Replica, Board, and what the Replicas' deployments, revisions and Models say (`Fleet`). Out: a `Plan` with one `Bind` for each
replica that fits somewhere now, and the `Scheduled` condition of every replica whose condition is not the true one.
`reconcilers/placement.py` observes and calls. Placement is planned for all waiting replicas in one go, each seeing the bindings of those
before it, so one plan never gives the same memory away twice.

Memory of a board is held by replicas placed on it and by workers that still run there though no Replica asks for them any more.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from controller.planning import events, scoring
from controller.planning.actions import Action, Bind, Plan, Value, WriteStatus
from controller.planning.feasibility import BoardLoad, Fit, Misfit, Need, Reservation, check_board
from rkfleet import conditions
from rkfleet.conditions import Condition, condition, explain
from rkfleet.kinds.board import Board
from rkfleet.kinds.deployment import ModelDeployment, Serving
from rkfleet.kinds.model import Model, Variant
from rkfleet.kinds.replica import Replica
from rkfleet.kinds.revision import ModelRevision
from rkfleet.quantity import parse_bytes

__all__ = ["BINDINGS_MAX", "Fleet", "board_loads", "find_model", "find_variant", "plan_placement"]

# In one plan: more would be planned on a view that is old by the time the last one is written, fewer would look at a large fleet too often
# (80 ms for 5,000 boards).
BINDINGS_MAX: Final = 256
MESSAGE_LENGTH_MAX: Final = 16_384  # Half of what a condition may hold; 5,000 board names would be 60,000 characters.


class Fleet(Value, frozen=True, kw_only=True):
    """All that placement may depend on; mappings are by name, those of namespaced kinds by (namespace, name)."""

    boards: tuple[Board, ...]
    replicas: tuple[Replica, ...]
    deployments: Mapping[tuple[str, str], ModelDeployment]
    revisions: Mapping[tuple[str, str], ModelRevision]
    models: Mapping[tuple[str, str], Model]


def plan_placement(fleet: Fleet) -> Plan:
    """Return the bindings that are possible now and the `Scheduled` conditions that are not as they should be."""
    loads = board_loads(fleet)
    candidates: dict[tuple[str, ...], _Candidates] = {}
    binds: list[Action] = []
    said: list[Action] = []
    unplaced: list[tuple[Replica, _Candidates]] = []
    bindings = 0
    waiters = sorted((one for one in fleet.replicas if not one.spec.board_name and not one.metadata.deletion_timestamp), key=_order)
    for replica in waiters:
        need = _need(replica, fleet)
        if need is None:
            continue
        if bindings == BINDINGS_MAX:
            # What is said of them can wait until all have a board: the boards cannot.
            return Plan(actions=tuple(binds), waiting="the first bindings to be written", again_after_seconds=0.0)
        same = (need.deployment, replica.spec.revision_name)
        if same not in candidates:
            candidates[same] = _Candidates(need, loads)
        found = _in_place(replica, need, loads) or candidates[same].best()
        if found is None:
            unplaced.append((replica, candidates[same]))
            continue
        name, fit = found
        bindings += 1
        loads[name] = _with(loads[name], replica.metadata.uid, fit.reservation)
        for others in candidates.values():
            others.renew(name)
        binds.append(_bind(replica, name, fit.variant.name))
        said.extend(_write(replica, _scheduled(name, fit.variant.name)))
    # Said last, about what is left after all bindings.
    explained = [(replica, _unscheduled(replica, excluded.misfits())) for replica, excluded in unplaced]
    for replica, why in explained:
        said.extend(_write(replica, why))
    waiting = explained[0][1].message if explained else ""
    for replica in fleet.replicas:
        if replica.spec.board_name:
            said.extend(_write(replica, _scheduled(replica.spec.board_name, replica.spec.variant_name)))
    return Plan(actions=(*binds, *said), waiting=waiting)


class _Candidates:
    """All boards as one need sees them, the best first. A binding changes one board, so many equal replicas cost one look at the fleet."""

    def __init__(self, need: Need, loads: Mapping[str, BoardLoad]) -> None:
        self._need: Final = need
        self._loads: Final = loads
        self._found: Final[dict[str, Fit | Misfit]] = {}
        self._ranks: Final[dict[str, scoring.Rank]] = {}
        self._heap: Final[list[scoring.Rank]] = []
        for name in loads:
            self.renew(name)

    def renew(self, name: str) -> None:
        """Look at one board again."""
        found = self._found[name] = check_board(self._loads[name], self._need)
        self._ranks.pop(name, None)
        if isinstance(found, Fit):
            rank = self._ranks[name] = scoring.rank(self._loads[name], found, self._need)
            heapq.heappush(self._heap, rank)

    def best(self) -> tuple[str, Fit] | None:
        """Return the board to take and how it fits, or None."""
        while self._heap:
            name = self._heap[0][-1]
            found = self._found[name]
            if self._ranks.get(name) == self._heap[0] and isinstance(found, Fit):
                return name, found
            heapq.heappop(self._heap)
        return None

    def misfits(self) -> dict[str, Misfit]:
        """Return why each board is excluded."""
        return {name: found for name, found in self._found.items() if isinstance(found, Misfit)}


def _in_place(replica: Replica, need: Need, loads: Mapping[str, BoardLoad]) -> tuple[str, Fit] | None:
    """Return the board of the replica whose place is taken, if it can hold the successor."""
    if not replica.spec.replaces:
        return None
    need = msgspec.structs.replace(need, replaces=replica.spec.replaces)
    for name, load in loads.items():
        if need.replaces in load.reservations and isinstance(fit := check_board(load, need), Fit):
            return name, fit
    return None


def board_loads(fleet: Fleet) -> dict[str, BoardLoad]:
    """Return what is reserved on each board, by the board's name."""
    placed: dict[str, list[Replica]] = {}
    for replica in fleet.replicas:
        placed.setdefault(replica.spec.board_name, []).append(replica)
    return {board.metadata.name: _load(board, placed.get(board.metadata.name, ()), fleet) for board in fleet.boards}


def _load(board: Board, placed: Iterable[Replica], fleet: Fleet) -> BoardLoad:
    memory_bytes = parse_bytes(board.status.allocatable.memory)
    runs = {one.uid: parse_bytes(one.memory) for one in board.status.running}
    held = {uid: Reservation(memory_bytes=count) for uid, count in runs.items()}
    for replica in placed:
        uid, namespace = replica.metadata.uid, replica.metadata.namespace
        revision = fleet.revisions.get((namespace, replica.spec.revision_name))
        variant = find_variant(replica, revision, fleet.models)
        serving = revision.spec.template.serving if revision else Serving()
        # Of what a lagging cache does not know yet nobody knows the size: until then the board is full.
        asked = parse_bytes(variant.requires.memory) if variant else memory_bytes if uid not in runs else 0
        held[uid] = Reservation(
            memory_bytes=max(asked, runs.get(uid, 0)),
            replaces=replica.spec.replaces,
            deployment=f"{namespace}/{replica.spec.deployment_name}",
            digests={one.digest: one.size_bytes for one in variant.artifact.files} if variant else {},
            cache_bytes=parse_bytes(serving.prompt_cache),
            on_demand=serving.load == "OnDemand",
        )
    storage_bytes = parse_bytes(board.status.allocatable.storage)
    return BoardLoad(board=board, memory_bytes=memory_bytes, storage_bytes=storage_bytes, reservations=held)


def _with(load: BoardLoad, uid: str, reservation: Reservation) -> BoardLoad:
    return msgspec.structs.replace(load, reservations={**load.reservations, uid: reservation})


def find_variant(replica: Replica, revision: ModelRevision | None, models: Mapping[tuple[str, str], Model]) -> Variant | None:
    """Return the variant that a placed replica runs, or None where its revision or Model is not known."""
    model = find_model(revision, models)
    if model is None:
        return None
    return next((one for one in model.spec.variants if one.name == replica.spec.variant_name), None)


def find_model(revision: ModelRevision | None, models: Mapping[tuple[str, str], Model]) -> Model | None:
    """Return the Model that a revision was made for, or None; a namesake with other bytes that was made later is not it."""
    if revision is None:
        return None
    model = models.get((revision.metadata.namespace, revision.spec.template.model))
    return model if model is not None and model.metadata.uid == revision.spec.model_uid else None


def _order(replica: Replica) -> tuple[str, str, str]:
    return (replica.metadata.creation_timestamp, replica.metadata.namespace, replica.metadata.name)


def _need(replica: Replica, fleet: Fleet) -> Need | None:
    """Return what the replica asks for, or None while caches do not know all of it; their next change wakes placement again."""
    namespace = replica.metadata.namespace
    deployment = fleet.deployments.get((namespace, replica.spec.deployment_name))
    revision = fleet.revisions.get((namespace, replica.spec.revision_name))
    model = find_model(revision, fleet.models)
    if deployment is None or revision is None or model is None:
        return None
    template = revision.spec.template
    return Need(
        deployment=f"{namespace}/{deployment.metadata.name}",
        placement=deployment.spec.placement,
        variants=tuple(_allowed(model, template.variants)),
        context_tokens=template.serving.context_tokens,
        order_stated=bool(template.variants),
        runtime_version=template.serving.runtime_version,
        cache_bytes=parse_bytes(template.serving.prompt_cache),
        on_demand=template.serving.load == "OnDemand",
    )


def _allowed(model: Model, names: Iterable[str]) -> Iterator[Variant]:
    by_name = {variant.name: variant for variant in model.spec.variants}
    for name in tuple(names) or tuple(by_name):
        if name in by_name:
            yield by_name[name]


# ---- What is written -----------------------------------------------------------------------------------------------------------


def _bind(replica: Replica, board: str, variant: str) -> Bind:
    meta = replica.metadata
    return Bind(ref=replica.ref, uid=meta.uid, resource_version=meta.resource_version, board=board, variant=variant)


def _scheduled(board: str, variant: str) -> Condition:
    return condition(conditions.SCHEDULED, "True", conditions.PLACED, f"Placed on board {board} with variant {variant}.")


def _unscheduled(replica: Replica, misfits: Mapping[str, Misfit]) -> Condition:
    """Return the condition that names every board that was excluded once, grouped by reason."""
    if not misfits:
        message = explain("The fleet has no board", "rkfleet join-token create")
        return condition(conditions.SCHEDULED, "False", conditions.NO_BOARDS, message)
    groups: dict[tuple[int, str], list[str]] = {}
    for name in sorted(misfits):
        one = misfits[name]
        groups.setdefault((-one.depth, one.group), []).append(f"{name} ({one.detail})" if one.detail else name)
    # First the boards that came furthest, which need the least to fit: whoever cuts the sentence keeps them.
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1]), item[0][1]))
    reasons = conditions.shorten("; ".join(f"{group}: {', '.join(names)}" for (_, group), names in ordered), MESSAGE_LENGTH_MAX)
    why = f"No board of {len(misfits)} can take the replica: {reasons}"
    command = f"kubectl get boards -o wide; kubectl describe modeldeployment {replica.spec.deployment_name} -n {replica.metadata.namespace}"
    return condition(conditions.SCHEDULED, "False", conditions.NO_BOARD_FITS, explain(why, command))


def _write(replica: Replica, said: Condition) -> Iterator[Action]:
    before = conditions.find(replica.status.conditions, conditions.SCHEDULED)
    if before is not None and (before.status, before.reason, before.message) == (said.status, said.reason, said.message):
        return
    meta, good = replica.metadata, said.status == "True"
    yield WriteStatus(ref=replica.ref, uid=meta.uid, owner="placement", conditions=(said,))
    if before is None or before.status != said.status:
        yield events.record(replica, events.SCHEDULED if good else events.FAILED_SCHEDULING, said.message, warning=not good)
