"""The latest-value cell and the bounded log between the agent's loop and its session."""

import asyncio

import msgspec

from agent.reports import MEASURED_SECONDS, Reports
from rkfleet.kinds.replica import Measured, Progress
from rkfleet.report import LOG_ENTRIES_MAX, BoardFacts, BoardState, ReplicaState
from tests.support.clocks import ManualClock

STATE = ReplicaState(namespace="default", name="chat-1", uid="u")


def board(replica: ReplicaState) -> BoardState:
    return BoardState(assignment_number=1, facts=BoardFacts(soc="cpu"), replicas=(replica,))


def measured(seconds: float, speed: float) -> ReplicaState:
    return msgspec.structs.replace(STATE, measured=Measured(time_to_first_token_seconds=seconds, decode_tokens_per_second=speed))


def test_the_same_state_again_is_not_a_change() -> None:
    """The session is not woken to say nothing."""
    reports = Reports(ManualClock())
    reports.publish(board(STATE))
    version = reports.version
    reports.publish(board(STATE))
    assert reports.version == version
    reports.publish(board(msgspec.structs.replace(STATE, restarts=1)))
    assert reports.version == version + 1


def test_waiting_for_a_change_returns_the_newest_version_at_once_if_there_is_one() -> None:
    """A slow reader sees the latest value, not each of them."""

    async def scenario() -> None:
        reports = Reports(ManualClock())
        async with asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(reports.changed(0)) for _ in range(2)]
            reports.publish(board(STATE))
            reports.record("Normal", "Loaded", "the model is loaded")
        assert [task.result() for task in waiting] == [2, 2]
        assert await reports.changed(1) == 2

    asyncio.run(asyncio.wait_for(scenario(), 5))


def test_speeds_have_two_digits() -> None:
    """What is noise is not written."""
    reports = Reports(ManualClock())
    reports.publish(board(measured(0.21456, 16.44)))
    assert reports.state is not None
    assert reports.state.replicas[0].measured == Measured(time_to_first_token_seconds=0.21, decode_tokens_per_second=16)


def test_speeds_alone_are_reported_at_most_once_a_minute() -> None:
    """Each report costs the controller a write."""
    clock = ManualClock()
    reports = Reports(clock)
    reports.publish(board(measured(0.2, 16)))
    clock.advance(MEASURED_SECONDS - 1)
    reports.publish(board(measured(0.3, 14)))
    assert reports.state == board(measured(0.2, 16))
    clock.advance(1)
    reports.publish(board(measured(0.3, 14)))
    assert reports.state == board(measured(0.3, 14))


def test_speeds_travel_with_any_other_change() -> None:
    """A transition carries the speed of the moment; so does the first speed of all."""
    reports = Reports(ManualClock())
    reports.publish(board(STATE))
    reports.publish(board(measured(0.2, 16)))
    assert reports.state == board(measured(0.2, 16))
    changed = msgspec.structs.replace(measured(0.4, 12), progress=Progress(fetched_bytes=1, total_bytes=2))
    reports.publish(board(changed))
    assert reports.state == board(changed)


def test_log_entries_are_kept_until_they_are_acknowledged() -> None:
    """A session that breaks carries them again."""
    reports = Reports(ManualClock())
    for number in range(3):
        reports.record("Warning", "WorkerExited", f"exit {number}", namespace="default", name="chat-1", uid="u")
    assert [entry.sequence for entry in reports.log()] == [1, 2, 3]
    assert reports.log()[0].time == "2026-01-01T00:00:00Z"
    reports.acknowledge(2)
    assert [entry.sequence for entry in reports.log()] == [3]
    assert reports.log(after=3) == ()


def test_a_full_log_drops_the_oldest_and_counts_it() -> None:
    """The board's memory is bounded however long the controller is away."""
    reports = Reports(ManualClock())
    for number in range(LOG_ENTRIES_MAX + 5):
        reports.record("Normal", "Loaded", str(number))
    assert (len(reports.log()), reports.log()[0].sequence, reports.dropped) == (LOG_ENTRIES_MAX, 6, 5)
