"""Presence of boards, what is said while they are away, and which of them count as lost."""

from __future__ import annotations

import pytest

from controller.planning.actions import Record, WriteStatus
from controller.planning.health import LOST_SECONDS, SILENT_SECONDS, Presence, plan_health, view_boards
from rkfleet.kinds import Board, Replica
from tests.support import planned
from tests.support.planned import said


def board(name: str = "a", *, conditions: list[planned.Json] | None = None, site: str = "", number: int = 1) -> Board:
    session = {"session": {"controller": "c", "number": number}} if number else {}
    return planned.make(  # type: ignore[no-any-return]
        Board, name, spec={}, status={**session, "conditions": conditions or []}, labels={"rkfleet.dev/site": site} if site else {}
    )


def away(seconds: float, *, seen: bool = True) -> Presence:
    return Presence(connected=False, seconds=seconds, seen=seen)


HERE = Presence(connected=True, seconds=5.0, seen=True)


def served(board: str = "a") -> Replica:
    return planned.replica("r-1-0", planned.deployment(), "r-1", board=board)


@pytest.mark.parametrize(
    ("presence", "number", "status", "reason"),
    [
        (HERE, 1, "True", "SessionOpen"),
        (away(0.0, seen=False), 1, "Unknown", "AwaitingReconnect"),
        (away(LOST_SECONDS - 1), 1, "Unknown", "AwaitingReconnect"),
        (away(LOST_SECONDS), 1, "False", "BoardLost"),
        (away(500.0, seen=False), 0, "Unknown", "NeverConnected"),
    ],
)
def test_a_board_says_whether_it_takes_part(presence: Presence, number: int, status: str, reason: str) -> None:
    write, event = plan_health(board(number=number), presence, ()).actions
    assert isinstance(write, WriteStatus)
    assert isinstance(event, Record)
    (ready,) = write.conditions
    assert (ready.type, ready.status, ready.reason, event.reason) == ("Ready", status, reason, reason)
    assert write.when == {"status.session.number": number or None}


@pytest.mark.parametrize("presence", [HERE, away(5.0), away(500.0)])
def test_a_board_that_was_deleted_and_made_again_has_not_connected_yet(presence: Presence) -> None:
    """What the hub knows under this name is a session of the Board before: the new one has none until its number is taken."""
    write, _ = plan_health(board(number=0), presence, ()).actions
    assert isinstance(write, WriteStatus)
    (ready,) = write.conditions
    assert (ready.status, ready.reason) == ("Unknown", "NeverConnected")


def test_nothing_is_written_twice() -> None:
    write, _ = plan_health(board(), HERE, ()).actions
    assert isinstance(write, WriteStatus)
    told = [said("Ready", "True", "SessionOpen", write.conditions[0].message)]
    known = planned.make(Board, "a", spec={}, status={"observedGeneration": 1, "session": {"number": 1}, "conditions": told})
    assert plan_health(known, HERE, (served(),)).actions == ()


def test_replicas_are_left_alone_while_a_connection_may_be_taken_up_again() -> None:
    plan = plan_health(board(), away(SILENT_SECONDS - 5), (served(),))
    assert not [one for one in plan.actions if isinstance(one, WriteStatus) and one.ref.name == "r-1-0"]
    assert plan.again_after_seconds == 5.0


def test_then_everything_that_only_the_board_could_know_is_unknown() -> None:
    plan = plan_health(board(), away(SILENT_SECONDS), (served(),))
    (write,) = [one for one in plan.actions if isinstance(one, WriteStatus) and one.ref.name == "r-1-0"]
    assert {(one.type, one.status) for one in write.conditions} == {
        ("ArtifactAvailable", "Unknown"), ("Loaded", "Unknown"), ("Ready", "Unknown"),
    }  # fmt: skip
    assert write.when == {"metadata.resourceVersion": "1"}, "a report that came in between is newer"
    silenced = planned.replica("r-1-0", planned.deployment(), "r-1", board="a", conditions=[
        said(one.type, one.status, one.reason, one.message) for one in write.conditions
    ])  # fmt: skip
    assert not [one for one in plan_health(board(), away(SILENT_SECONDS), (silenced,)).actions if one.ref.name == "r-1-0"]


def test_a_board_is_replaced_after_the_seconds_of_the_deployment() -> None:
    boards = [board("a"), board("b")]
    view = view_boards(boards, {"a": away(100.0), "b": HERE}, 300.0, ["a"])
    assert (view.absent, view.lost, view.gone, view.next_seconds) == ({"a"}, {"a"}, set(), 200.0)
    assert view_boards(boards, {"a": away(300.0), "b": HERE}, 300.0, ["a"]).gone == {"a"}


def test_after_a_start_of_the_controller_every_board_has_its_time_to_come_back() -> None:
    assert view_boards([board("a")], {"a": away(10.0, seen=False)}, 0.0, ["a"]).gone == set()
    assert view_boards([board("a")], {"a": away(10.0)}, 0.0, ["a"]).gone == {"a"}


def test_a_board_that_does_not_exist_any_more_is_gone_at_once() -> None:
    view = view_boards([], {}, 300.0, ["a"], ["a"])
    assert (view.absent, view.lost, view.gone) == ({"a"}, {"a"}, {"a"})


@pytest.mark.parametrize(
    ("lost", "of", "stopped"), [(3, 5, True), (3, 6, False), (2, 2, False), (3, 3, True), (56, 100, True), (55, 100, False)]
)
def test_replacement_stops_while_more_than_55_percent_and_3_boards_of_a_site_are_away(lost: int, of: int, stopped: bool) -> None:
    boards = [board(f"b{number}", site="lab") for number in range(of)] + [board(f"c{number}", site="attic") for number in range(20)]
    presences = {one.metadata.name: HERE for one in boards} | {f"b{number}": away(400.0) for number in range(lost)}
    view = view_boards(boards, presences, 300.0, ["b0"])
    assert (view.gone == set()) == stopped
    assert bool(view.stopped) == stopped
    if stopped:
        assert f"{lost} of {of} boards of site lab are away" in view.stopped
        assert view.next_seconds is not None, "the end of the stop is noticed without an event"


def test_a_stop_at_one_site_stops_no_other() -> None:
    boards = [board(f"b{number}", site="lab") for number in range(3)] + [board(f"c{number}", site="attic") for number in range(3)]
    presences = {one.metadata.name: away(400.0) for one in boards} | {"c1": HERE, "c2": HERE}
    assert view_boards(boards, presences, 300.0, ["b0", "c0"]).gone == {"c0"}


def test_boards_that_never_came_are_no_loss() -> None:
    boards = [board(f"b{number}", number=0) for number in range(9)] + [board("c")]
    presences = {one.metadata.name: away(400.0, seen=False) for one in boards}
    assert "c" in view_boards(boards, presences, 300.0, ["c"]).gone
