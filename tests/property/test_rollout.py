"""What the rollout keeps, whatever the replicas say about themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.planning.rollout import Goal, Member, Moves, plan_rollout, resolve_strategy

NEW = "new"


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Goal, tuple[Member, ...]]:
    replicas = draw(st.integers(0, 5))
    unavailable = draw(st.integers(0, replicas))
    surge = draw(st.integers(0 if unavailable else 1, 3))
    goal = Goal(
        revision=draw(st.sampled_from([NEW, NEW, NEW, ""])), replicas=replicas, max_unavailable=unavailable, max_surge=surge,
        rolling=draw(st.sampled_from([True, True, False])),
    )  # fmt: skip
    if not goal.revision:
        goal = Goal(revision="", replicas=replicas, max_unavailable=unavailable, max_surge=surge, rolling=False)
    members = []
    for slot in draw(st.lists(st.integers(0, 8), unique=True, max_size=8)):
        ready = draw(st.booleans())
        absent = draw(st.sampled_from([False, False, True]))
        lost = absent and draw(st.booleans())
        activation = draw(st.sampled_from(["Serving", "Serving", "Serving", "Staged", "Draining"]))
        placed = draw(st.sampled_from([True, True, True, False]))
        others = [other.uid for other in members]
        available = placed and ready and not absent and draw(st.sampled_from([True, True, False]))
        members.append(
            Member(
                uid=f"u{slot}", name=f"r-{slot}", slot=slot, revision=draw(st.sampled_from([NEW, "old", "older"])), activation=activation,
                replaces=draw(st.sampled_from([*others, "unknown", ""])) if activation == "Staged" else "",
                placed=placed, unschedulable=not placed and draw(st.booleans()), staged=placed and draw(st.booleans()),
                ready=placed and ready, broken=placed and not ready and draw(st.booleans()), available=available,
                drained=activation == "Draining" and draw(st.booleans()), absent=placed and absent, lost=placed and lost,
                gone=placed and lost and draw(st.booleans()), evicted=placed and draw(st.integers(0, 3)) == 0,
                deleting=draw(st.integers(0, 20)) == 0,
            )
        )  # fmt: skip
    return goal, tuple(members)


def applied(goal: Goal, members: tuple[Member, ...], moves: Moves) -> tuple[Member, ...]:
    deleted, drained = {uid for uid, _ in moves.delete}, {uid for uid, _ in moves.drain}
    after = []
    for member in members:
        if member.uid in deleted:
            continue
        fields = {name: getattr(member, name) for name in Member.__struct_fields__}
        if member.uid in drained:
            fields["activation"] = "Draining"
        if member.uid in moves.activate:
            fields["activation"] = "Serving"
        after.append(Member(**fields))
    for creation in moves.create:
        uid = f"c{creation.slot}"
        after.append(
            Member(
                uid=uid, name=uid, slot=creation.slot, revision=creation.revision or goal.revision, activation=creation.activation,
                replaces=creation.replaces,
            )
        )  # fmt: skip
    return tuple(after)


@settings(max_examples=400, deadline=None)
@given(worlds())
def test_one_plan_is_enough_until_something_is_seen(world: tuple[Goal, tuple[Member, ...]]) -> None:
    goal, members = world
    after = applied(goal, members, plan_rollout(goal, members))
    assert plan_rollout(goal, after).count == 0


@settings(max_examples=150, deadline=None)
@given(worlds(), st.randoms())
def test_the_order_in_which_replicas_are_listed_does_not_matter(world: tuple[Goal, tuple[Member, ...]], random) -> None:  # type: ignore[no-untyped-def]
    goal, members = world
    shuffled = list(members)
    random.shuffle(shuffled)
    assert plan_rollout(goal, tuple(shuffled)) == plan_rollout(goal, members)


@settings(max_examples=300, deadline=None)
@given(worlds())
def test_no_plan_leaves_fewer_available_than_must_be_or_lets_more_serve_than_may(world: tuple[Goal, tuple[Member, ...]]) -> None:
    goal, members = world
    before = [one for one in members if one.activation == "Serving" and not one.gone and not one.deleting]
    after = [one for one in plan_rollout(goal, members).after if one.activation == "Serving"]
    available = sum(one.available for one in before)
    assert sum(one.available for one in after) >= min(available, goal.minimum)
    assert len(after) <= max(len(before), goal.replicas + goal.max_surge)


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_what_is_not_exchanged_keeps_its_revision(world: tuple[Goal, tuple[Member, ...]]) -> None:
    """While no revision is started (paused, an unusable template), replicas leave boards with the revision that they have.

    And none is left to fetch on a board that is to be emptied.
    """
    goal, members = msgspec.structs.replace(world[0], rolling=False), world[1]
    moves = plan_rollout(goal, members)
    assert not [one for one in moves.after if one.activation == "Staged" and one.evicted]
    by_uid = {one.uid: one for one in members}
    for creation in moves.create:
        if creation.replaces:
            assert by_uid[creation.replaces].evicted
            assert (creation.revision or goal.revision) == by_uid[creation.replaces].revision
    kept = {one.uid for one in moves.after if one.activation == "Serving"}
    excess = sum(one.activation != "Draining" for one in members) - goal.replicas
    if excess <= 0:
        assert all(one.uid in kept or one.evicted for one in members if one.available and one.activation == "Serving" and not one.deleting)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 1000), st.one_of(st.integers(0, 1000), st.integers(0, 100).map("{}%".format)),
    st.one_of(st.integers(0, 1000), st.integers(0, 100).map("{}%".format)),
)  # fmt: skip
def test_a_strategy_resolves_as_in_kubernetes(replicas: int, unavailable: int | str, surge: int | str) -> None:
    """ResolveFenceposts and MaxUnavailable of `pkg/controller/deployment/util`: round up the surge, down the rest, never both 0."""

    def scaled(value: int | str, round_to: Callable[[Fraction], int]) -> int:
        return round_to(Fraction(int(value[:-1]), 100) * replicas) if isinstance(value, str) else value

    expected_surge, expected_unavailable = scaled(surge, math.ceil), scaled(unavailable, math.floor)
    if expected_surge == 0 and expected_unavailable == 0:
        expected_unavailable = 1
    assert resolve_strategy(replicas, unavailable, surge) == (min(expected_unavailable, replicas), expected_surge)
