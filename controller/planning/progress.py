"""Whether a rollout moves: what its replicas have reached, and for how long none has reached anything new.

In: a deployment, its Replicas, what they had reached before (`Reached`), and the time. Out: what they have reached now and for how long
nothing was added (`plan_progress`), and the time to store (`stored_progress`). `reconcilers/deployment.py` keeps `Reached` in memory
between its passes; it is apart so that the progress deadline has one meaning, in one place.

Progress is a step that this replica had not made since the spec was changed: it is there, has a board, has more bytes than ever, is
loaded, Ready, available, drains, is gone. A worker that loads and crashes in turns, or bytes that are fetched again and again, are no
progress, so the deadline passes although something happens all the time.

The count survives a restart of the controller by `status.lastProgressTime`. A restart takes it up where it was, but leaves the rollout at
least `RESTART_SECONDS`, because boards have to come back first and nothing could move while no controller was there; what was reported as
stuck stays so until something moves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from controller.planning.actions import Value
from rkfleet import conditions
from rkfleet.clock import format_time, parse_time
from rkfleet.kinds.deployment import ModelDeployment
from rkfleet.kinds.replica import Replica

__all__ = ["RESTART_SECONDS", "SETTLE_SECONDS", "Reached", "age_seconds", "plan_progress", "settle_seconds", "stored_progress"]

# A replica counts as available when it has been Ready this long. Gateways learn of it by watch within milliseconds; the rest is for a
# loaded machine. Without it a predecessor could refuse requests before a gateway knows where else to go. Condition times have whole
# seconds, so one of the two may be a rounding. `spec.minReadySeconds` can only make it longer.
SETTLE_SECONDS: Final = 2.0

RESTART_SECONDS: Final = 60.0  # In this time every board is back or lost (planning/health.py, LOST_SECONDS).

# The stored time is written when it is off by more than this share of the deadline, and at least a second: a fetch moves several times a
# second, and nobody needs to know that so exactly.
STORED_SHARE: Final = 0.1

_STATES: Final = {  # As bits; availability is the one that no condition says.
    type: 1 << number
    for number, type in enumerate(
        (conditions.SCHEDULED, conditions.ARTIFACT_AVAILABLE, conditions.LOADED, conditions.READY, conditions.DRAINED)
    )
}
_AVAILABLE: Final = 1 << len(_STATES)
_ACTIVATIONS: Final = {"Staged": 0, "Serving": 1, "Draining": 2}

Steps = tuple[int, int, int]


class Reached(Value, frozen=True, kw_only=True):
    """What was reached since the spec of a deployment was changed.

    Attributes:
        generation: Of that spec.
        steps: By uid of the Replica: its furthest activation, its most bytes, and the states in which it ever was, as bits.
        moved_seconds: Monotonic time at which something was added last.
    """

    generation: int
    steps: Mapping[str, Steps]
    moved_seconds: float


def plan_progress(
    before: Reached | None, deployment: ModelDeployment, replicas: Sequence[Replica], now: datetime, monotonic: float
) -> tuple[Reached, float]:
    """Return what has been reached by now, and for how many seconds nothing was added to it.

    Args:
        before: What this function returned last; None after a start of the controller.
        deployment: Whose rollout it is.
        replicas: Those that it owns.
        now: Wall time.
        monotonic: Monotonic time in seconds.
    """
    generation = deployment.metadata.generation
    settle = max(SETTLE_SECONDS, deployment.spec.min_ready_seconds)
    current = {one.metadata.uid: _steps(one, settle, now) for one in replicas}
    if before is None:
        stalled = _stored_seconds(deployment, now)
        return Reached(generation=generation, steps=current, moved_seconds=monotonic - stalled), stalled
    known = before.steps
    if before.generation != generation:
        return Reached(generation=generation, steps=current, moved_seconds=monotonic), 0.0
    if known.keys() == current.keys() and all(_adds_nothing(known[uid], steps) for uid, steps in current.items()):
        return before, monotonic - before.moved_seconds
    return Reached(generation=generation, steps=_joined(known, current), moved_seconds=monotonic), 0.0


def stored_progress(deployment: ModelDeployment, stalled_seconds: float, now: datetime) -> str:
    """Return the time to store as that of the last progress: the one that is stored, unless it is off by too much."""
    stored = deployment.status.last_progress_time
    moved = now - timedelta(seconds=stalled_seconds)
    allowed = max(deployment.spec.progress_deadline_seconds * STORED_SHARE, 1.0)
    if stored and abs((moved - parse_time(stored)).total_seconds()) <= allowed:
        return stored
    return format_time(moved)


def settle_seconds(replica: Replica, min_ready_seconds: float, now: datetime) -> float:
    """Return how long a Ready replica must still be Ready to count; 0 when it counts or is not Ready."""
    found = conditions.find(replica.status.conditions, conditions.READY)
    if found is None or found.status != "True":
        return 0.0
    return max(max(SETTLE_SECONDS, min_ready_seconds) - age_seconds(found, now), 0.0)


def age_seconds(said: conditions.Condition, now: datetime) -> float:
    """Return how long a condition has had its status; a time in the future (the clock was set back) counts as long ago."""
    age = (now - parse_time(said.last_transition_time)).total_seconds() if said.last_transition_time else 0.0
    return age if age >= 0 else math.inf


def _steps(replica: Replica, settle: float, now: datetime) -> Steps:
    states = 0
    for said in replica.status.conditions:
        if said.status == "True":
            states |= _STATES.get(said.type, 0)
            # By the default, availability follows Ready so soon that it is no step of its own.
            if said.type == conditions.READY and settle > SETTLE_SECONDS and age_seconds(said, now) >= settle:
                states |= _AVAILABLE
    progress = replica.status.progress
    return (_ACTIVATIONS[replica.spec.activation], progress.fetched_bytes if progress else 0, states)


def _adds_nothing(before: Steps, after: Steps) -> bool:
    return after[0] <= before[0] and after[1] <= before[1] and not after[2] & ~before[2]


def _joined(before: Mapping[str, Steps], after: Mapping[str, Steps]) -> Mapping[str, Steps]:
    joined = {}
    for uid, (activation, count, states) in after.items():
        old = before.get(uid, (0, 0, 0))
        joined[uid] = (max(activation, old[0]), max(count, old[1]), states | old[2])
    return joined


def _stored_seconds(deployment: ModelDeployment, now: datetime) -> float:
    """Return for how long nothing has moved as far as the store knows, after a start of the controller."""
    spec, status = deployment.spec, deployment.status
    limit = float(spec.progress_deadline_seconds)
    if status.observed_generation != deployment.metadata.generation or not status.last_progress_time:
        return 0.0
    said = conditions.find(status.conditions, conditions.PROGRESSING)
    if said is not None and said.reason == conditions.PROGRESS_DEADLINE_EXCEEDED:
        return limit
    passed = (now - parse_time(status.last_progress_time)).total_seconds()
    return min(max(passed, 0.0), max(limit - RESTART_SECONDS, 0.0))
