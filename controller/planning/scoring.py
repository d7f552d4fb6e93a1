"""Which of the boards that fit is taken.

In order: the preferred variant where the template states an order, the board with the fewest replicas of the same deployment (so that one
lost board takes down few, and two workers do not share an NPU while another one idles), the variant that comes first in the Model, a
board that heat does not slow down, the least loaded board (the largest share of memory that stays free), and at last the name, so that the
same view always gives the same choice. A successor takes its predecessor's board before any of this is asked (placement.py).

The Model's order comes after spreading because it says which variant suits a board that could run several, not which chip is to be filled
first; who wants that names the variants in the template.
"""

from __future__ import annotations

from controller.planning.feasibility import BoardLoad, Fit, Need
from rkfleet import conditions

__all__ = ["Rank", "rank"]

Rank = tuple[int, int, int, bool, float, str]


def rank(load: BoardLoad, fit: Fit, need: Need) -> Rank:
    """Return the sort key of a board that fits; the smallest is taken."""
    same = sum(one.deployment == need.deployment for one in load.reservations.values())
    share_free = fit.free_bytes / load.memory_bytes if load.memory_bytes else 0.0
    hot = conditions.is_true(load.board.status.conditions, conditions.THERMAL_PRESSURE)
    return (fit.preference if need.order_stated else 0, same, fit.preference, hot, -share_free, load.board.metadata.name)
