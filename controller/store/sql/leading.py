"""The store in the hands of a leader: the same reads and watches, and writes that count only while it leads.

`app.py` gives it to the loops and to the sessions of the controller that holds the Lease. A leader that was replaced without noticing, for
example because its machine stood still, can read on and deceive itself; what it writes is refused by the database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from controller.store.base import Item, Page, Selection, Watch
from controller.store.sql.calls import Writing
from rkfleet.meta import Ref, ResourceName

if TYPE_CHECKING:
    from controller.store import writes
    from controller.store.sql.store import SqlStore

__all__ = ["LeaderStore"]


class LeaderStore(Writing):
    """See `controller.store.base.Store`; made by `SqlStore.leading`."""

    def __init__(self, store: SqlStore, term: int) -> None:
        self._store: Final = store
        self._term: Final = term

    async def get(self, ref: Ref) -> Item:
        """See `Store.get`."""
        return await self._store.get(ref)

    async def list(self, resource: ResourceName, selection: Selection = Selection(), *, limit: int = 0, continue_token: str = "") -> Page:
        """See `Store.list`."""
        return await self._store.list(resource, selection, limit=limit, continue_token=continue_token)

    async def watch(
        self, resource: ResourceName, selection: Selection = Selection(), *, resource_version: str, bookmarks: bool = False
    ) -> Watch:
        """See `Store.watch`."""
        return await self._store.watch(resource, selection, resource_version=resource_version, bookmarks=bookmarks)

    async def _send(self, write: writes.Write) -> Item:
        return await self._store.write(write, self._term)
