"""Events in two groups: events.k8s.io shows, and writes, the very objects that the core group has.

In: calls of the store about `events.events.k8s.io`. Out: calls about `events`, with names of fields exchanged both ways; everything else is
passed on. The API stands on it, so every verb, selector, table and watch of the group works as for any other kind.

Source: Kubernetes `pkg/apis/events/v1/conversion.go`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

import msgspec

from controller.store.base import Change, Item, Page, Propagation, Selection, Store, Watch
from controller.store.writes import encode
from rkfleet.clock import give_way
from rkfleet.errors import AlreadyExists, Conflict, NotFound
from rkfleet.kinds.event import Event, RegardedEvent
from rkfleet.meta import Ref, ResourceName

__all__ = ["WithEventView"]

Json = dict[str, Any]

SLICE_ITEMS: Final = 50  # Events renamed without a pause: about 2 ms.

_TO_CORE: Final[Mapping[str, str]] = {
    "regarding": "involvedObject",
    "note": "message",
    "reportingController": "reportingComponent",
    "deprecatedSource": "source",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedCount": "count",
}
_TO_VIEW: Final[Mapping[str, str]] = {core: view for view, core in _TO_CORE.items()}
_CORE: Final = Event.resource.name
_VIEW: Final = RegardedEvent.resource.name


class WithEventView:
    """A store with Events under both names; see `controller.store.base.Store` for the methods."""

    def __init__(self, store: Store) -> None:
        self._store: Final = store

    async def get(self, ref: Ref) -> Item:
        """See `Store.get`."""
        with _in_words_of(ref):
            return _shown(await self._store.get(_core_ref(ref)), ref.resource)

    async def list(self, resource: ResourceName, selection: Selection = Selection(), *, limit: int = 0, continue_token: str = "") -> Page:
        """See `Store.list`."""
        if resource != _VIEW:
            return await self._store.list(resource, selection, limit=limit, continue_token=continue_token)
        page = await self._store.list(_CORE, _core_selection(selection), limit=limit, continue_token=continue_token)
        items: list[Item] = []
        for start in range(0, len(page.items), SLICE_ITEMS):
            items += [_shown(item, _VIEW) for item in page.items[start : start + SLICE_ITEMS]]
            await give_way()
        return msgspec.structs.replace(page, items=items)

    async def create(self, ref: Ref, obj: Json, *, keep_status: bool = False) -> Item:
        """See `Store.create`."""
        with _in_words_of(ref):
            created = await self._store.create(_core_ref(ref), _core(obj, ref.resource), keep_status=keep_status)
        return _shown(created, ref.resource)

    async def update(
        self, ref: Ref, obj: Json, *, resource_version: str = "", uid: str = "", subresource: Literal["", "status"] = "", now: datetime
    ) -> Item:
        """See `Store.update`."""
        with _in_words_of(ref):
            updated = await self._store.update(
                _core_ref(ref), _core(obj, ref.resource), resource_version=resource_version, uid=uid, subresource=subresource, now=now
            )
        return _shown(updated, ref.resource)

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
        with _in_words_of(ref):
            patched = await self._store.patch(
                _core_ref(ref),
                _core(patch, ref.resource),
                resource_version=resource_version,
                uid=uid,
                when=when,
                subresource=subresource,
                now=now,
            )
        return _shown(patched, ref.resource)

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
        """See `Store.patch_status`; Events have no status."""
        return await self._store.patch_status(ref, uid, owner, fields, conditions, when=when, now=now)

    async def delete(
        self, ref: Ref, *, uid: str = "", resource_version: str = "", propagation: Propagation = "Background", now: datetime
    ) -> Item:
        """See `Store.delete`; an Event owns nothing, so nothing is waited for, and no loop would."""
        if _core_ref(ref).resource == _CORE:
            propagation = "Background"
        with _in_words_of(ref):
            deleted = await self._store.delete(_core_ref(ref), uid=uid, resource_version=resource_version, propagation=propagation, now=now)
        return _shown(deleted, ref.resource)

    async def watch(
        self, resource: ResourceName, selection: Selection = Selection(), *, resource_version: str, bookmarks: bool = False
    ) -> Watch:
        """See `Store.watch`."""
        if resource != _VIEW:
            return await self._store.watch(resource, selection, resource_version=resource_version, bookmarks=bookmarks)
        watch = await self._store.watch(_CORE, _core_selection(selection), resource_version=resource_version, bookmarks=bookmarks)
        return _ShownWatch(watch)


class _ShownWatch:
    """A watch of Events, in the words of the view."""

    def __init__(self, watch: Watch) -> None:
        self._watch: Final = watch

    async def __aiter__(self) -> AsyncIterator[Change]:
        async for change in self._watch:
            yield change if change.item is None else msgspec.structs.replace(change, item=_shown(change.item, _VIEW))

    async def aclose(self) -> None:
        """Stop."""
        await self._watch.aclose()


def _core_ref(ref: Ref) -> Ref:
    return ref if ref.resource != _VIEW else msgspec.structs.replace(ref, resource=_CORE)


@contextlib.contextmanager
def _in_words_of(ref: Ref) -> Iterator[None]:
    """Let errors about an Event name the resource that was asked for."""
    try:
        yield
    except (NotFound, AlreadyExists, Conflict) as error:
        if ref.resource != _VIEW or error.details.get("resource", _CORE) != _CORE:
            raise
        message = error.message.replace(f'{_CORE} "', f'{_VIEW} "', 1)
        raise type(error)(message, **{**error.details, "resource": _VIEW, "name": ref.name}) from error


def _core_selection(selection: Selection) -> Selection:
    fields = tuple(((_TO_CORE.get(path[0], path[0]), *path[1:]), value, equal) for path, value, equal in selection.fields)
    return msgspec.structs.replace(selection, fields=fields)


def _core(obj: Json, resource: ResourceName) -> Json:
    return obj if resource != _VIEW else _renamed(obj, _TO_CORE, Event)


def _shown(item: Item, resource: ResourceName) -> Item:
    if resource != _VIEW:
        return item
    obj = _renamed(msgspec.json.decode(item.body), _TO_VIEW, RegardedEvent)
    return msgspec.structs.replace(item, ref=msgspec.structs.replace(item.ref, resource=_VIEW), body=encode(obj))


def _renamed(obj: Json, names: Mapping[str, str], kind: type[Event | RegardedEvent]) -> Json:
    """Return an event, or a patch of one, in the words of the other group."""
    renamed = {names.get(name, name): value for name, value in obj.items() if name not in ("apiVersion", "kind")}
    metadata = obj.get("metadata")
    if isinstance(metadata, dict) and isinstance(entries := metadata.get("managedFields"), list):
        renamed["metadata"] = {**metadata, "managedFields": [_entry(entry, names, kind.resource.api_version) for entry in entries]}
    return {"apiVersion": kind.resource.api_version, "kind": kind.resource.kind, **renamed}


def _entry(entry: Any, names: Mapping[str, str], api_version: str) -> Any:
    """Return one entry of managedFields in the other words: its manager owns the same fields in both groups."""
    if not isinstance(entry, dict) or not isinstance(fields := entry.get("fieldsV1"), dict):
        return entry
    own = {f"f:{names.get(name.removeprefix('f:'), name.removeprefix('f:'))}": below for name, below in fields.items()}
    return {**entry, "apiVersion": api_version, "fieldsV1": own}
