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
from typing import Final

from controller.planning import events
from controller.planning.actions import Record, Value
from controller.planning.eviction import way_back
from controller.planning.progress import SETTLE_SECONDS
from controller.planning.rollout import Goal, Member
from rkfleet import conditions
from rkfleet.conditions import Condition, condition, explain
from rkfleet.kinds.deployment import ModelDeployment, ModelDeploymentStatus
from rkfleet.kinds.replica import Replica
from rkfleet.meta import LABEL_DEPLOYMENT

__all__ = ["SURGE_SECONDS", "Said", "View", "plan_events", "plan_status", "unchanged"]

# What placement said last may be about a world that has just changed, and it looks again within milliseconds, on a loaded machine within
# seconds. When nothing has moved for this long, no board can hold the surge.
SURGE_SECONDS: Final = 5.0
REASONS_LENGTH_MAX: Final = 2000  # Of placement's sentence inside ours: some twenty boards; the Replica's own condition has all.
BOARDS_NAMED_MAX: Final = 8  # In a sentence about boards that are emptied.


class View(Value, frozen=True, kw_only=True):
    """What the status is made from; the attributes are those of `deployment.Observed` and of its target revision.

    Attributes:
        replicas: The Replicas behind the members, by uid.
        blocked_reason: Why the template's revision is not started, as a condition reason; empty when it is.
        holder: Who holds the claimed model name, if somebody else does.
        stopped: Why lost replicas are not replaced now.
        evicting: Boards that replicas must leave, each with the taint that says so.
        progress_time: When a replica reached something new last.
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
    evicting: Mapping[str, str] = {}
    stalled_seconds: float = 0.0
    progress_time: str = ""

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
    def missing(self) -> list[Member]:
        """Replicas that are to become available, or are to go."""
        return [one for one in self.members if not one.deleting and (not one.available or one.activation == "Draining")]

    @property
    def moving_only(self) -> bool:
        """Whether replicas must leave their boards and nothing else is to be done: the revision is reached, or none is started."""
        status, held = self.deployment.status, self.blocked_reason not in ("", conditions.DEPLOYMENT_PAUSED)
        arrived = self.rolled_out or status.current_revision == self.goal.revision
        return bool(self.evicted) and not held and (arrived or self.deployment.spec.paused)

    @property
    def evicted(self) -> list[Member]:
        """Those whose board is to be emptied among the serving."""
        return [one for one in self.serving if one.evicted]

    @property
    def complete(self) -> bool:
        """Whether everything is as declared: as many as wanted, all of the wanted revision, all available, none to be moved."""
        return self.rolled_out and len(self.serving) == self.goal.replicas and not self.evicted

    @property
    def rolled_out(self) -> bool:
        """Whether the wanted revision is reached; replicas may still have to move to other boards."""
        serving, wanted = len(self.serving), self.goal.replicas
        enough = self.available >= wanted and (serving == wanted or bool(self.evicted))
        return not self.blocked_reason and enough and len(self.updated) == serving


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
    current = view.goal.revision if view.rolled_out else before.current_revision
    arrived = bool(view.goal.revision) and current == view.goal.revision
    rolling = not arrived and not view.blocked_reason
    status = ModelDeploymentStatus(
        observed_generation=meta.generation,
        replicas=len(view.serving),
        updated_replicas=len(view.updated),
        ready_replicas=sum(one.ready for one in view.serving),
        available_replicas=view.available,
        current_revision=current,
        update_revision=view.goal.revision,
        last_progress_time=view.progress_time if rolling else before.last_progress_time,
        collision_count=view.collision_count,
        selector=f"{LABEL_DEPLOYMENT}={meta.name}",
    )
    waiting = "" if view.complete else _waiting(view)
    progressing = _progressing(view, waiting, arrived=arrived)
    said = (_ready(view, waiting, progressing, arrived=arrived), _available(view, waiting), progressing)
    return Said(status=status, conditions=said, waiting=waiting, rolling=rolling)


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
        conditions.MODEL_NOT_FOUND, conditions.VARIANT_NOT_FOUND, conditions.PROGRESS_DEADLINE_EXCEEDED, conditions.SURGE_IMPOSSIBLE,
        conditions.SERVED_NAME_TAKEN,
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
    counts = f"{sum(one.ready for one in view.updated)} of {view.goal.replicas} replicas run revision {view.goal.revision}"
    if view.deployment.spec.paused:
        message = view.blocked_message or f"spec.paused is true; {counts}."
        return condition(conditions.PROGRESSING, "Unknown", conditions.DEPLOYMENT_PAUSED, message, generation)
    if view.blocked_reason:
        return condition(conditions.PROGRESSING, "False", view.blocked_reason, view.blocked_message, generation)
    if arrived:
        message = f"All replicas were brought to revision {view.goal.revision}."
        return condition(conditions.PROGRESSING, "True", conditions.ROLLOUT_COMPLETE, message, generation)
    if _surge_impossible(view):
        return condition(conditions.PROGRESSING, "False", conditions.SURGE_IMPOSSIBLE, f"{counts}; waits for {waiting}", generation)
    limit = view.deployment.spec.progress_deadline_seconds
    if view.stalled_seconds >= limit:
        message = f"{counts}, and for {limit} s (spec.progressDeadlineSeconds) nothing has moved; waits for {waiting}"
        return condition(conditions.PROGRESSING, "False", conditions.PROGRESS_DEADLINE_EXCEEDED, message, generation)
    return condition(conditions.PROGRESSING, "True", conditions.ROLLING_OUT, f"{counts}; waits for {waiting}", generation)


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
    short = view.available < max(goal.minimum, 1)
    if view.moving_only and not short:
        counts = f"{len(view.evicted)} of {len(view.serving)} replicas must leave {_evicting(view)}; waits for {waiting}"
        return condition(conditions.READY, "False", conditions.BOARD_DRAINING, counts, generation)
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
    reason = conditions.MINIMUM_UNAVAILABLE if short else conditions.REPLICAS_UNAVAILABLE
    return condition(conditions.READY, "False", reason, counts, generation)


# ---- What is waited for --------------------------------------------------------------------------------------------------------


def _surge_impossible(view: View) -> bool:
    """Whether the only way from an old revision on is a surge replica that no board can hold, and in place would be another."""
    stuck = view.goal.max_unavailable == 0 and view.goal.rolling and view.stalled_seconds >= SURGE_SECONDS
    if not stuck or not any(one.revision != view.goal.revision and not one.evicted for one in view.serving):
        return False
    return bool(view.missing) and all(one.unschedulable and not one.replaces for one in view.missing)


def _evicting(view: View) -> str:
    """Return the boards that are emptied, with the taints that say so."""
    found = {view.replicas[one.uid].spec.board_name for one in view.evicted}
    named = [f"board {name} (taint {view.evicting[name]})" for name in sorted(found)[:BOARDS_NAMED_MAX]]
    rest = len(found) - len(named)
    return ", ".join(named) + (f" and {rest} others" if rest else "")


def _look(view: View) -> str:
    meta = view.deployment.metadata
    return f"kubectl get replicas -n {meta.namespace} -l {LABEL_DEPLOYMENT}={meta.name}"


def _waiting(view: View) -> str:
    if view.blocked_message and not view.moving_only:
        return view.blocked_message
    if _surge_impossible(view):
        return _room_for_surge(view)
    if view.evicted and (homeless := _homeless(view)):
        return _room_elsewhere(view, homeless)
    candidates = sorted(view.missing, key=lambda one: _urgency(view, one))
    if candidates:
        return _what(view, candidates[0])
    return explain("the next step of the rollout", _look(view))


def _urgency(view: View, member: Member) -> tuple[bool, bool, bool, int]:
    wanted = member.revision == view.goal.revision
    return (not (wanted and member.unschedulable), not wanted, member.activation == "Staged" and member.staged, member.slot)


def _room_for_surge(view: View) -> str:
    """Return the sentence for a rollout that maxUnavailable 0 and full boards have brought to a stop, with the one field to change."""
    meta, strategy = view.deployment.metadata, view.deployment.spec.strategy
    surge = next(one for one in view.members if one.unschedulable)
    given = strategy.max_unavailable
    rounded = "" if given in (0, "0%") else f" ({given} of {view.goal.replicas}, rounded down)"
    patch = '{"spec":{"strategy":{"maxUnavailable":1}}}'
    return explain(
        f"room for surge replica {surge.name}, because maxUnavailable is 0{rounded}, so none may stop before it serves:"
        f" {_why_unplaced(view, surge)}",
        f"kubectl patch modeldeployment {meta.name} -n {meta.namespace} --type merge -p '{patch}'",
    )


def _homeless(view: View) -> Member | None:
    """Return a replica that is to take over from one on a board that is emptied and finds no other board."""
    leaving = {one.uid for one in view.evicted}
    found = [one for one in view.members if one.unschedulable and not one.deleting and (not one.replaces or one.replaces in leaving)]
    return min(found, key=lambda one: one.slot, default=None)


def _room_elsewhere(view: View, homeless: Member) -> str:
    board = min(view.replicas[one.uid].spec.board_name for one in view.evicted)
    return explain(
        f"room for replica {homeless.name} on a board that is not emptied: {_why_unplaced(view, homeless)}; fewer spec.replicas,"
        " another board, or an end of the drain helps",
        way_back(board, view.evicting[board]),
    )


def _why_unplaced(view: View, member: Member) -> str:
    """Return what placement says of a replica, without its command and cut to what a sentence can hold."""
    why, _ = conditions.advice(_message(view, member, conditions.SCHEDULED))
    return conditions.shorten(why, REASONS_LENGTH_MAX)


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
        since = conditions.find(replica.status.conditions, conditions.READY)
        least = max(view.deployment.spec.min_ready_seconds, SETTLE_SECONDS)
        field = "spec.minReadySeconds" if least > SETTLE_SECONDS else "until gateways know it"
        assert since is not None, "ready was read from it"
        what = f"replica {member.name} on {board}, Ready since {since.last_transition_time}"
        return explain(f"{what}, which counts after {least:.0f} s ({field})", _look(view))
    for type in (conditions.ARTIFACT_AVAILABLE, conditions.LOADED, conditions.READY):
        found = conditions.find(replica.status.conditions, type)
        if found is not None and found.status != "True" and found.message:
            return f"replica {member.name} on {board}: {found.message}"
    return explain(f"replica {member.name} on {board}", f"kubectl describe replica {member.name} -n {replica.metadata.namespace}")


def _message(view: View, member: Member, type: str) -> str:
    found = conditions.find(view.replicas[member.uid].status.conditions, type)
    return found.message if found else ""
