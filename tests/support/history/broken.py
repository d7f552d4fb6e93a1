"""Stores that break their word, for servers of histories: each fault must be found from outside, by what clients recorded.

In: the real store, the name of a fault. Out: a store that does as the real one but, now and then, for that fault.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any, Literal, get_args

import msgspec

from controller.store import writes
from controller.store.base import Change, Item, Page, Selection, Store, Watch
from controller.store.sql.store import SqlStore
from rkfleet.kinds import KINDS
from rkfleet.meta import Ref, ResourceName

__all__ = ["FAULTS", "FORGETFUL", "Fault", "broken"]

Fault = Literal[
    "acknowledges what it does not keep",
    "answers with the state before",
    "overlooks versions",
    "begins watches too early",
    "begins watches too late",
    "mixes pages of two moments",
    "tells of no deletion",
    "tells of some changes twice",
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
FORGETFUL = "does not ask what others wrote"
"""The fault of a store that shares a database and reads from its own memory, which has what others wrote when it writes itself."""
EVERY = 3  # Each so many calls go wrong, so that much else is right.


class _Broken:
    """See the module; what has no fault is the real store's."""

    def __init__(self, real: SqlStore, fault: Fault) -> None:
        self._real = real
        self._fault = fault
        self._calls = itertools.count(1)
        self._before: dict[Ref, Item] = {}
        self._after: dict[str, tuple[str, Ref]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def _goes_wrong(self, fault: Fault) -> bool:
        return self._fault == fault and next(self._calls) % EVERY == 0

    async def get(self, ref: Ref) -> Item:
        if ref in self._before and self._goes_wrong("answers with the state before"):
            return self._before[ref]
        return await self._real.get(ref)

    async def update(
        self, ref: Ref, obj: Any, *, resource_version: str = "", uid: str = "", subresource: Literal["", "status"] = "", now: datetime
    ) -> Item:
        before = await self._real.get(ref)
        if self._goes_wrong("acknowledges what it does not keep"):
            kind = KINDS.find(ref.resource)
            assert kind is not None
            update = writes.Update(ref, obj, resource_version, uid, subresource, now)
            return writes.evaluate(update, before, kind.resource, int((await self._real.list(ref.resource)).resource_version) + 1).item
        if self._fault == "overlooks versions":
            resource_version = uid = ""
        item = await self._real.update(ref, obj, resource_version=resource_version, uid=uid, subresource=subresource, now=now)
        self._before[ref] = before
        return item

    async def list(self, resource: ResourceName, selection: Selection = Selection(), *, limit: int = 0, continue_token: str = "") -> Page:
        if self._fault != "mixes pages of two moments":
            return await self._real.list(resource, selection, limit=limit, continue_token=continue_token)
        if continue_token in self._after:
            version, last = self._after[continue_token]
            now = await self._real.list(resource, selection)
            return Page([item for item in now.items if item.ref > last], version)
        page = await self._real.list(resource, selection, limit=limit, continue_token=continue_token)
        if page.continue_token:
            self._after[page.continue_token] = (page.resource_version, page.items[-1].ref)
        return page

    async def watch(
        self, resource: ResourceName, selection: Selection = Selection(), *, resource_version: str, bookmarks: bool = False
    ) -> Watch:
        start = int(resource_version)
        if self._fault == "begins watches too early":
            start = max(0, start - 1)
        if self._fault == "begins watches too late" and str(start) != (await self._real.list(resource)).resource_version:
            start += 1
        watch = await self._real.watch(resource, selection, resource_version=str(start), bookmarks=bookmarks)
        return _Telling(watch, self._told)

    def _told(self, change: Change) -> tuple[Change, ...]:
        if self._fault == "tells of no deletion" and change.type == "DELETED":
            return ()
        return (change, change) if self._goes_wrong("tells of some changes twice") else (change,)


class _Telling:
    """A watch with a fault between."""

    def __init__(self, watch: Watch, told: Callable[[Change], tuple[Change, ...]]) -> None:
        self._watch = watch
        self._told = told

    async def __aiter__(self) -> AsyncIterator[Change]:
        async for change in self._watch:
            for told in self._told(change):
                yield told

    async def aclose(self) -> None:
        await self._watch.aclose()


def broken(fault: str) -> Callable[[SqlStore], Store]:
    """Return what puts a fault around a store; none for an empty name."""
    if not fault:
        return lambda store: store
    if fault == FORGETFUL:
        return _forgetful
    return lambda store: _Broken(store, msgspec.convert(fault, Fault))


def _forgetful(store: SqlStore) -> Store:
    assert store._freshness is not None, "nobody else writes"
    store._freshness._poke = lambda: None  # type: ignore[misc]
    store._freshness = None
    return store
