"""What operators do to deployments that serve: drain a board, restart, pause, undo, and what they read when there is no room.

`Fleet` checks every write: never below the minimum available, never above replicas + maxSurge, never above a board's memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from rkfleet.conditions import DISRUPTION_TARGET, Condition, is_true
from rkfleet.kinds import ModelDeployment, ModelRevision, Replica
from tests.support.fleet import SMALL, Fleet, Leader

ROUNDS_MAX = 60


async def make(boards: int, *, memory: str = "2Gi", **spec: Any) -> tuple[Fleet, Leader]:
    """Return a fleet that serves one deployment."""
    fleet = Fleet()
    leader = Leader(fleet)
    fleet.clock.advance(1.0)
    await fleet.create_model("small", SMALL, "a")
    for number in range(boards):
        await fleet.connect(await fleet.create_board(f"b{number}", memory), leader)
    await fleet.create(ModelDeployment, "chat", {"template": {"model": "small"}, **spec})
    await fleet.settle(leader, rounds=ROUNDS_MAX)
    assert told(fleet)["Ready"].status == "True"
    return fleet, leader


async def turn(fleet: Fleet, leader: Leader, times: int = 1, *, seconds: float = 1.0) -> None:
    for _ in range(times):
        await leader.run_all()
        await fleet.work()
        fleet.clock.advance(seconds)
    leader.see_all()


def chat(fleet: Fleet) -> ModelDeployment:
    (found,) = fleet.store.all(ModelDeployment)
    return found  # type: ignore[no-any-return]


def told(fleet: Fleet) -> dict[str, Condition]:
    return {one.type: one for one in chat(fleet).status.conditions}


def homes(fleet: Fleet) -> dict[str, str]:
    """Return the replicas by name, each with its board."""
    return {one.metadata.name: one.spec.board_name for one in fleet.store.all(Replica)}


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize(
    "strategy", [{"maxUnavailable": 1, "maxSurge": 0}, {"maxUnavailable": 0, "maxSurge": 1}, {"maxUnavailable": "34%"}]
)
def test_a_drained_board_is_emptied_and_the_deployment_serves_on(strategy: dict[str, Any], paused: bool) -> None:
    async def scenario() -> None:
        fleet, leader = await make(3, replicas=3, strategy=strategy, minReadySeconds=5)
        await fleet.edit("chat", {"paused": paused})
        before = chat(fleet).status.current_revision
        await fleet.cordon("b0")
        await fleet.taint("b0")
        await turn(fleet, leader)
        (target,) = [one for one in fleet.store.all(Replica) if is_true(one.status.conditions, DISRUPTION_TARGET)]
        assert target.spec.board_name == "b0"
        for _ in range(ROUNDS_MAX):
            assert told(fleet)["Available"].status == "True"
            await turn(fleet, leader)
        assert "b0" not in homes(fleet).values()
        assert len(homes(fleet)) == 3
        assert {one.spec.revision_name for one in fleet.store.all(Replica)} == {before}
        assert told(fleet)["Ready"].status == "True"

    run(scenario)


def test_a_board_that_is_cordoned_keeps_what_it_has() -> None:
    async def scenario() -> None:
        fleet, leader = await make(2, replicas=2)
        before = homes(fleet)
        await fleet.cordon("b0")
        await fleet.settle(leader, rounds=ROUNDS_MAX)
        await fleet.taint("b0", "NoSchedule")
        await fleet.settle(leader, rounds=ROUNDS_MAX)
        assert homes(fleet) == before
        assert told(fleet)["Ready"].status == "True"

    run(scenario)


def test_a_drain_of_the_whole_fleet_takes_nothing_down_and_goes_on_when_a_board_comes() -> None:
    async def scenario() -> None:
        fleet, leader = await make(2, memory="1Gi", replicas=2)
        for name in ("b0", "b1"):
            await fleet.taint(name)
        await fleet.settle(leader, rounds=ROUNDS_MAX)
        ready = told(fleet)["Ready"]
        assert (ready.status, ready.reason) == ("False", "BoardDraining")
        assert ready.message.startswith("2 of 2 replicas must leave board b0 (taint rkfleet.dev/drain:NoExecute), board b1 (taint")
        assert "taint rkfleet.dev/drain:NoExecute is not tolerated: b0, b1" in ready.message
        assert ready.message.endswith("Try: rkfleet board uncordon b0")
        assert chat(fleet).status.available_replicas == 2
        await fleet.connect(await fleet.create_board("b2", "2Gi"), leader)
        await fleet.settle(leader, rounds=ROUNDS_MAX)
        assert set(homes(fleet).values()) == {"b2"}
        assert told(fleet)["Ready"].status == "True"

    run(scenario)


def test_the_end_of_a_drain_leaves_everything_as_it_was() -> None:
    async def scenario() -> None:
        fleet, leader = await make(2, memory="1Gi", replicas=2)
        before = homes(fleet)
        await fleet.taint("b0")
        await fleet.settle(leader, rounds=ROUNDS_MAX)
        assert len(homes(fleet)) == 3
        await fleet.taint("b0", "")
        await fleet.settle(leader, rounds=ROUNDS_MAX)
        assert homes(fleet) == before
        assert not [one for one in fleet.store.all(Replica) if one.status.conditions and is_true(one.status.conditions, DISRUPTION_TARGET)]
        assert told(fleet)["Ready"].status == "True"

    run(scenario)


def test_a_deployment_that_tolerates_the_taint_stays() -> None:
    async def scenario() -> None:
        tolerations = [{"key": "rkfleet.dev/drain", "operator": "Exists", "effect": "NoExecute"}]
        fleet, leader = await make(2, replicas=2, placement={"tolerations": tolerations})
        before = homes(fleet)
        await fleet.taint("b0")
        await fleet.settle(leader, rounds=ROUNDS_MAX)
        assert homes(fleet) == before

    run(scenario)


def test_a_drain_in_the_middle_of_a_paused_rollout_keeps_each_replica_at_its_revision() -> None:
    async def scenario() -> None:
        fleet, leader = await make(4, memory="1Gi", replicas=3)
        old = chat(fleet).status.current_revision
        await fleet.edit("chat", {"template": {"serving": {"contextTokens": 2048}}})
        while sum(one.spec.revision_name != old and one.spec.activation == "Serving" for one in fleet.store.all(Replica)) < 1:
            await turn(fleet, leader)
        await fleet.edit("chat", {"paused": True})
        await fleet.settle(leader, rounds=ROUNDS_MAX)
        revisions = sorted(one.spec.revision_name for one in fleet.store.all(Replica) if one.spec.activation == "Serving")
        victim = next(one for one in fleet.store.all(Replica) if one.spec.revision_name == old and one.spec.activation == "Serving")
        await fleet.taint(victim.spec.board_name)
        await fleet.settle(leader, rounds=ROUNDS_MAX)
        assert victim.spec.board_name not in homes(fleet).values()
        assert sorted(one.spec.revision_name for one in fleet.store.all(Replica) if one.spec.activation == "Serving") == revisions
        await fleet.edit("chat", {"paused": False})
        await fleet.settle(leader, rounds=ROUNDS_MAX)
        assert old not in {one.spec.revision_name for one in fleet.store.all(Replica)}
        assert told(fleet)["Ready"].status == "True"

    run(scenario)


def test_a_surge_without_room_is_told_and_goes_on_when_a_board_comes_or_one_may_be_missing() -> None:
    async def scenario(helps: str) -> None:
        fleet, leader = await make(2, memory="1Gi", replicas=2, strategy={"maxUnavailable": 0, "maxSurge": 1})
        await fleet.edit("chat", {"template": {"serving": {"contextTokens": 2048}}})
        await turn(fleet, leader, 12)
        progressing, ready = told(fleet)["Progressing"], told(fleet)["Ready"]
        assert (progressing.status, progressing.reason, ready.reason) == ("False", "SurgeImpossible", "SurgeImpossible")
        assert "variant q4 needs 1Gi of memory: b0 (0 of 1Gi free), b1 (0 of 1Gi free). Try: kubectl patch" in progressing.message
        assert chat(fleet).status.available_replicas == 2
        if helps == "board":
            await fleet.connect(await fleet.create_board("b2", "1Gi"), leader)
        else:
            await fleet.edit("chat", {"strategy": {"maxUnavailable": 1}})
        await fleet.settle(leader, rounds=ROUNDS_MAX)
        assert told(fleet)["Ready"].status == "True"
        assert told(fleet)["Progressing"].reason == "RolloutComplete"

    for helps in ("board", "field"):
        asyncio.run(scenario(helps))


def test_a_restart_exchanges_every_replica_for_one_of_the_same_model() -> None:
    async def scenario() -> None:
        fleet, leader = await make(3, memory="1Gi", replicas=3)
        before = {one.metadata.uid for one in fleet.store.all(Replica)}
        annotations = {"rkfleet.dev/restartedAt": "2026-01-01T12:00:00Z"}
        await fleet.edit("chat", {"template": {"metadata": {"annotations": annotations}}})
        await fleet.settle(leader, rounds=ROUNDS_MAX)
        after = {one.metadata.uid for one in fleet.store.all(Replica)}
        assert len(after) == 3
        assert not before & after
        assert [one.spec.template.model for one in fleet.store.all(ModelRevision)] == ["small", "small"]
        assert told(fleet)["Ready"].status == "True"

    run(scenario)


def test_undo_by_the_template_of_a_kept_revision_goes_back_to_it_and_keeps_the_history() -> None:
    async def scenario() -> None:
        fleet, leader = await make(1, replicas=1, revisionHistoryLimit=1)
        first = chat(fleet).status.current_revision
        await fleet.edit("chat", {"template": {"serving": {"contextTokens": 2048}, "variants": ["q4"]}})
        await fleet.settle(leader, rounds=ROUNDS_MAX)
        (kept,) = [one for one in fleet.store.all(ModelRevision) if one.metadata.name == first]
        template = msgspec.to_builtins(kept.spec.template)
        # A merge patch leaves what it does not name, so undo names every field of the template.
        whole = {"metadata": None, "variants": None, "serving": None, **template}
        await fleet.edit("chat", {"template": whole})
        await fleet.settle(leader, rounds=ROUNDS_MAX)
        status = chat(fleet).status
        assert status.current_revision == first
        assert {one.metadata.name: one.spec.revision for one in fleet.store.all(ModelRevision)}[first] == 3
        assert len(fleet.store.all(ModelRevision)) == 2
        assert ("RolledBack", f"goes back to revision {first}") in fleet.events

    run(scenario)


def test_a_stuck_rollout_is_told_after_the_deadline_and_still_after_a_restart_of_the_controller() -> None:
    async def scenario() -> None:
        fleet, leader = await make(2, memory="1Gi", replicas=2, progressDeadlineSeconds=120)
        await fleet.edit("chat", {"template": {"serving": {"contextTokens": 4097}}})  # Beyond what the variant was made for.
        await turn(fleet, leader, 100)
        assert told(fleet)["Progressing"].reason == "RollingOut"
        second = Leader(fleet)  # After 100 of 120 seconds: it takes the count up, and leaves boards time to come back.
        await turn(fleet, second, 30)
        assert told(fleet)["Progressing"].reason == "RollingOut"
        await turn(fleet, second, 40)
        assert (told(fleet)["Progressing"].status, told(fleet)["Progressing"].reason) == ("False", "ProgressDeadlineExceeded")
        third = Leader(fleet)
        await turn(fleet, third, 3)
        assert (told(fleet)["Progressing"].status, told(fleet)["Progressing"].reason) == ("False", "ProgressDeadlineExceeded")
        assert chat(fleet).status.available_replicas == 2
        await fleet.edit("chat", {"template": {"serving": {"contextTokens": 4096}}})
        await fleet.settle(third, rounds=ROUNDS_MAX)
        assert told(fleet)["Ready"].status == "True"

    run(scenario)


def test_a_worker_that_comes_up_and_crashes_in_turns_does_not_keep_a_rollout_alive() -> None:
    async def scenario() -> None:
        fleet, leader = await make(1, memory="1Gi", replicas=1, progressDeadlineSeconds=60)
        await fleet.edit("chat", {"template": {"serving": {"contextTokens": 2048}}, "minReadySeconds": 10})
        for _ in range(40):
            await turn(fleet, leader, 3)
            fleet.boards["b0"].crash()
        assert told(fleet)["Progressing"].reason == "ProgressDeadlineExceeded"
        await fleet.settle(leader, rounds=ROUNDS_MAX)
        assert told(fleet)["Ready"].status == "True"

    run(scenario)
