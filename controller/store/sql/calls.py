"""The five writes of a `Store` as values: what each method of the protocol asks the writer for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from controller.store import writes
from controller.store.base import Item, Propagation
from rkfleet.meta import Ref

__all__ = ["Writing"]

Json = dict[str, Any]


class Writing(ABC):
    """The writing half of `controller.store.base.Store`; `_send` says where a write goes."""

    @abstractmethod
    async def _send(self, write: writes.Write) -> Item:
        """Return what the write came to, or raise why not."""

    async def create(self, ref: Ref, obj: Json, *, keep_status: bool = False) -> Item:
        """See `Store.create`."""
        return await self._send(writes.Create(ref, obj, keep_status))

    async def update(
        self, ref: Ref, obj: Json, *, resource_version: str = "", uid: str = "", subresource: Literal["", "status"] = "", now: datetime
    ) -> Item:
        """See `Store.update`."""
        return await self._send(writes.Update(ref, obj, resource_version, uid, subresource, now))

    async def patch(
        self,
        ref: Ref,
        patch: Json,
        *,
        resource_version: str = "",
        uid: str = "",
        when: Mapping[str, Any] | None = None,
        subresource: Literal["", "status"] = "",
        now: datetime,
    ) -> Item:
        """See `Store.patch`."""
        return await self._send(writes.Patch(ref, patch, resource_version, uid, when or {}, subresource, now))

    async def patch_status(
        self,
        ref: Ref,
        uid: str,
        owner: str,
        fields: Mapping[str, Any],
        conditions: Sequence[Json],
        *,
        when: Mapping[str, Any] | None = None,
        now: datetime,
    ) -> Item:
        """See `Store.patch_status`."""
        return await self._send(writes.PatchStatus(ref, uid, owner, fields, conditions, when or {}, now))

    async def delete(
        self, ref: Ref, *, uid: str = "", resource_version: str = "", propagation: Propagation = "Background", now: datetime
    ) -> Item:
        """See `Store.delete`."""
        return await self._send(writes.Delete(ref, uid, resource_version, propagation, now))
