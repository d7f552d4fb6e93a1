"""A second process that believes it leads: what it writes from an old view must not break a promise.

`Fleet` checks every write; these are the moments that chance would seldom find.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from rkfleet.conditions import READY, is_true
from rkfleet.kinds import Board, ModelDeployment, Replica
from tests.support.fleet import LARGE, SMALL, Fleet, Leader

BOARDS, MODELS, DEPLOYMENTS, REVISIONS, REPLICAS = (
    "boards.rkfleet.dev", "models.rkfleet.dev", "modeldeployments.rkfleet.dev", "modelrevisions.rkfleet.dev", "replicas.rkfleet.dev",
)  # fmt: skip


async def make(boards: int, memory: str = "2Gi") -> tuple[Fleet, Leader, Leader]:
    fleet = Fleet()
    leader, stale = Leader(fleet), Leader(fleet)
    fleet.clock.advance(1.0)
    await fleet.create_model("small", SMALL, "a")
    await fleet.create_model("large", LARGE, "b")
    for number in range(boards):
        await fleet.connect(await fleet.create_board(f"b{number}", memory), leader)
    return fleet, leader, stale


async def turn(fleet: Fleet, leader: Leader, times: int = 1) -> None:
    for _ in range(times):
        await leader.run_all()
        await fleet.work()
        fleet.clock.advance(1.0)
    leader.see_all()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


def test_two_leaders_that_see_different_boards_do_not_promise_memory_twice() -> None:
    async def scenario() -> None:
        fleet, leader, stale = await make(2, "1Gi")
        for name in ("chat", "code"):
            await fleet.create(ModelDeployment, name, {"replicas": 1, "template": {"model": "small"}})
        leader.see_all()
        await leader.run("health")
        await leader.run("deployment")
        stale.see_all()  # Two replicas that wait, two boards.
        leader.see_all()
        await fleet.cordon("b0")
        leader.see_all()
        await leader.run("placement")  # One of them goes to b1, since b0 is cordoned.
        (bound,) = [one for one in fleet.store.all(Replica) if one.spec.board_name]
        assert bound.spec.board_name == "b1"
        await stale.run("placement")  # It believes that b1 is free for the other.
        assert len([one for one in fleet.store.all(Replica) if one.spec.board_name]) == 1
        assert any("has changed" in refusal for refusal in fleet.refusals)

    run(scenario)


def test_a_leader_that_missed_a_drain_does_not_drain_another_one() -> None:
    async def scenario() -> None:
        fleet, leader, stale = await make(3, "1Gi")
        await fleet.create(ModelDeployment, "chat", {"replicas": 3, "template": {"model": "small"}})
        await turn(fleet, leader, 8)
        await fleet.edit("chat", {"template": {"serving": {"contextTokens": 2048}}})
        await leader.run_all()  # Two successors are staged and placed; their bytes are not there yet.
        first, second = sorted(fleet.boards.values(), key=lambda board: min(one.name for one in board.assignment.replicas))[:2]
        leader.see_all()
        await leader.run("assignment")
        await fleet.work(second)
        stale.see_all()  # It has seen the second successor ready to take over, and not the first.
        await fleet.work(first)
        leader.see_all()
        await leader.run("deployment")
        draining = [one.metadata.name for one in fleet.store.all(Replica) if one.spec.activation == "Draining"]
        assert len(draining) == 1
        await stale.run("deployment")
        assert [one.metadata.name for one in fleet.store.all(Replica) if one.spec.activation == "Draining"] == draining

    run(scenario)


def test_a_leader_that_missed_a_whole_rollout_brings_nothing_of_it_back() -> None:
    async def scenario() -> None:
        fleet, leader, stale = await make(3)
        await fleet.create(ModelDeployment, "chat", {"replicas": 2, "template": {"model": "small"}})
        leader.see_all()
        await leader.run("deployment")
        for resource in (BOARDS, MODELS, DEPLOYMENTS, REVISIONS):  # It knows what is wanted and not that it was made.
            stale.see(resource)
        await turn(fleet, leader, 8)
        await fleet.edit("chat", {"template": {"serving": {"contextTokens": 2048}}})
        await turn(fleet, leader, 30)
        before = sorted(one.metadata.name for one in fleet.store.all(Replica))
        await stale.run("deployment")
        assert sorted(one.metadata.name for one in fleet.store.all(Replica)) == before

    run(scenario)


def test_a_leader_that_has_not_seen_a_board_yet_does_not_replace_its_replicas() -> None:
    async def scenario() -> None:
        fleet, leader, stale = await make(1)
        await fleet.create(ModelDeployment, "chat", {"replicas": 1, "template": {"model": "small"}})
        await turn(fleet, leader, 8)
        for resource in (MODELS, DEPLOYMENTS, REVISIONS, REPLICAS):
            stale.see(resource)
        assert len(stale.views.boards.snapshot()) == 0
        (before,) = fleet.store.all(Replica)
        await stale.run("deployment")
        (after,) = fleet.store.all(Replica)
        assert after.metadata.uid == before.metadata.uid

    run(scenario)


def test_a_leader_that_has_not_seen_an_owner_yet_does_not_collect_what_it_owns() -> None:
    async def scenario() -> None:
        fleet, leader, stale = await make(1)
        await fleet.create(ModelDeployment, "chat", {"replicas": 1, "template": {"model": "small"}})
        await turn(fleet, leader, 8)
        stale.see(REPLICAS)
        stale.see(REVISIONS)
        await stale.run("garbage")
        assert len(fleet.store.all(Replica)) == 1

    run(scenario)


def test_a_rollout_by_surge_on_one_board_with_room_for_two_is_never_without_a_replica() -> None:
    """The way of the demo: replicas 1, maxSurge 1, maxUnavailable 0."""

    async def scenario() -> None:
        fleet, leader, _ = await make(1, "2Gi")
        strategy = {"maxSurge": 1, "maxUnavailable": 0}
        await fleet.create(ModelDeployment, "chat", {"replicas": 1, "template": {"model": "small"}, "strategy": strategy})
        await turn(fleet, leader, 8)
        (old,) = fleet.store.all(Replica)
        await fleet.edit("chat", {"template": {"serving": {"contextTokens": 2048}}})
        ready = []
        for _ in range(20):
            await turn(fleet, leader)
            replicas = fleet.store.all(Replica)
            ready.append([one.spec.activation for one in replicas if is_true(one.status.conditions, READY)])
            if len(replicas) == 1 and replicas[0].metadata.uid != old.metadata.uid:
                break
        else:
            raise AssertionError("the rollout did not end")
        assert all("Serving" in one for one in ready)
        assert ["Serving", "Serving"] in ready, "both served before the old one drained"

    run(scenario)


def test_a_lost_board_that_comes_back_is_used_again() -> None:
    async def scenario() -> None:
        fleet, leader, _ = await make(2, "1Gi")
        await fleet.create(ModelDeployment, "chat", {"replicas": 2, "template": {"model": "small"}, "placement": {"boardLostSeconds": 5}})
        await turn(fleet, leader, 8)
        lost = fleet.boards["b0"]
        fleet.disconnect(lost)
        await turn(fleet, leader, 8)
        assert sorted(one.spec.board_name for one in fleet.store.all(Replica)) == ["", "b1"], "replaced, and waiting for room"
        await turn(fleet, leader, 60)
        assert {one.status.conditions[0].reason for one in fleet.store.all(Board)} == {"SessionOpen", "BoardLost"}
        await fleet.connect(lost, leader)
        assert lost.assignment.replicas == (), "the first assignment leaves out what was replaced"
        await fleet.settle(leader, rounds=60)
        assert sorted(one.spec.board_name for one in fleet.store.all(Replica)) == ["b0", "b1"]

    run(scenario)


def test_a_store_that_was_restored_mints_above_what_a_board_holds() -> None:
    async def scenario() -> None:
        fleet, leader, _ = await make(1)
        board = fleet.boards["b0"]
        fleet.disconnect(board)
        board.number, board.sha256 = 41, "of a later time"
        await fleet.connect(board, leader)
        (stored,) = fleet.store.all(Board)
        assert (board.number, stored.status.assignment.number) == (42, 42)
        assert ("AssignmentRewound", True) in [(reason, "42 was minted" in message) for reason, message in fleet.events]

    run(scenario)
