"""Scenarios with a name: what an operator would want to have seen once. Their transcripts are in `tests/scenario/fleets/`."""

from __future__ import annotations

from rkfleet.kinds import Board as BoardKind
from rkfleet.kinds import ModelDeployment
from tests.support.scenario.fleet import Fleet, Scenario


async def _begin(fleet: Fleet, boards: int, slots: int = 1) -> None:
    fleet.start_controller()
    fleet.start_gateway()
    for number in range(boards):
        await fleet.add_board(f"b{number}", slots)
    await fleet.push_model("qwen2")
    await fleet.push_model("qwen3")


async def first_rollout(fleet: Fleet) -> None:
    """Two boards, two replicas, from nothing to tokens."""
    await _begin(fleet, 2)
    await fleet.deploy("chat", "qwen2", 2)
    await fleet.converge()


SCENARIOS: dict[str, Scenario] = {"first_rollout": first_rollout}
