"""Deployment, placement, health, assignment and board loss together, under lagging caches and a second stale leader."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rkfleet.kinds import ModelDeployment, Replica
from rkfleet.meta import Ref
from tests.support.fleet import LARGE, SMALL, Fleet, Leader

LOST_SECONDS = 20
ROUNDS_MAX = 100  # Of 5 seconds: a rollout of four replicas in place takes 40 of them.
CACHED = ["boards.rkfleet.dev", "models.rkfleet.dev", "modeldeployments.rkfleet.dev", "modelrevisions.rkfleet.dev", "replicas.rkfleet.dev"]

boards = st.integers(0, 3)
WEIGHTS: list[tuple[int, st.SearchStrategy[tuple[Any, ...]]]] = [
    # The order of things goes on, and the second leader looks at it now and then and writes much later.
    (12, st.tuples(st.just("round"), st.integers(1, 8))),
    (3, st.tuples(st.just("glance"), st.just(1))),
    (4, st.tuples(st.just("run"), st.just(1), st.sampled_from(["deployment", "deployment", "placement"]))),
    (2, st.tuples(st.just("run"), st.integers(0, 1), st.sampled_from(Leader.LOOPS))),
    (2, st.tuples(st.just("see"), st.integers(0, 1), st.sampled_from(CACHED), st.integers(1, 8))),
    (2, st.tuples(st.just("die"), st.integers(0, 1), st.sampled_from(["deployment", "placement"]), st.integers(0, 4))),
    (3, st.tuples(st.just("twice"), st.sampled_from(["deployment", "placement", "health", "assignment"]))),
    (2, st.tuples(st.just("work"), boards)),
    (1, st.tuples(st.just("crash"), boards)),
    (2, st.tuples(st.just("disconnect"), boards)),
    (2, st.tuples(st.just("connect"), boards)),
    (2, st.tuples(st.just("pass"), st.sampled_from([1.0, 3.0, 16.0, 35.0, 61.0, 130.0]))),
    (3, st.tuples(st.just("scale"), st.integers(0, 5))),
    (5, st.tuples(st.just("template"), st.sampled_from([512, 1024, 2048]))),
    (2, st.tuples(st.just("model"), st.sampled_from(["small", "large"]))),
    (2, st.tuples(st.just("strategy"), st.sampled_from([(1, 0), (0, 1), (1, 1), (2, 0), ("50%", "25%")]))),
    (1, st.tuples(st.just("pause"), st.booleans())),
    (1, st.tuples(st.just("cordon"), boards, st.booleans())),
    (3, st.tuples(st.just("taint"), boards, st.sampled_from(["NoExecute", "NoExecute", "NoSchedule", ""]))),
    (1, st.tuples(st.just("settling"), st.sampled_from([0, 5, 20]))),
    (1, st.tuples(st.just("remake"), st.sampled_from(["chat", "code"]))),
]
steps = st.sampled_from([one for weight, one in WEIGHTS for _ in range(weight)]).flatmap(lambda one: one)
# A list by itself would have five steps on average.
scripts = st.integers(0, 60).flatmap(lambda count: st.lists(steps, min_size=count, max_size=count))


async def make_fleet() -> tuple[Fleet, list[Leader]]:
    fleet = Fleet()
    leaders = [Leader(fleet), Leader(fleet)]
    fleet.clock.advance(1.0)
    await fleet.create_model("small", SMALL, "a")
    await fleet.create_model("large", LARGE, "b")
    for number in range(4):
        await fleet.connect(await fleet.create_board(f"b{number}"), leaders[0])
    for name in ("chat", "code"):
        await make_deployment(fleet, name)
    return fleet, leaders


async def make_deployment(fleet: Fleet, name: str) -> None:
    replicas = {"chat": 3, "code": 1}[name]
    spec = {"replicas": replicas, "template": {"model": "small"}, "placement": {"boardLostSeconds": LOST_SECONDS}}
    await fleet.create(ModelDeployment, name, spec)


async def take(fleet: Fleet, leaders: list[Leader], step: tuple[Any, ...]) -> None:
    match step:
        case ("run", leader, loop):
            await leaders[leader].run(loop)
        case ("die", leader, loop, after):
            fleet.store.writes_left = after
            leaders[leader].see_all()
            await leaders[leader].run(loop)
            fleet.store.writes_left = None
        case ("see", leader, resource, count):
            leaders[leader].see(resource, count)
        case ("glance", leader):
            leaders[leader].see_all()
        case ("round", count):
            for _ in range(count):
                await leaders[0].run_all()
                await fleet.work()
                fleet.clock.advance(1.0)
        case ("twice", loop):
            leaders[0].see_all()
            await leaders[0].run(loop)
            leaders[0].see_all()
            before = fleet.store.writes
            await leaders[0].run(loop)
            assert fleet.store.writes == before, f"one pass of the {loop} loop is enough until something happens elsewhere"
        case ("work", number):
            await fleet.work(fleet.boards[f"b{number}"])
        case ("crash", number):
            fleet.boards[f"b{number}"].crash()
        case ("disconnect", number):
            fleet.disconnect(fleet.boards[f"b{number}"])
        case ("connect", number):
            await fleet.connect(fleet.boards[f"b{number}"], leaders[0])
        case ("pass", seconds):
            fleet.clock.advance(seconds)
        case ("scale", replicas):
            await fleet.edit("chat", {"replicas": replicas})
        case ("template", tokens):
            await fleet.edit("chat", {"template": {"serving": {"contextTokens": tokens}}})
        case ("model", model):
            await fleet.edit("code", {"template": {"model": model}})
        case ("strategy", (unavailable, surge)):
            await fleet.edit("chat", {"strategy": {"maxUnavailable": unavailable, "maxSurge": surge}})
        case ("pause", paused):
            await fleet.edit("chat", {"paused": paused})
        case ("cordon", number, unschedulable):
            await fleet.cordon(f"b{number}", unschedulable)
        case ("taint", number, effect):
            await fleet.taint(f"b{number}", effect)
        case ("settling", seconds):
            await fleet.edit("chat", {"minReadySeconds": seconds})
        case ("remake", name):
            await fleet.store.delete(Ref(ModelDeployment.resource.name, "default", name), now=fleet.clock.now())
            await make_deployment(fleet, name)
        case _:
            raise AssertionError(step)
    fleet.check_boards()


async def heal(fleet: Fleet, leader: Leader) -> None:
    """End every trouble: boards back, none cordoned or drained, nothing paused, and numbers that fit the boards."""
    leader.see_all()
    for number, board in enumerate(fleet.boards.values()):
        await take(fleet, [leader], ("cordon", number, False))
        await take(fleet, [leader], ("taint", number, ""))
        await fleet.connect(board, leader)
    await take(fleet, [leader], ("pause", False))
    await take(fleet, [leader], ("scale", 2))


def keep_promises(chosen: list[tuple[Any, ...]], drained: str = "b0") -> None:
    """Take the steps, heal the fleet, and see that it comes to rest with everything as declared; `Fleet` watches every write.

    Then one board is drained. Whatever happened before, the others have room, so it is empty in the end and everything as declared again.
    """

    async def scenario() -> None:
        fleet, leaders = await make_fleet()
        for step in chosen:
            await take(fleet, leaders, step)
        await heal(fleet, leaders[0])
        await fleet.settle(leaders[0], rounds=ROUNDS_MAX)
        check_rest(fleet)
        await fleet.taint(drained)
        await fleet.settle(leaders[0], rounds=ROUNDS_MAX)
        check_rest(fleet)
        assert not [one for one in fleet.store.all(Replica) if one.spec.board_name == drained]

    asyncio.run(scenario())


def check_rest(fleet: Fleet) -> None:
    """Every deployment is as declared, and no replica is there that no deployment owns."""
    for deployment in fleet.store.all(ModelDeployment):
        status = deployment.status
        said = {one.type: one for one in status.conditions}
        assert said["Ready"].status == "True", said
        assert (status.replicas, status.updated_replicas, status.available_replicas) == (deployment.spec.replicas,) * 3
        assert len(fleet.replicas_of(deployment)) == deployment.spec.replicas
    owners = {one.metadata.uid for one in fleet.store.all(ModelDeployment)}
    assert all(one.metadata.owner_references[0].uid in owners for one in fleet.store.all(Replica))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scripts, st.sampled_from(["b0", "b1", "b2", "b3"]))
@example([("round", 1), ("disconnect", 0), ("scale", 0), ("round", 1), ("round", 1), ("pass", 61.0), ("twice", "deployment")], "b0")
def test_the_loops_keep_their_promises_and_come_to_rest(chosen: list[tuple[Any, ...]], drained: str) -> None:
    keep_promises(chosen, drained)
