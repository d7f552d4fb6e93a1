"""The placement loop: all Replicas without a board at once, one key for the fleet.

Woken by Replicas, Boards and what they depend on. It is one key because every binding changes what is left for the others; planning for
all of them from one view is what keeps memory from being given away twice. Decisions are `planning/placement.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from controller.planning.actions import Bind
from controller.planning.placement import Fleet, plan_placement
from controller.reconcilers.act import Applier
from controller.reconcilers.views import BY_SCHEDULING, UNSCHEDULED, Views, by_name
from controller.store.base import Selection
from rkfleet.kinds import Board, Replica
from rkfleet.meta import Ref

__all__ = ["KEY", "PlacementReconciler"]

KEY: Final = Ref(Replica.resource.name, "", "")
# Planning for more takes longer than the 20 ms for which nothing may hold the event loop; a plan is a pure function over frozen values, so
# a thread can make it. For fewer the way to the thread would cost more than the plan.
INLINE_OBJECTS_MAX: Final = 500

_log: Final = logging.getLogger(__name__)


class PlacementReconciler:
    """See `machinery.reconciler.Reconciler`; the key is `KEY`."""

    def __init__(self, views: Views, applier: Applier) -> None:
        self._views: Final = views
        self._applier: Final = applier

    async def reconcile(self, key: Ref) -> float | None:
        """Place what can be placed and say of the rest why it cannot."""
        assert key == KEY
        replicas = self._views.replicas.snapshot()
        if not replicas.by(BY_SCHEDULING, UNSCHEDULED):
            return None
        fleet = Fleet(
            boards=tuple(self._views.boards.snapshot()),
            replicas=tuple(replicas),
            deployments=by_name(self._views.deployments.snapshot()),
            revisions=by_name(self._views.revisions.snapshot()),
            models=by_name(self._views.models.snapshot()),
        )
        big = len(fleet.boards) + len(fleet.replicas) > INLINE_OBJECTS_MAX
        plan = await asyncio.to_thread(plan_placement, fleet) if big else plan_placement(fleet)
        chosen = {action.board for action in plan.actions if isinstance(action, Bind)}
        if chosen:
            await self._check_current(fleet, chosen)
        await self._applier.apply(plan.actions)
        if plan.waiting:
            _log.debug("%s waits for %s", key, plan.waiting)
        return plan.again_after_seconds

    async def _check_current(self, fleet: Fleet, chosen: set[str]) -> None:
        """See to it that no binding and no chosen board is newer than the view: reports of replicas do not matter here."""
        await self._applier.check_current(Replica, Selection(), fleet.replicas, matters=_binding_differs)
        for board in fleet.boards:
            if board.metadata.name in chosen:
                itself = Selection(fields=((("metadata", "name"), board.metadata.name, True),))
                await self._applier.check_current(Board, itself, (board,))


def _binding_differs(old: Replica | None, new: Replica | None) -> bool:
    """Whether memory is taken or given that the plan did not see; replicas that wait take none, and their turn comes."""
    if old is None or new is None:
        one = old or new
        return one is not None and bool(one.spec.board_name)
    return old.spec != new.spec or old.metadata.deletion_timestamp != new.metadata.deletion_timestamp
