"""What is said about a deployment: counts, conditions, events, and the sentence that says what it waits for.

In: the goal, the members as they are after the moves of this plan, and the Replicas behind those that exist (`View`). Out: `Said`.
`planning/deployment.py` calls it; it is apart so that deciding and telling do not grow into each other.

Conditions follow what kubectl wait and kstatus expect: `Ready` is True exactly when everything is as declared, so a tool that waits for
Ready waits for a finished rollout; `Available` says whether enough serve for clients to be served, also in the middle of a rollout;
`Progressing` is False when somebody must help.

Source: Kubernetes `pkg/controller/deployment/progress.go`; kstatus (sigs.k8s.io/cli-utils).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from controller.planning import events
from controller.planning.actions import Record, Value
from controller.planning.rollout import Goal, Member
from rkfleet import conditions
from rkfleet.conditions import Condition, condition, explain
from rkfleet.kinds.deployment import ModelDeployment, ModelDeploymentStatus
from rkfleet.kinds.replica import Replica
from rkfleet.meta import LABEL_DEPLOYMENT

__all__ = ["Said", "View", "plan_events", "plan_status", "unchanged"]


class View(Value, frozen=True, kw_only=True):
    """What the status is made from; the attributes are those of `deployment.Observed` and of its target revision.

    Attributes:
        replicas: The Replicas behind the members, by uid.
        blocked_reason: Why the template's revision is not started, as a condition reason; empty when it is.
        holder: Who holds the claimed model name, if somebody else does.
        stopped: Why lost replicas are not replaced now.
    """

    deployment: ModelDeployment
    goal: Goal
    members: tuple[Member, ...]
    replicas: Mapping[str, Replica]
    collision_count: int = 0
    blocked_reason: str = ""
    blocked_message: str = ""
    holder: str = ""
    stopped: str = ""
    stalled_seconds: float = 0.0

    @property
    def serving(self) -> list[Member]:
        """Replicas that serve or are to serve."""
        return [one for one in self.members if one.activation == "Serving" and not one.deleting]

    @property
    def updated(self) -> list[Member]:
        """Those of the wanted revision among them."""
        return [one for one in self.serving if one.revision == self.goal.revision]

    @property
    def available(self) -> int:
        """Replicas that count for the minimum."""
        return sum(one.available for one in self.serving)

    @property
    def complete(self) -> bool:
        """Whether everything is as declared: as many as wanted, all of the wanted revision, all available."""
        count = len(self.updated)
        return not self.blocked_reason and count == len(self.serving) == self.goal.replicas == self.available


class Said(Value, frozen=True, kw_only=True):
    """The status of a deployment.

    Attributes:
        status: Without conditions.
        waiting: Sentence that says what must happen elsewhere; empty when all is as declared.
        rolling: Whether the wanted revision is on its way and the progress deadline runs.
    """

    status: ModelDeploymentStatus
    conditions: tuple[Condition, ...]
    waiting: str = ""
    rolling: bool = False


def plan_status(view: View) -> Said:
    """Return counts and conditions of a deployment."""
    meta, before = view.deployment.metadata, view.deployment.status
    current = view.goal.revision if view.complete else before.current_revision
    status = ModelDeploymentStatus(
        observed_generation=meta.generation,
        replicas=len(view.serving),
        updated_replicas=len(view.updated),
        ready_replicas=sum(one.ready for one in view.serving),
        available_replicas=view.available,
        current_revision=current,
        update_revision=view.goal.revision,
        collision_count=view.collision_count,
        selector=f"{LABEL_DEPLOYMENT}={meta.name}",
    )
    waiting = "" if view.complete else _waiting(view)
    arrived = bool(view.goal.revision) and current == view.goal.revision
    progressing = _progressing(view, waiting, arrived=arrived)
    said = (_ready(view, waiting, progressing, arrived=arrived), _available(view, waiting), progressing)
    return Said(status=status, conditions=said, waiting=waiting, rolling=not arrived and not view.blocked_reason)


def unchanged(old: Sequence[Condition], new: Sequence[Condition]) -> bool:
    """Return whether these conditions, transition times aside, are there already and no others."""
    return {_key(one) for one in old} == {_key(one) for one in new}


def _key(one: Condition) -> tuple[str, str, str, str, int]:
    return (one.type, one.status, one.reason, one.message, one.observed_generation)


# ---- Events --------------------------------------------------------------------------------------------------------------------


def plan_events(deployment: ModelDeployment, said: Said) -> Iterator[Record]:
    """Yield what a new status is worth telling: a finished rollout, and conditions that turned bad."""
    before = deployment.status
    if said.status.current_revision and said.status.current_revision != before.current_revision:
        count = said.status.replicas
        yield events.record(deployment, conditions.ROLLOUT_COMPLETE, f"all {count} replicas run revision {said.status.current_revision}")
    for one in said.conditions:
        was = conditions.find(before.conditions, one.type)
        bad = one.status == "False" and one.reason in _TOLD
        if bad and (was is None or was.reason != one.reason):
            yield events.record(deployment, one.reason, one.message, warning=True)


_TOLD = frozenset(
    {
        conditions.MODEL_NOT_FOUND, conditions.VARIANT_NOT_FOUND, conditions.PROGRESS_DEADLINE_EXCEEDED, conditions.SERVED_NAME_TAKEN,
    }
)  # fmt: skip


# ---- Conditions ----------------------------------------------------------------------------------------------------------------


def _available(view: View, waiting: str) -> Condition:
    goal, generation = view.goal, view.deployment.metadata.generation
    if goal.replicas == 0:
        return condition(conditions.AVAILABLE, "True", conditions.SCALED_TO_ZERO, "No replica is wanted.", generation)
    # One replica with maxUnavailable 1 may be missing in a rollout; still, nobody is served while it is.
    needed = max(goal.minimum, 1)
    counts = f"{view.available} of {goal.replicas} replicas are available and {needed} must be"
    if view.available >= needed:
        return condition(conditions.AVAILABLE, "True", conditions.MINIMUM_AVAILABLE, f"{counts}.", generation)
    message = f"{counts}; waits for {waiting}" if waiting else explain(counts, _look(view))
    return condition(conditions.AVAILABLE, "False", conditions.MINIMUM_UNAVAILABLE, message, generation)


def _progressing(view: View, waiting: str, *, arrived: bool) -> Condition:
    generation = view.deployment.metadata.generation
    counts = f"{len(view.updated)} of {view.goal.replicas} replicas run revision {view.goal.revision}"
    if view.deployment.spec.paused:
        message = view.blocked_message or f"spec.paused is true; {counts}."
        return condition(conditions.PROGRESSING, "Unknown", conditions.DEPLOYMENT_PAUSED, message, generation)
    if view.blocked_reason:
        return condition(conditions.PROGRESSING, "False", view.blocked_reason, view.blocked_message, generation)
    if arrived:
        message = f"All replicas were brought to revision {view.goal.revision}."
        return condition(conditions.PROGRESSING, "True", conditions.ROLLOUT_COMPLETE, message, generation)
    limit = view.deployment.spec.progress_deadline_seconds
    if view.stalled_seconds >= limit:
        message = f"{counts}, and for {limit} s (spec.progressDeadlineSeconds) nothing has moved; waits for {waiting}"
        return condition(conditions.PROGRESSING, "False", conditions.PROGRESS_DEADLINE_EXCEEDED, message, generation)
    reason = conditions.SURGE_IMPOSSIBLE if _surge_impossible(view) else conditions.ROLLING_OUT
    return condition(conditions.PROGRESSING, "True", reason, f"{counts}; waits for {waiting}", generation)


def _ready(view: View, waiting: str, progressing: Condition, *, arrived: bool) -> Condition:
    goal, generation = view.goal, view.deployment.metadata.generation
    if view.holder:
        message = explain(
            f"The model name {view.deployment.spec.served_model_name or view.deployment.metadata.name} belongs to ModelDeployment"
            f" {view.holder}, which is older, so gateways do not route to this one",
            f"kubectl patch modeldeployment {view.deployment.metadata.name} -n {view.deployment.metadata.namespace} --type merge"
            ' -p \'{"spec":{"servedModelName":"another-name"}}\'',
        )
        return condition(conditions.READY, "False", conditions.SERVED_NAME_TAKEN, message, generation)
    if view.blocked_reason:
        return condition(conditions.READY, "False", view.blocked_reason, view.blocked_message, generation)
    if view.complete:
        reason = conditions.ROLLOUT_COMPLETE if goal.replicas else conditions.SCALED_TO_ZERO
        message = f"{goal.replicas} of {goal.replicas} replicas serve revision {goal.revision}."
        return condition(conditions.READY, "True", reason, message, generation)
    if not arrived:
        reason = conditions.DEPLOYMENT_PAUSED if view.deployment.spec.paused else progressing.reason
        return condition(conditions.READY, "False", reason, progressing.message, generation)
    counts = f"{view.available} of {goal.replicas} replicas are available; waits for {waiting}"
    reason = conditions.REPLICAS_UNAVAILABLE if view.available >= max(goal.minimum, 1) else conditions.MINIMUM_UNAVAILABLE
    return condition(conditions.READY, "False", reason, counts, generation)


# ---- What is waited for --------------------------------------------------------------------------------------------------------


def _surge_impossible(view: View) -> bool:
    """Whether the only way on is a surge replica that no board can hold."""
    waits = any(one.unschedulable and not one.replaces for one in view.updated)
    return waits and view.goal.max_unavailable == 0 and len(view.serving) > len(view.updated)


def _look(view: View) -> str:
    meta = view.deployment.metadata
    return f"kubectl get replicas -n {meta.namespace} -l {LABEL_DEPLOYMENT}={meta.name}"


def _waiting(view: View) -> str:
    if view.blocked_message:
        return view.blocked_message
    if _surge_impossible(view):
        meta = view.deployment.metadata
        patch = '{"spec":{"strategy":{"maxUnavailable":1}}}'
        command = f"kubectl patch modeldeployment {meta.name} -n {meta.namespace} --type merge -p '{patch}'"
        return explain(f"room for one more replica, because maxUnavailable is 0 and no board can hold a surge ({_unplaced(view)})", command)
    candidates = sorted((one for one in view.members if not one.available and not one.deleting), key=lambda one: _urgency(view, one))
    if candidates:
        return _what(view, candidates[0])
    return explain("the next step of the rollout", _look(view))


def _urgency(view: View, member: Member) -> tuple[bool, bool, bool, int]:
    wanted = member.revision == view.goal.revision
    return (not (wanted and member.unschedulable), not wanted, member.activation == "Staged" and member.staged, member.slot)


def _unplaced(view: View) -> str:
    return next((_message(view, one, conditions.SCHEDULED) for one in view.updated if one.unschedulable), "")


def _what(view: View, member: Member) -> str:
    """Return what one replica that is not available waits for."""
    if member.unschedulable:
        return f"a board for replica {member.name}: {_message(view, member, conditions.SCHEDULED)}"
    if not member.placed:
        return explain(f"replica {member.name} to be placed", _look(view))
    replica = view.replicas[member.uid]
    board = replica.spec.board_name
    if member.absent or member.lost:
        stop = f" ({view.stopped})" if view.stopped else ""
        return explain(f"board {board} of replica {member.name}, which has no session{stop}", f"kubectl describe board {board}")
    if member.activation == "Draining":
        return explain(f"replica {member.name} on {board} to finish what runs", _look(view))
    if member.ready:
        return explain(f"replica {member.name}, which has just become ready", _look(view))
    for type in (conditions.ARTIFACT_AVAILABLE, conditions.LOADED, conditions.READY):
        found = conditions.find(replica.status.conditions, type)
        if found is not None and found.status != "True" and found.message:
            return f"replica {member.name} on {board}: {found.message}"
    return explain(f"replica {member.name} on {board}", f"kubectl describe replica {member.name} -n {replica.metadata.namespace}")


def _message(view: View, member: Member, type: str) -> str:
    found = conditions.find(view.replicas[member.uid].status.conditions, type)
    return found.message if found else ""
