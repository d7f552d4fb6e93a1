"""Which boards lose their connection, when and for how long. Pure.

In: a scenario and the boards. Out: `Away`s in the order of their time, without end where there is churn. `app.py` walks through them.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Sequence

import msgspec

from simulation.hollow.scenario import Outage, Scenario

__all__ = ["Away", "Place", "forecast"]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A board as weather sees it."""

    board: str
    soc: str
    site: str = ""


class Away(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Boards that cannot reach the controller from `at_seconds` on, for `for_seconds`."""

    at_seconds: float
    for_seconds: float
    boards: tuple[str, ...]
    why: str


def forecast(scenario: Scenario, places: Sequence[Place]) -> Iterator[Away]:
    """Return what happens to these boards, in order; seconds count from the moment at which all were in session."""
    ordered = sorted(places, key=lambda one: one.board)
    outages = sorted(_outage(scenario.seed, number, one, ordered) for number, one in enumerate(scenario.outages))
    return heapq.merge(outages, _churn(scenario, [one.board for one in ordered]))


def _outage(seed: int, number: int, outage: Outage, places: Sequence[Place]) -> Away:
    hit = [one.board for one in places if outage.site in ("", one.site) and outage.soc in ("", one.soc)]
    chosen = random.Random(f"{seed}/outage/{number}").sample(hit, round(outage.fraction * len(hit)))  # noqa: S311 (repeatable)
    where = " of ".join(filter(None, [f"chip {outage.soc}" if outage.soc else "", f"site {outage.site}" if outage.site else ""]))
    return Away(
        at_seconds=outage.at_seconds,
        for_seconds=outage.for_seconds,
        boards=tuple(sorted(chosen)),
        why=f"outages[{number}]" + (f" ({where})" if where else ""),
    )


def _churn(scenario: Scenario, boards: Sequence[str]) -> Iterator[Away]:
    """Yield one board after the other, at the times of a Poisson process with the wanted rate."""
    churn, draw = scenario.churn, random.Random(f"{scenario.seed}/churn")  # noqa: S311 (repeatable)
    per_second = churn.fraction_per_minute * len(boards) / 60
    now = 0.0
    while per_second > 0:
        now += draw.expovariate(per_second)
        yield Away(at_seconds=now, for_seconds=churn.away_seconds, boards=(draw.choice(boards),), why="churn")
