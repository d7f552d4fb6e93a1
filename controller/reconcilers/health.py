"""The health loop: says of each Board whether it takes part, and of its Replicas that nothing is known while it does not.

Woken by Boards and by the hub whenever a board's presence changes (`Loops.wake_board`). Decisions are `planning/health.py`'s.
"""

from __future__ import annotations

from typing import Final

from controller.planning.health import plan_health
from controller.reconcilers.act import Applier
from controller.reconcilers.views import BY_BOARD, PresenceReader, Views
from rkfleet.meta import Ref

__all__ = ["HealthReconciler"]


class HealthReconciler:
    """See `machinery.reconciler.Reconciler`; the key is a Board."""

    def __init__(self, views: Views, presence: PresenceReader, applier: Applier) -> None:
        self._views: Final = views
        self._presence: Final = presence
        self._applier: Final = applier

    async def reconcile(self, key: Ref) -> float | None:
        """Write what is known about the board's presence."""
        board = self._views.boards.snapshot().find_ref(key)
        if board is None:
            return None
        replicas = self._views.replicas.snapshot().by(BY_BOARD, key.name)
        plan = plan_health(board, self._presence.of(key.name), replicas)
        await self._applier.apply(plan.actions)
        return plan.again_after_seconds
