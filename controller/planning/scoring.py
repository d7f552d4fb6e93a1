"""Which of the boards that fit is taken.

In order: the preferred variant, the board with the fewest replicas of the same deployment (so that one lost board takes down few), the
least loaded one (the largest share of memory that stays free), and at last the name, so that the same view always gives the same
choice. A successor takes its predecessor's board before any of this is asked (placement.py).
"""

from __future__ import annotations

from controller.planning.feasibility import BoardLoad, Fit, Need

__all__ = ["Rank", "rank"]

Rank = tuple[int, int, float, str]


def rank(load: BoardLoad, fit: Fit, need: Need) -> Rank:
    """Return the sort key of a board that fits; the smallest is taken."""
    same = sum(one.deployment == need.deployment for one in load.reservations.values())
    return (fit.preference, same, -fit.free_bytes / load.memory_bytes if load.memory_bytes else 0.0, load.board.metadata.name)
