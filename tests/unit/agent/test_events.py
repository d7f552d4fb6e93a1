"""What is worth an Event, and the board's own conditions."""

import msgspec

from agent.planning.events import Happening, happenings
from agent.planning.pressure import DISK_FLOOR_BYTES, disk_pressure, memory_pressure
from rkfleet.conditions import Condition, condition
from rkfleet.kinds.replica import LastExit
from rkfleet.report import BoardFacts, BoardState, ReplicaState

REPLICA = ReplicaState(namespace="default", name="chat-1", uid="u")
BOARD = BoardState(assignment_number=1, facts=BoardFacts(soc="cpu"))


def board(*conditions: Condition, last_exit: LastExit | None = None) -> BoardState:
    return msgspec.structs.replace(BOARD, replicas=(msgspec.structs.replace(REPLICA, conditions=conditions, last_exit=last_exit),))


def reasons(before: BoardState | None, after: BoardState) -> list[tuple[str, str]]:
    return [(one.type, one.reason) for one in happenings(before, after)]


def test_steps_forward_are_normal_events_once() -> None:
    """Fetched and loaded are told when they become true and not again."""
    fetching = board(condition("ArtifactAvailable", "False", "Fetching"))
    fetched = board(condition("ArtifactAvailable", "True", "Fetched"))
    assert reasons(fetching, fetched) == [("Normal", "Fetched")]
    assert reasons(fetched, fetched) == []
    assert happenings(fetching, fetched)[0] == Happening(
        type="Normal", reason="Fetched", message="every file is on the board and verified", namespace="default", name="chat-1", uid="u"
    )


def test_the_first_look_of_an_agent_tells_only_what_needs_somebody() -> None:
    """A restart does not repeat history."""
    assert reasons(None, board(condition("Loaded", "True", "ModelLoaded"))) == []
    assert reasons(None, board(condition("Loaded", "False", "RuntimeMissing", "why"))) == [("Warning", "RuntimeMissing")]


def test_one_reason_in_several_conditions_is_one_event() -> None:
    """Ready repeats the reason of what it waits for."""
    after = board(condition("ArtifactAvailable", "False", "DiskFull", "why"), condition("Ready", "False", "DiskFull", "why"))
    assert reasons(board(), after) == [("Warning", "DiskFull")]


def test_every_exit_of_a_worker_is_a_warning_also_when_it_came_back_at_once() -> None:
    """A death that nobody saw is told."""
    first, second = (LastExit(reason="Crashed", message="signal 11", time=f"2026-01-01T00:00:0{n}Z") for n in (1, 2))
    ready = condition("Ready", "True", "Serving")
    assert reasons(board(ready), board(ready, last_exit=first)) == [("Warning", "WorkerExited")]
    assert reasons(board(ready, last_exit=first), board(ready, last_exit=first)) == []
    assert reasons(board(ready, last_exit=first), board(ready, last_exit=second)) == [("Warning", "WorkerExited")]


def test_a_replica_that_is_gone_tells_nothing() -> None:
    """Its removal is the controller's news."""
    assert reasons(board(condition("Loaded", "True", "ModelLoaded")), BOARD) == []


def test_pressure_is_an_event_of_the_board_when_it_begins() -> None:
    """And not while it lasts."""
    full = msgspec.structs.replace(BOARD, conditions=(disk_pressure(free_bytes=0, problems=()),))
    assert reasons(BOARD, full) == [("Warning", "DiskFull")]
    assert reasons(full, full) == []
    assert reasons(full, BOARD) == []


def test_disk_pressure_shows_the_first_problem_or_the_free_bytes() -> None:
    """Somebody who could not write comes before a figure."""
    assert disk_pressure(free_bytes=DISK_FLOOR_BYTES, problems=()).status == "False"
    assert "less than 32Mi are free" in disk_pressure(free_bytes=DISK_FLOOR_BYTES - 1, problems=()).message
    assert disk_pressure(free_bytes=0, problems=("no room for x", "y")).message == "no room for x. Try: df -h, on the board"


def test_memory_pressure_says_how_much_there_is() -> None:
    """Both states are said, so that it can go away."""
    assert memory_pressure(low=False, total_bytes=1).reason == "Sufficient"
    assert "a twentieth of 4Gi" in memory_pressure(low=True, total_bytes=4 << 30).message


def test_a_model_that_goes_and_comes_is_everyday_and_a_field_without_effect_is_a_warning_once() -> None:
    """A model that makes room for another while a request waits is nobody's problem; one that can never load is."""
    serves = condition("Ready", "True", "OnDemand")
    loaded = board(condition("Loaded", "True", "ModelLoaded"), condition("Ready", "True", "Serving"))
    gone = board(condition("Loaded", "False", "Unloaded", "why"), serves)
    assert reasons(loaded, gone) == [("Normal", "Unloaded")]
    assert reasons(gone, board(condition("Loaded", "False", "WaitingForMemory", "why"), serves)) == []
    stuck = board(condition("Loaded", "False", "WaitingForMemory", "why"), condition("Ready", "False", "WaitingForMemory", "why"))
    assert reasons(gone, stuck) == [("Warning", "WaitingForMemory")]
    noted = board(condition("Loaded", "True", "ModelLoaded", "serving.cpus has no effect"), condition("Ready", "True", "Serving"))
    assert reasons(gone, noted) == [("Warning", "FieldWithoutEffect"), ("Normal", "ModelLoaded")]
    assert reasons(noted, noted) == []
    draining = board(condition("Loaded", "True", "ModelLoaded", "finishes what runs"), condition("Ready", "False", "Draining", "why"))
    assert reasons(loaded, draining) == []
