"""How long a replica of a hollow board fetches and loads, and how the load ends. Pure.

In: a scenario, and which load of which replica on which board. Out: a `Fate`, the same for the same seed, whatever else happens and in
whatever order: names decide, not the uids that the controller draws. `machine.py` asks before each fetch and each start.
"""

from __future__ import annotations

import random
from typing import Literal

import msgspec

from simulation.hollow.scenario import Scenario

__all__ = ["Fate", "fate_of"]


class Fate(msgspec.Struct, frozen=True, kw_only=True):
    """What one load comes to.

    Attributes:
        attempt: Which load it is.
        ends: Ready, or LoadFailed after `load_seconds`, or Crashed some time after it was ready.
        crash_after_seconds: When, after Ready.
        slow: Whether it is one of the slow ones.
    """

    attempt: int
    fetch_seconds: float
    load_seconds: float
    ends: Literal["Ready", "LoadFailed", "Crashed"]
    crash_after_seconds: float
    slow: bool


def fate_of(scenario: Scenario, board: str, replica: str, attempt: int) -> Fate:
    """Return the fate of a load.

    Args:
        scenario: Times, fractions and seed.
        board: Name of the board.
        replica: `namespace/name`.
        attempt: Number of the load on this board, from 0; each is drawn anew.
    """
    draw = random.Random(f"{scenario.seed}/{board}/{replica}/{attempt}")  # noqa: S311 (a simulation that can be repeated)
    load, failures = scenario.load, scenario.failures
    slow = draw.random() < scenario.slow.fraction
    stretch = scenario.slow.factor if slow else 1.0
    fetch_seconds = load.fetch_seconds * stretch * draw.uniform(1 - load.jitter, 1 + load.jitter)
    load_seconds = load.load_seconds * stretch * draw.uniform(1 - load.jitter, 1 + load.jitter)
    luck = draw.random()
    ends: Literal["Ready", "LoadFailed", "Crashed"] = "Ready"
    if luck < failures.load_failed:
        ends = "LoadFailed"
    elif luck < failures.load_failed + failures.crashed:
        ends = "Crashed"
    return Fate(
        attempt=attempt,
        fetch_seconds=fetch_seconds,
        load_seconds=load_seconds,
        ends=ends,
        crash_after_seconds=failures.crash_after_seconds,
        slow=slow,
    )
