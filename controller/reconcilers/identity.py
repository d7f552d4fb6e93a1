"""The identity loop: ends the session of a board whose Board is gone or is another's, and shows who else tried to be it.

Woken by Boards that come, go or are bound anew, and by the hub whenever a board's presence changes or somebody was refused. It reads the
store and not the cache: a session must not outlive its Board by what a cache lags. Decisions are `planning/identity.py`'s.
"""

from __future__ import annotations

from typing import Final

from controller.planning.identity import plan_conflict, why_revoked
from controller.reconcilers.act import Applier
from controller.reconcilers.views import Identities
from controller.store.base import Item, Store, decode_item
from controller.trust.binding import binding_of
from rkfleet.clock import Clock
from rkfleet.errors import NotFound
from rkfleet.kinds import Board
from rkfleet.meta import Ref

__all__ = ["IdentityReconciler"]


class IdentityReconciler:
    """See `machinery.reconciler.Reconciler`; the key is a Board.

    Args:
        store: For consistent reads.
        identities: Who holds sessions and who was refused.
        applier: Writes.
        clock: Monotonic time.
    """

    def __init__(self, store: Store, identities: Identities, applier: Applier, clock: Clock) -> None:
        self._store: Final = store
        self._identities: Final = identities
        self._applier: Final = applier
        self._clock: Final = clock
        self._started: Final = clock.monotonic()

    async def reconcile(self, key: Ref) -> float | None:
        """End the session if it must end, and write what is known about attempts of others."""
        item = await self._find(key)
        held = self._identities.held(key.name)
        bound = "" if item is None else binding_of(item).key_sha256
        if held is not None and (why := why_revoked(key.name, held, item.uid if item else None, bound)):
            self._identities.revoke(key.name, why)
        if item is None:
            return None
        attempt = self._identities.attempt(key.name)
        plan = plan_conflict(decode_item(Board, item), attempt, self._clock.monotonic() - self._started)
        await self._applier.apply(plan.actions)
        return plan.again_after_seconds

    async def _find(self, key: Ref) -> Item | None:
        try:
            return await self._store.get(key)
        except NotFound:
            return None
