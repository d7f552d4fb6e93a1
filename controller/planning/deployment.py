"""ModelDeployment -> ModelRevisions and Replicas, and what is said about it.

In: one deployment with its Model, revisions and Replicas, what is known about boards, and how long nothing has moved (`Observed`). Out:
a `Plan` of writes, the status included. `reconcilers/deployment.py` observes and calls; numbers are `rollout.py`'s, names
`revision.py`'s, sentences `deployment_status.py`'s. Time comes in as `now`.

A template that cannot be used (its Model or a variant does not exist) and `paused` both mean: start no new revision, keep the newest
existing one at the wanted number. So a typing mistake never takes down what serves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from controller.planning import deployment_status, events, eviction, rollout
from controller.planning.actions import (
    Action,
    Activate,
    CreateReplica,
    CreateRevision,
    Delete,
    Plan,
    RenumberRevision,
    Value,
    WriteStatus,
)
from controller.planning.deployment_status import Said
from controller.planning.progress import SETTLE_SECONDS, age_seconds, settle_seconds, stored_progress
from controller.planning.revision import find_revision, name_revision
from rkfleet import conditions
from rkfleet.kinds.deployment import ModelDeployment, ModelDeploymentStatus
from rkfleet.kinds.model import Model
from rkfleet.kinds.replica import Activation, Replica, ReplicaSpec
from rkfleet.kinds.revision import ModelRevision, ModelRevisionSpec
from rkfleet.meta import LABEL_DEPLOYMENT, LABEL_REVISION, OwnerReference, Ref

__all__ = ["SETTLE_SECONDS", "BoardsView", "Observed", "plan_deployment"]

# A replica that has not been Ready this long is not expected back without help, and gives way to a new revision without counting for the
# minimum. A worker that crashed is back sooner: it loads from the board's own disk.
BROKEN_SECONDS: Final = 30.0


class BoardsView(Value, frozen=True, kw_only=True):
    """What a deployment must know about boards, by name.

    Attributes:
        absent: Without a session at the moment.
        lost: So long without one that nothing is expected from it (BoardLost); also boards that do not exist any more.
        gone: Lost for longer than the deployment's boardLostSeconds and free to be replaced; also boards that do not exist any more.
        stopped: Sentence that says why lost replicas are not replaced now; empty when they are.
        evicting: Boards that replicas must leave, each with the taint that says so.
        next_seconds: When the next board changes sides although nothing happens; None for never.
    """

    absent: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    stopped: str = ""
    evicting: Mapping[str, str] = {}
    next_seconds: float | None = None


class Observed(Value, frozen=True, kw_only=True):
    """All that a plan may depend on.

    Attributes:
        model: The Model that the template names, or None.
        revisions: Those that the deployment owns.
        replicas: Those that the deployment owns.
        holder: `namespace/name` of the older deployment that holds the claimed model name; empty when this one does.
        stalled_seconds: How long no replica has reached anything new (progress.py).
    """

    deployment: ModelDeployment
    model: Model | None = None
    revisions: tuple[ModelRevision, ...] = ()
    replicas: tuple[Replica, ...] = ()
    boards: BoardsView = BoardsView()
    holder: str = ""
    stalled_seconds: float = 0.0


class _Target(Value, frozen=True, kw_only=True):
    """Which revision to reach, and why not the template's if that is so."""

    name: str = ""
    collision_count: int = 0
    actions: tuple[Action, ...] = ()
    blocked_reason: str = ""
    blocked_message: str = ""


def plan_deployment(observed: Observed, now: datetime) -> Plan:
    """Return what to write for this deployment now."""
    deployment = observed.deployment
    if deployment.metadata.deletion_timestamp:
        return Plan(waiting="its dependents to be deleted")
    target = _target(observed)
    goal = _goal(deployment, target)
    min_ready = deployment.spec.min_ready_seconds
    members = [_member(one, observed.boards, min_ready, now) for one in observed.replicas]
    moves = rollout.plan_rollout(goal, _located(observed.replicas, members))
    stalled = 0.0 if moves.count else observed.stalled_seconds  # Every move is something new, see progress.py.
    view = deployment_status.View(
        deployment=deployment,
        goal=goal,
        members=moves.after,
        replicas={one.metadata.uid: one for one in observed.replicas},
        collision_count=target.collision_count,
        blocked_reason=target.blocked_reason,
        blocked_message=target.blocked_message,
        holder=observed.holder,
        stopped=observed.boards.stopped,
        evicting=observed.boards.evicting,
        stalled_seconds=stalled,
        progress_time=stored_progress(deployment, stalled, now),
    )
    said = deployment_status.plan_status(view)
    steps = (*target.actions, *_steps(observed, goal, moves))
    written = _write_status(deployment, said)
    told = deployment_status.plan_events(deployment, said) if written else ()
    kept = {one.uid for one in moves.after}
    evicted = eviction.plan_evicted(deployment, (one for one in observed.replicas if one.metadata.uid in kept), observed.boards.evicting)
    actions = (*steps, *_prune(observed, said.status), *evicted, *written, *told)
    settling = [replica for replica, one in zip(observed.replicas, members, strict=True) if one.ready and not one.available]
    return Plan(actions=actions, waiting=said.waiting, again_after_seconds=_again(observed, settling, stalled, now, said))


# ---- Which revision ------------------------------------------------------------------------------------------------------------


def _target(observed: Observed) -> _Target:
    deployment, model = observed.deployment, observed.model
    template = deployment.spec.template
    newest = max(observed.revisions, key=lambda one: (one.spec.revision, one.metadata.name), default=None)
    name = newest.metadata.name if newest else ""
    if model is None:
        why = conditions.explain(
            f"Model {deployment.metadata.namespace}/{template.model} of spec.template.model does not exist",
            f"kubectl get models -n {deployment.metadata.namespace}",
        )
        return _Target(name=name, blocked_reason=conditions.MODEL_NOT_FOUND, blocked_message=why)
    known = [variant.name for variant in model.spec.variants]
    if unknown := [one for one in template.variants if one not in known]:
        why = conditions.explain(
            f"spec.template.variants names {', '.join(unknown)}, and Model {template.model} has {', '.join(known)}",
            f"kubectl edit modeldeployment {deployment.metadata.name} -n {deployment.metadata.namespace}",
        )
        return _Target(name=name, blocked_reason=conditions.VARIANT_NOT_FOUND, blocked_message=why)
    found = find_revision(observed.revisions, template, model.metadata.uid)
    if deployment.spec.paused and (found is None or newest is None or found.metadata.name != newest.metadata.name):
        return _Target(name=name, blocked_reason=conditions.DEPLOYMENT_PAUSED, blocked_message=_paused_message(deployment))
    if found is None:
        return _new_revision(observed, model, newest)
    renumber: tuple[Action, ...] = ()
    if newest is not None and found.metadata.name != newest.metadata.name:
        meta = found.metadata
        renumber = (
            RenumberRevision(ref=found.ref, uid=meta.uid, resource_version=meta.resource_version, number=newest.spec.revision + 1),
            events.record(deployment, events.ROLLED_BACK, f"goes back to revision {meta.name}"),
        )
    return _Target(name=found.metadata.name, collision_count=deployment.status.collision_count, actions=renumber)


def _new_revision(observed: Observed, model: Model, newest: ModelRevision | None) -> _Target:
    deployment = observed.deployment
    name, count = name_revision(observed.revisions, deployment.metadata.name, deployment.spec.template)
    create = CreateRevision(
        ref=Ref(ModelRevision.resource.name, deployment.metadata.namespace, name),
        owner=_owner(deployment),
        labels={LABEL_DEPLOYMENT: deployment.metadata.name},
        spec=ModelRevisionSpec(
            template=deployment.spec.template,
            model_uid=model.metadata.uid,
            revision=newest.spec.revision + 1 if newest else 1,
            deployment_name=deployment.metadata.name,
        ),
    )
    return _Target(
        name=name, collision_count=count, actions=(create, events.record(deployment, events.REVISION_CREATED, f"made revision {name}"))
    )


def _paused_message(deployment: ModelDeployment) -> str:
    return conditions.explain(
        "spec.paused is true and the template has changed, so no replica moves to it",
        f"kubectl patch modeldeployment {deployment.metadata.name} -n {deployment.metadata.namespace} --type merge"
        ' -p \'{"spec":{"paused":false}}\'',
    )


def _goal(deployment: ModelDeployment, target: _Target) -> rollout.Goal:
    spec = deployment.spec
    unavailable, surge = rollout.resolve_strategy(spec.replicas, spec.strategy.max_unavailable, spec.strategy.max_surge)
    return rollout.Goal(
        revision=target.name,
        replicas=spec.replicas,
        max_unavailable=unavailable,
        max_surge=surge,
        rolling=bool(target.name) and not target.blocked_reason and not spec.paused,
    )


# ---- Replicas as the rollout sees them, and moves as writes ----------------------------------------------------------------------


def _member(replica: Replica, boards: BoardsView, min_ready_seconds: float, now: datetime) -> rollout.Member:
    spec, said, board = replica.spec, replica.status.conditions, replica.spec.board_name
    scheduled = conditions.find(said, conditions.SCHEDULED)
    ready = conditions.is_true(said, conditions.READY)
    return rollout.Member(
        uid=replica.metadata.uid,
        name=replica.metadata.name,
        slot=int(spec.slot),
        revision=spec.revision_name,
        activation=spec.activation,
        replaces=spec.replaces,
        placed=bool(board),
        unschedulable=not board and scheduled is not None and scheduled.status == "False",
        staged=conditions.is_true(said, conditions.ARTIFACT_AVAILABLE),
        reported=_is_reported(replica),
        ready=ready,
        broken=_broken_in_seconds(replica, now) == 0,
        available=ready and board not in boards.absent and settle_seconds(replica, min_ready_seconds, now) == 0,
        drained=conditions.is_true(said, conditions.DRAINED),
        absent=board in boards.absent,
        lost=board in boards.lost,
        gone=board in boards.gone,
        evicted=board in boards.evicting,
        deleting=bool(replica.metadata.deletion_timestamp),
    )


def _is_reported(replica: Replica) -> bool:
    """Return whether its board has spoken of it."""
    return replica.status.observed_generation > 0


def _located(replicas: Sequence[Replica], members: Sequence[rollout.Member]) -> list[rollout.Member]:
    """Return the members, each knowing whether it is on another board than the one that it replaces."""
    board_of = {one.metadata.uid: one.spec.board_name for one in replicas}
    return [
        msgspec.structs.replace(one, elsewhere=one.placed and board_of[one.uid] != board_of.get(one.replaces, board_of[one.uid]))
        for one in members
    ]


def _broken_in_seconds(replica: Replica, now: datetime) -> float:
    """Return after how long a replica that does not serve is no longer expected to: 0 when it is not, infinity for one that serves.

    One that its board never spoke of counts from its placement: the board may never hear of it, because its Model is gone.
    """
    since = conditions.find(replica.status.conditions, conditions.READY)
    if since is None and replica.spec.board_name and not _is_reported(replica):
        since = conditions.find(replica.status.conditions, conditions.SCHEDULED)
    elif since is not None and since.status == "True":
        since = None
    return max(BROKEN_SECONDS - age_seconds(since, now), 0.0) if since is not None else math.inf


def _steps(observed: Observed, goal: rollout.Goal, moves: rollout.Moves) -> Iterator[Action]:
    deployment = observed.deployment
    replicas = {one.metadata.uid: one for one in observed.replicas}
    for uid, why in moves.delete:
        meta = replicas[uid].metadata
        yield Delete(ref=replicas[uid].ref, uid=uid, resource_version=meta.resource_version)
        yield events.record(deployment, events.REPLICA_DELETED, f"deleted replica {meta.name}: {why}", warning="lost" in why)
    for uid in moves.activate:
        yield _activate(replicas[uid], "Serving")
        yield events.record(
            deployment, events.REPLICA_ACTIVATED, f"replica {replicas[uid].metadata.name} serves in the place of its predecessor"
        )
    for uid, why in moves.drain:
        yield _activate(replicas[uid], "Draining")
        yield events.record(deployment, events.REPLICA_DRAINING, f"replica {replicas[uid].metadata.name} drains: {why}")
    for creation in moves.create:
        create = _create(deployment, goal.revision, creation)
        yield create
        yield events.record(deployment, events.REPLICA_CREATED, f"created replica {create.ref.name} ({creation.activation})")


def _activate(replica: Replica, activation: Activation) -> Activate:
    meta = replica.metadata
    return Activate(ref=replica.ref, uid=meta.uid, resource_version=meta.resource_version, activation=activation)


def _create(deployment: ModelDeployment, revision: str, creation: rollout.Creation) -> CreateReplica:
    meta = deployment.metadata
    revision = creation.revision or revision
    return CreateReplica(
        ref=Ref(Replica.resource.name, meta.namespace, f"{revision}-{creation.slot}"),
        owner=_owner(deployment),
        labels={LABEL_DEPLOYMENT: meta.name, LABEL_REVISION: revision.rpartition("-")[2]},
        spec=ReplicaSpec(
            deployment_name=meta.name,
            revision_name=revision,
            slot=str(creation.slot),
            activation=creation.activation,
            replaces=creation.replaces,
        ),
    )


def _owner(deployment: ModelDeployment) -> OwnerReference:
    resource = ModelDeployment.resource
    return OwnerReference(
        api_version=resource.api_version,
        kind=resource.kind,
        name=deployment.metadata.name,
        uid=deployment.metadata.uid,
        controller=True,
        block_owner_deletion=True,
    )


def _prune(observed: Observed, status: ModelDeploymentStatus) -> Iterator[Action]:
    """Delete the oldest revisions above the history limit that no replica names."""
    kept = {one.spec.revision_name for one in observed.replicas} | {status.current_revision, status.update_revision}
    old = sorted((one for one in observed.revisions if one.metadata.name not in kept), key=lambda one: one.spec.revision)
    for one in old[: max(len(old) - observed.deployment.spec.revision_history_limit, 0)]:
        yield Delete(ref=one.ref, uid=one.metadata.uid, resource_version=one.metadata.resource_version)


def _write_status(deployment: ModelDeployment, said: Said) -> tuple[WriteStatus, ...]:
    before = msgspec.structs.replace(deployment.status, conditions=())
    if before == said.status and deployment_status.unchanged(deployment.status.conditions, said.conditions):
        return ()
    names = zip(ModelDeploymentStatus.__struct_fields__, ModelDeploymentStatus.__struct_encode_fields__, strict=True)
    write = WriteStatus(
        ref=deployment.ref,
        uid=deployment.metadata.uid,
        owner="deployment",
        fields={encoded: getattr(said.status, name) for name, encoded in names if name != "conditions"},
        conditions=said.conditions,
        when={"metadata.generation": deployment.metadata.generation},
    )
    return (write,)


def _again(observed: Observed, settling: Iterable[Replica], stalled_seconds: float, now: datetime, said: Said) -> float | None:
    """Return when something will be different without an event: a replica counts or is given up, a board is lost, nothing moves."""
    spec = observed.deployment.spec
    waits = [observed.boards.next_seconds] if observed.boards.next_seconds is not None else []
    waits += [left for one in settling if (left := settle_seconds(one, spec.min_ready_seconds, now)) > 0]
    if said.rolling:
        limits = (spec.progress_deadline_seconds, deployment_status.SURGE_SECONDS)
        waits += [left for limit in limits if (left := limit - stalled_seconds) > 0]
    if said.rolling or observed.boards.evicting:
        waits += [left for one in observed.replicas if 0 < (left := _broken_in_seconds(one, now)) < math.inf]
    return min(waits, default=None)
