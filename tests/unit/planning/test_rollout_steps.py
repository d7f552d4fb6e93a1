"""The steps of scaling and of a rollout, each with the case that it is for."""

from __future__ import annotations

from typing import Any

import pytest

from controller.planning.rollout import Creation, Goal, Member, plan_rollout, resolve_strategy


def goal(replicas: int, unavailable: int = 1, surge: int = 0, *, rolling: bool = True) -> Goal:
    return Goal(revision="new", replicas=replicas, max_unavailable=unavailable, max_surge=surge, rolling=rolling)


def member(slot: int, revision: str = "new", **more: Any) -> Member:
    fields = {"placed": True, "ready": True, "available": True, **more}
    return Member(uid=f"u{slot}", name=f"r-{slot}", slot=slot, revision=revision, **fields)


def waiting(slot: int, revision: str = "new", **more: Any) -> Member:
    return member(slot, revision, **{"ready": False, "available": False, **more})


def uids(pairs: tuple[tuple[str, str], ...]) -> list[str]:
    return [uid for uid, _ in pairs]


@pytest.mark.parametrize(
    ("replicas", "unavailable", "surge", "expected"),
    [
        (10, "25%", "25%", (2, 3)), (1, 1, 0, (1, 0)), (3, "0%", 0, (1, 0)), (3, 0, "1%", (0, 1)), (0, 1, 0, (1, 0)), (2, 5, 1, (2, 1)),
        (4, "10%", "0%", (1, 0)),
    ],
)  # fmt: skip
def test_percentages_are_rounded_as_kubernetes_rounds_them(
    replicas: int, unavailable: int | str, surge: int | str, expected: tuple[int, int]
) -> None:
    assert resolve_strategy(replicas, unavailable, surge) == expected


def test_missing_replicas_take_the_lowest_free_slots() -> None:
    moves = plan_rollout(goal(3), [member(1)])
    assert moves.create == (Creation(slot=0), Creation(slot=2))


def test_scaling_down_takes_the_unplaced_then_the_unready_then_the_highest_slot() -> None:
    members = [member(0), member(1, placed=False, ready=False, available=False), waiting(2), member(3), member(4)]
    assert uids(plan_rollout(goal(4), members).delete) == ["u1"]
    moves = plan_rollout(goal(2), members)
    assert (uids(moves.delete), uids(moves.drain)) == (["u1"], ["u2", "u4"])


def test_scaling_down_does_not_wait_for_a_lost_board() -> None:
    moves = plan_rollout(goal(1), [member(0), waiting(1, absent=True, lost=True)])
    assert (uids(moves.delete), moves.drain) == (["u1"], ())


def test_a_draining_replica_goes_when_it_is_drained_or_its_board_is_lost() -> None:
    draining = [
        waiting(1, activation="Draining"),
        waiting(2, activation="Draining", drained=True),
        waiting(3, activation="Draining", lost=True),
    ]
    assert uids(plan_rollout(goal(1), [member(0), *draining]).delete) == ["u2", "u3"]


def test_a_replica_of_a_gone_board_is_replaced_in_another_slot() -> None:
    moves = plan_rollout(goal(2), [member(0), waiting(1, absent=True, lost=True, gone=True)])
    assert (uids(moves.delete), moves.create) == (["u1"], (Creation(slot=2),))


def test_in_place_the_successor_is_staged_first_and_one_ahead() -> None:
    moves = plan_rollout(goal(3), [member(slot, "old") for slot in range(3)])
    assert moves.drain == ()
    assert moves.create == (Creation(slot=3, activation="Staged", replaces="u0"), Creation(slot=4, activation="Staged", replaces="u1"))


def test_in_place_the_predecessor_drains_when_the_bytes_are_there() -> None:
    old = [member(slot, "old") for slot in range(3)]
    fetching = waiting(3, activation="Staged", replaces="u0")
    assert plan_rollout(goal(3), [*old, fetching]).drain == ()
    staged = waiting(3, activation="Staged", replaces="u0", staged=True)
    assert uids(plan_rollout(goal(3), [*old, staged]).drain) == ["u0"]


def test_in_place_only_as_many_drain_as_may_be_missing() -> None:
    old = [member(slot, "old") for slot in range(3)]
    staged = [waiting(3 + slot, activation="Staged", replaces=f"u{slot}", staged=True) for slot in range(2)]
    assert uids(plan_rollout(goal(3), [*old, *staged]).drain) == ["u0"]
    assert uids(plan_rollout(goal(3, unavailable=2), [*old, *staged]).drain) == ["u0", "u1"]


def test_the_successor_serves_in_the_moment_in_which_the_drained_one_goes() -> None:
    drained = waiting(0, "old", activation="Draining", drained=True)
    moves = plan_rollout(goal(1), [drained, waiting(1, activation="Staged", replaces="u0", staged=True)])
    assert (uids(moves.delete), moves.activate, moves.create) == (["u0"], ("u1",), ())


def test_by_surge_nothing_drains_before_the_new_one_is_available() -> None:
    old = member(0, "old")
    assert plan_rollout(goal(1, 0, 1), [old]).create == (Creation(slot=1),)
    assert plan_rollout(goal(1, 0, 1), [old, waiting(1)]).count == 0
    assert plan_rollout(goal(1, 0, 1), [old, waiting(1, ready=True)]).count == 0, "ready, but gateways may not know it yet"
    assert uids(plan_rollout(goal(1, 0, 1), [old, member(1)]).drain) == ["u0"]


def test_by_surge_the_next_one_waits_for_the_room_of_what_drains() -> None:
    members = [waiting(0, "old", activation="Draining"), member(1, "old"), member(2)]
    assert plan_rollout(goal(2, 0, 1), members).count == 0
    assert plan_rollout(goal(2, 0, 1), members[1:]).create == (Creation(slot=0),)


def test_a_surge_without_room_falls_back_to_in_place_and_goes_in_the_end() -> None:
    unplaceable = Member(uid="u9", name="r-9", slot=9, revision="new", unschedulable=True)
    moves = plan_rollout(goal(1, 1, 1), [member(0, "old"), unplaceable])
    assert moves.create == (Creation(slot=1, activation="Staged", replaces="u0"),)
    staged = waiting(1, activation="Staged", replaces="u0")
    assert uids(plan_rollout(goal(1, 1, 1), [member(0, "old"), unplaceable, staged]).delete) == ["u9"]


def test_a_broken_old_replica_gives_way_without_counting() -> None:
    members = [waiting(0, "old", broken=True), member(1, "old"), waiting(2, activation="Staged", replaces="u0", staged=True)]
    assert uids(plan_rollout(goal(2), members).drain) == ["u0"]
    blinking = [waiting(0, "old"), member(1, "old"), waiting(2, activation="Staged", replaces="u1", staged=True)]
    assert plan_rollout(goal(2), blinking).drain == (), "u0 may be back in a moment; until then u1 must stay"


def test_paused_holds_the_rollout_but_finishes_the_place_that_is_empty() -> None:
    members = [
        waiting(0, "old", activation="Draining", drained=True), waiting(2, activation="Staged", replaces="u0", staged=True),
        member(1, "old"), waiting(3, activation="Staged", replaces="u1", staged=True),
    ]  # fmt: skip
    moves = plan_rollout(goal(2, rolling=False), members)
    assert (uids(moves.delete), moves.activate, moves.drain, moves.create) == (["u0"], ("u2",), (), ())


def test_a_rollback_drops_successors_of_the_revision_that_is_left() -> None:
    members = [member(0), waiting(1, "left", activation="Staged", replaces="u0")]
    assert uids(plan_rollout(goal(1), members).delete) == ["u1"]


def test_staged_successors_go_when_nothing_may_be_replaced_in_place_any_more() -> None:
    moves = plan_rollout(goal(1, 0, 1), [member(0, "old"), waiting(1, activation="Staged", replaces="u0", staged=True)])
    assert (uids(moves.delete), moves.create) == (["u1"], (Creation(slot=2),))


def test_scaled_to_zero_everything_drains() -> None:
    moves = plan_rollout(goal(0), [member(0), member(1, "old"), waiting(2, activation="Staged", replaces="u1")])
    assert (uids(moves.delete), sorted(uids(moves.drain))) == (["u2"], ["u0", "u1"])


# ---- Boards that are emptied ---------------------------------------------------------------------------------------------------


def test_by_surge_a_replica_leaves_its_board_when_another_one_serves() -> None:
    members = [member(0, evicted=True), member(1)]
    assert plan_rollout(goal(2, 0, 1), members).create == (Creation(slot=2),)
    assert plan_rollout(goal(2, 0, 1), [*members, waiting(2)]).count == 0
    assert uids(plan_rollout(goal(2, 0, 1), [*members, member(2)]).drain) == ["u0"]


def test_without_surge_a_replica_leaves_its_board_when_its_bytes_are_elsewhere() -> None:
    members = [member(0), member(1, evicted=True)]
    assert plan_rollout(goal(2), members).create == (Creation(slot=2, activation="Staged", replaces="u1"),)
    fetching = waiting(2, activation="Staged", replaces="u1")
    assert plan_rollout(goal(2), [*members, fetching]).count == 0
    assert uids(plan_rollout(goal(2), [*members, waiting(2, activation="Staged", replaces="u1", staged=True)]).drain) == ["u1"]


def test_a_board_is_not_emptied_below_the_minimum() -> None:
    members = [waiting(0), member(1, evicted=True), waiting(2, activation="Staged", replaces="u1", staged=True)]
    assert plan_rollout(goal(2), members).drain == (), "u0 is missing already"
    assert uids(plan_rollout(goal(2, unavailable=2), members).drain) == ["u1"]


def test_a_successor_is_not_staged_on_a_board_that_is_emptied() -> None:
    members = [member(0, "old", evicted=True), waiting(1, activation="Staged", replaces="u0", staged=True, evicted=True)]
    moves = plan_rollout(goal(1), members)
    assert (uids(moves.delete), moves.drain) == (["u1"], ())
    assert moves.create == (Creation(slot=2, activation="Staged", replaces="u0"),)


def test_a_board_is_emptied_although_no_revision_is_started_and_with_the_same_revision() -> None:
    members = [member(0, "old", evicted=True), member(1, "old"), member(2)]
    paused = goal(3, rolling=False)
    assert plan_rollout(paused, members).create == (Creation(slot=3, revision="old", activation="Staged", replaces="u0"),)
    staged = waiting(3, "old", activation="Staged", replaces="u0", staged=True)
    assert uids(plan_rollout(paused, [*members, staged]).drain) == ["u0"]
    assert plan_rollout(goal(3, 0, 1, rolling=False), members).create == (Creation(slot=3, revision="old"),)
    assert uids(plan_rollout(goal(3, 0, 1, rolling=False), [*members, member(3, "old")]).drain) == ["u0"]


def test_in_a_rollout_what_leaves_its_board_leaves_its_revision_too_and_goes_first() -> None:
    members = [member(0, "old"), member(1, "old", evicted=True), member(2, "old")]
    staged = [Creation(slot=3, activation="Staged", replaces="u1"), Creation(slot=4, activation="Staged", replaces="u0")]
    assert list(plan_rollout(goal(3), members).create) == staged


def test_when_a_board_stays_after_all_its_successors_go() -> None:
    staged = waiting(2, activation="Staged", replaces="u0", staged=True)
    assert uids(plan_rollout(goal(2), [member(0), member(1), staged]).delete) == ["u2"]
    assert uids(plan_rollout(goal(2, rolling=False), [member(0), member(1), staged]).delete) == ["u2"]
    moves = plan_rollout(goal(2, 0, 1), [member(0), member(1), waiting(2, placed=False)])
    assert (uids(moves.delete), moves.drain) == (["u2"], ())


def test_scaling_down_takes_what_has_to_leave_first() -> None:
    assert uids(plan_rollout(goal(2), [member(0, evicted=True), member(1), member(2)]).drain) == ["u0"]


def test_a_board_without_room_elsewhere_keeps_what_serves() -> None:
    """A surge that no board can hold is kept and waited for; nothing is created again and again."""
    homeless = Member(uid="u9", name="r-9", slot=9, revision="new", unschedulable=True)
    assert plan_rollout(goal(1, 0, 1), [member(0, evicted=True), homeless]).count == 0
    staged = Member(uid="u9", name="r-9", slot=9, revision="new", activation="Staged", replaces="u0", unschedulable=True)
    assert plan_rollout(goal(1), [member(0, evicted=True), staged]).count == 0


def test_a_successor_that_is_staged_on_another_board_serves_when_a_missing_replica_finds_no_room() -> None:
    """Its bytes hold the very room that the missing one waits for, and its predecessor may not go before that one is available."""
    members = [
        member(0, "old"),
        waiting(1, activation="Staged", replaces="u0", elsewhere=True),
        waiting(2, placed=False, unschedulable=True),
    ]
    moves = plan_rollout(goal(2), members)
    assert (uids(moves.delete), moves.activate, moves.drain) == (["u2"], ("u1",), ())
    in_place = [members[0], waiting(1, activation="Staged", replaces="u0"), members[2]]
    moves = plan_rollout(goal(2), in_place)
    assert (moves.delete, moves.activate, moves.drain) == ((), (), ()), "on its predecessor's board it holds no room of its own"


def test_a_replica_that_its_board_never_spoke_of_is_deleted_and_not_drained() -> None:
    """Its board may never be told of it (its Model is gone), and then nobody would ever say that it is drained."""
    moves = plan_rollout(goal(1), [member(0), waiting(1, "old", reported=False)])
    assert (uids(moves.delete), moves.drain) == (["u1"], ())
    moves = plan_rollout(goal(1), [member(0), waiting(1, activation="Draining", reported=False)])
    assert uids(moves.delete) == ["u1"]


def test_an_old_replica_that_its_board_never_spoke_of_makes_room_for_one_that_finds_none() -> None:
    """It holds room for nothing: its successor cannot be staged beside it, and a missing replica waits for that room."""
    unplaced = Member(uid="u3", name="r-3", slot=3, revision="new", unschedulable=True)
    successor = Member(uid="u5", name="r-5", slot=5, revision="new", activation="Staged", replaces="u2", unschedulable=True)
    others = [unplaced, member(4), successor]
    moves = plan_rollout(goal(3), [waiting(2, "old", reported=False, broken=True), *others])
    assert (uids(moves.delete), moves.activate, moves.drain, moves.create) == (["u2"], ("u5",), (), ())
    assert plan_rollout(goal(3), [waiting(2, "old", reported=False), *others]).count == 0, "its board may still be told"
    assert plan_rollout(goal(3), [waiting(2, "old", broken=True), *others]).count == 0, "what was told may run there"
    assert plan_rollout(goal(3, rolling=False), [waiting(2, "old", reported=False, broken=True), *others]).delete == ()
