"""A cache of one kind: list, then watch, then immutable snapshots of decoded objects.

In: a `Store`. Out: `snapshot()`, frozen objects by name and by chosen indexes, and a call to every subscriber for each object that
came, changed or went. Reconcilers read snapshots and never the store's lists; several of them share one cache. A cache lags behind the
store by what is on its way to it, so absence here is not absence in the store: names that are made deterministically turn that mistake
into AlreadyExists or Conflict.

A watch that broke is resumed from the last revision that was seen; after Expired everything is listed again and the difference is told
to the subscribers. They get states, never kinds of events, because after a relist nobody knows the events.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Generic, TypeVar

import msgspec

from controller.store.base import Change, Item, Store, decode_item
from controller.store.sharing import Sharing
from rkfleet import metric_names
from rkfleet.clock import Clock
from rkfleet.errors import Expired, FleetError
from rkfleet.kinds.base import Object
from rkfleet.meta import Ref, ResourceName
from rkfleet.metrics import Metrics

__all__ = ["Cache", "Snapshot", "Subscriber"]

DECODE_BATCH: Final = 200  # Objects taken in before other tasks get their turn: about 4 ms, where nothing may hold the loop for 20.
RETRY_SECONDS_MIN: Final = 0.05
RETRY_DOUBLINGS_MAX: Final = 8  # Enough to reach the longest wait.
RETRY_SECONDS_MAX: Final = 5.0  # A store that is away is asked again at least this often; it is in this process or one hop away.

T = TypeVar("T", bound=Object)
Subscriber = Callable[[T | None, T | None], None]
"""Called with what was known before (None: nothing) and what is known now (None: gone). Must not block and must not raise."""

_log: Final = logging.getLogger(__name__)


class Snapshot(Generic[T]):
    """The objects of one kind as a cache knew them at one moment. It never changes; iteration is in no particular order."""

    __slots__ = ("_buckets", "_objects", "_resource")

    def __init__(self, resource: ResourceName, objects: Mapping[Ref, T], buckets: Mapping[str, Mapping[str, Mapping[Ref, T]]]) -> None:
        self._resource: Final = resource
        self._objects: Final = objects
        self._buckets: Final = buckets

    def __iter__(self) -> Iterator[T]:
        return iter(self._objects.values())

    def __len__(self) -> int:
        return len(self._objects)

    def find(self, name: str, namespace: str = "") -> T | None:
        """Return the object of this name (namespace empty for cluster-scoped kinds), or None."""
        return self._objects.get(Ref(self._resource, namespace, name))

    def find_ref(self, ref: Ref) -> T | None:
        """Return the object that `ref` names, or None."""
        return self._objects.get(ref)

    def by(self, index: str, value: str) -> tuple[T, ...]:
        """Return the objects that the named index puts under `value`.

        Raises:
            KeyError: The cache was made without that index.
        """
        return tuple(self._buckets[index].get(value, {}).values())


class Cache(Generic[T]):
    """Follows one kind of a store; `run` must be running, and nothing is known before `wait_synced` returns.

    Args:
        store: Where the objects are.
        kind: Their type; every object is decoded once, tolerantly.
        clock: For the waits between attempts when the store is away.
        random: For the jitter of these waits.
        indexes: Functions from an object to the values it is found under, by the name of the index.
        metrics: Counts objects and relists.
    """

    def __init__(
        self,
        store: Store,
        kind: type[T],
        *,
        clock: Clock,
        random: random.Random,
        indexes: Mapping[str, Callable[[T], Iterable[str]]] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.kind: Final = kind
        self._store: Final = store
        self._clock: Final = clock
        self._random: Final = random
        self._indexes: Final = dict(indexes or {})
        self._metrics: Final = metrics or Metrics("controller")
        self._resource: Final = kind.resource.name
        self._objects: dict[Ref, T] = {}
        self._buckets: dict[str, dict[str, dict[Ref, T]]] = {name: {} for name in self._indexes}
        self._snapshot: Snapshot[T] | None = None
        self._resource_version = ""
        self._subscribers: Final[list[Subscriber[T]]] = []
        self._sharing: Final = Sharing()
        self._synced: Final = asyncio.Event()
        self._failures = 0  # In a row.

    @property
    def synced(self) -> bool:
        """Whether the first list is in."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Return when the first list is in."""
        await self._synced.wait()

    def subscribe(self, subscriber: Subscriber[T]) -> None:
        """Call `subscriber` for every object that comes, changes or goes; what is known already is told at once."""
        self._subscribers.append(subscriber)
        for known in list(self._objects.values()):
            subscriber(None, known)

    def snapshot(self) -> Snapshot[T]:
        """Return what is known now; the same value until something changes."""
        if self._snapshot is None:
            self._snapshot = Snapshot(
                self._resource, self._objects.copy(), {name: buckets.copy() for name, buckets in self._buckets.items()}
            )
        return self._snapshot

    async def run(self) -> None:
        """Follow the store until cancelled; errors of the store are retried with growing waits."""
        while True:
            try:
                if not self._resource_version:
                    await self._list()
                await self._watch()
            except Expired:
                self._resource_version = ""
                self._metrics.counter(metric_names.CACHE_RELISTS, resource=self._resource).inc()
            except FleetError as error:
                self._failures += 1
                if self._failures == 1:
                    _log.warning("cache of %s: %s; retrying", self._resource, error.message)
                ceiling = min(RETRY_SECONDS_MIN * 2.0 ** min(self._failures, RETRY_DOUBLINGS_MAX), RETRY_SECONDS_MAX)
                await self._clock.sleep(ceiling * self._random.uniform(0.5, 1.0))

    async def _list(self) -> None:
        page = await self._store.list(self._resource)
        listed = {item.ref for item in page.items}
        for gone in [ref for ref in self._objects if ref not in listed]:
            self._put(gone, None)
        for number, item in enumerate(page.items, start=1):
            known = self._objects.get(item.ref)
            if known is None or known.metadata.resource_version != item.resource_version:
                self._put(item.ref, self._decoded(item))
            if number % DECODE_BATCH == 0:
                await self._clock.sleep(0)
        self._resource_version = page.resource_version
        self._synced.set()

    async def _watch(self) -> None:
        watch = await self._store.watch(self._resource, resource_version=self._resource_version, bookmarks=True)
        self._failures = 0
        async with contextlib.aclosing(watch):
            async for change in watch:
                self._take(change)

    def _take(self, change: Change) -> None:
        if change.item is not None:
            self._put(change.item.ref, None if change.type == "DELETED" else self._decoded(change.item))
        self._resource_version = change.resource_version

    def _decoded(self, item: Item) -> T | None:
        """Return the object, or None for one that another release left in a shape that this one cannot read."""
        try:
            return self._shared(decode_item(self.kind, item), item)
        except msgspec.MsgspecError as error:
            _log.error("cache of %s: %s is left out, because this release cannot read it: %s", self._resource, item.ref, error)
            return None

    def _shared(self, obj: T, item: Item) -> T:
        """Return the object with what others have, too, in memory once."""
        meta, sharing = obj.metadata, self._sharing
        msgspec.structs.force_setattr(meta, "namespace", item.ref.namespace)
        msgspec.structs.force_setattr(meta, "name", item.ref.name)
        msgspec.structs.force_setattr(meta, "uid", item.uid)
        msgspec.structs.force_setattr(meta, "resource_version", item.resource_version)
        if meta.labels == item.labels:
            msgspec.structs.force_setattr(meta, "labels", item.labels)
        for field in ("creation_timestamp", "owner_references", "finalizers"):
            msgspec.structs.force_setattr(meta, field, sharing.value(getattr(meta, field)))
        for field in obj.__struct_fields__:
            if field != "metadata":
                msgspec.structs.force_setattr(obj, field, sharing.value(getattr(obj, field)))
        return obj

    def _put(self, ref: Ref, new: T | None) -> None:
        old = self._objects.get(ref)
        if new is not None:
            self._objects[ref] = new
        elif old is not None:
            del self._objects[ref]
        else:
            return
        for name, values_of in self._indexes.items():
            self._reindex(self._buckets[name], ref, set(values_of(old)) if old else set(), new, set(values_of(new)) if new else set())
        self._snapshot = None
        self._metrics.gauge(metric_names.CACHE_OBJECTS, resource=self._resource).set(len(self._objects))
        for subscriber in self._subscribers:
            subscriber(old, new)

    @staticmethod
    def _reindex(buckets: dict[str, dict[Ref, T]], ref: Ref, before: set[str], new: T | None, after: set[str]) -> None:
        # Buckets that a snapshot may hold are replaced, never changed.
        for value in before - after:
            if rest := {other: obj for other, obj in buckets[value].items() if other != ref}:
                buckets[value] = rest
            else:
                del buckets[value]
        if new is not None:
            for value in after:
                buckets[value] = {**buckets.get(value, {}), ref: new}
