"""What counts as progress of a rollout, and how the deadline survives a restart of the controller."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from controller.planning.progress import RESTART_SECONDS, plan_progress, stored_progress
from rkfleet.kinds import ModelDeployment, Replica
from tests.support import planned
from tests.support.planned import NOW, said, seconds_ago

CHAT = planned.deployment(replicas=1)
NO, YES = "False", "True"


def replica(*, fetched: int = 0, uid: int = 0, activation: str = "Serving", since: str = planned.LONG_AGO, **states: str) -> Replica:
    one = planned.replica(
        f"chat-1-{uid}", CHAT, "chat-1", slot=uid, board="b0", activation=activation,
        conditions=[said(type, status, since=since) for type, status in states.items()],
    )  # fmt: skip
    status = {"conditions": one.status.conditions, "progress": {"fetchedBytes": fetched, "totalBytes": 100}}
    return planned.make(  # type: ignore[no-any-return]
        Replica, one.metadata.name, spec=msgspec.to_builtins(one.spec), status=msgspec.to_builtins(status)
    )


def stalled(*steps: Replica | tuple[Replica, ...], deployment: ModelDeployment = CHAT) -> list[float]:
    """Return for how long nothing has moved, as each of these worlds is seen, ten seconds apart."""
    reached, found = None, []
    for number, world in enumerate(steps):
        replicas = world if isinstance(world, tuple) else (world,)
        reached, seconds = plan_progress(reached, deployment, replicas, NOW + timedelta(seconds=10 * number), 500.0 + 10 * number)
        found.append(seconds)
    return found


def test_bytes_steps_and_replicas_that_come_and_go_are_progress() -> None:
    loaded = {"ArtifactAvailable": YES, "Loaded": YES}
    worlds: list[Replica | tuple[Replica, ...]] = [
        replica(), replica(fetched=5), replica(fetched=9), replica(fetched=9, ArtifactAvailable=YES), replica(fetched=9, **loaded),
        replica(fetched=9, **loaded, Ready=YES), (replica(fetched=9, **loaded, Ready=YES), replica(uid=1)), replica(uid=1),
        replica(uid=1, activation="Draining"),
    ]  # fmt: skip
    assert stalled(*worlds) == [0.0] * len(worlds)


def test_nothing_new_is_no_progress() -> None:
    assert stalled(replica(fetched=5), replica(fetched=5), replica(fetched=5)) == [0.0, 10.0, 20.0]


def test_a_worker_that_loads_and_crashes_in_turns_is_no_progress() -> None:
    up, down = replica(Loaded=YES, Ready=YES), replica(Loaded=NO, Ready=NO)
    assert stalled(down, up, down, up, down) == [0.0, 0.0, 10.0, 20.0, 30.0]


def test_bytes_that_are_fetched_again_are_no_progress() -> None:
    assert stalled(replica(fetched=90), replica(fetched=0), replica(fetched=80), replica(fetched=91)) == [0.0, 10.0, 20.0, 0.0]


def test_a_change_of_the_spec_starts_the_count_anew() -> None:
    reached, _ = plan_progress(None, CHAT, (replica(Ready=YES),), NOW, 500.0)
    again, seconds = plan_progress(reached, planned.deployment(generation=2), (replica(Ready=NO),), NOW, 600.0)
    assert seconds == 0.0
    _, seconds = plan_progress(again, planned.deployment(generation=2), (replica(Ready=YES),), NOW, 700.0)
    assert seconds == 0.0, "it is reached for the first time since then"


def test_becoming_available_is_progress_where_min_ready_seconds_tells_it_from_ready() -> None:
    chat = planned.deployment(minReadySeconds=25)
    ready = replica(Ready=YES, since=seconds_ago(0))
    assert stalled(ready, ready, ready, ready, ready, deployment=chat) == [0.0, 10.0, 20.0, 0.0, 10.0]
    assert stalled(ready, ready, ready, ready, ready) == [0.0, 10.0, 20.0, 30.0, 40.0]


def after_restart(status: dict[str, Any], **spec: Any) -> float:
    deployment = planned.deployment(status={"observedGeneration": 1, **status}, **spec)
    reached, seconds = plan_progress(None, deployment, (replica(),), NOW, 500.0)
    assert reached.moved_seconds == 500.0 - seconds
    return seconds


def test_a_restart_takes_the_count_up_where_it_was() -> None:
    assert after_restart({"lastProgressTime": seconds_ago(200)}) == 200.0


def test_a_restart_leaves_time_for_the_boards_to_come_back() -> None:
    """A rollout that was well does not fail because no controller was there for an hour."""
    assert after_restart({"lastProgressTime": seconds_ago(3600)}) == 600.0 - RESTART_SECONDS
    assert after_restart({"lastProgressTime": seconds_ago(3600)}, progressDeadlineSeconds=30) == 0.0


def test_what_was_stuck_is_stuck_after_a_restart() -> None:
    stuck = said("Progressing", "False", "ProgressDeadlineExceeded")
    assert after_restart({"lastProgressTime": seconds_ago(3600), "conditions": [stuck]}) == 600.0


@pytest.mark.parametrize(
    "status", [{}, {"lastProgressTime": seconds_ago(500), "observedGeneration": 0}, {"lastProgressTime": seconds_ago(-100)}]
)
def test_a_restart_blames_no_rollout_that_has_just_begun(status: dict[str, Any]) -> None:
    assert after_restart(status) == 0.0


def test_the_stored_time_moves_only_when_it_is_off_by_a_tenth_of_the_deadline() -> None:
    chat = planned.deployment(status={"lastProgressTime": seconds_ago(50)})
    assert stored_progress(chat, 50.0, NOW) == seconds_ago(50)
    assert stored_progress(chat, 0.0, NOW) == seconds_ago(50)
    assert stored_progress(chat, 0.0, NOW + timedelta(seconds=20)) == seconds_ago(-20)
    assert stored_progress(planned.deployment(), 5.0, NOW) == seconds_ago(5)
    backwards = planned.deployment(status={"lastProgressTime": seconds_ago(-7200)})
    assert stored_progress(backwards, 5.0, NOW) == seconds_ago(5), "the clock was set back"
