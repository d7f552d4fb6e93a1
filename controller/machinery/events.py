"""The event recorder: what happened to an object, for people (`kubectl describe`, `kubectl events`).

In: `record`, called by reconcilers and sessions; it never waits and never fails, because an event is a comment and not a fact that
anything depends on. Out: core/v1 Events in the store. The same event of the same object is one Event with a count: its name is made
from its content, so a restarted controller counts on. Events that did not happen again for an hour are deleted, as kube-apiserver
does with a lease (`--event-ttl`).
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Literal

import msgspec

from controller.store.base import Item, Store
from rkfleet import metric_names
from rkfleet.clock import Clock, format_time
from rkfleet.errors import FleetError, NotFound
from rkfleet.kinds.event import Event
from rkfleet.meta import Ref, Uid
from rkfleet.metrics import Metrics

__all__ = ["EventRecorder"]

QUEUE_EVENTS_MAX: Final = 1_000  # Different events that wait to be written. More of them at once is a storm that nobody reads.
WRITES_AT_ONCE: Final = 32  # They share commits; more would only make the store's other writers wait.
EVENT_SECONDS_MAX: Final = 3_600.0  # Kubernetes' default.
EXPIRY_PERIOD_SECONDS: Final = 60.0
SCAN_BATCH: Final = 500  # Events looked at before other tasks get their turn: about 2 ms.
NAME_PREFIX_LENGTH_MAX: Final = 200  # With the 17 characters of the suffix below the 253 that a name may have.
DEFAULT_NAMESPACE: Final = "default"  # Where Kubernetes keeps the events of cluster-scoped objects.

_log: Final = logging.getLogger(__name__)


class _Happening(msgspec.Struct, frozen=True, gc=False):
    ref: Ref
    uid: str
    type: str
    reason: str
    message: str
    kind: str
    api_version: str


class _Counted(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    count: int = 1
    last_timestamp: str = ""


class EventRecorder:
    """Writes events behind the back of its callers; `run` must be running.

    Args:
        store: Where the Events go.
        clock: For their times.
        ids: Makes the uid of a new Event.
        component: Who reports.
        metrics: Counts what was dropped.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        ids: Callable[[], str],
        *,
        component: str = "rkfleet-controller",
        metrics: Metrics | None = None,
    ) -> None:
        self._store: Final = store
        self._clock: Final = clock
        self._ids: Final = ids
        self._component: Final = component
        self._metrics: Final = metrics or Metrics("controller")
        self._waiting: Final[dict[_Happening, int]] = {}
        self._wake: Final = asyncio.Event()

    def record(
        self, ref: Ref, uid: Uid | str, type: Literal["Normal", "Warning"], reason: str, message: str, *, kind: str, api_version: str
    ) -> None:
        """Note that something happened to the object; written soon, or dropped and counted.

        Args:
            ref: Name of the object.
            uid: Its identity; `kubectl describe` finds events by it.
            type: Normal or Warning.
            reason: CamelCase constant.
            message: Sentence for people. A message that differs each time makes an Event each time.
            kind: Kind of the object.
            api_version: Group and version of the object.
        """
        happening = _Happening(ref, uid, type, reason, message, kind, api_version)
        if happening not in self._waiting and len(self._waiting) >= QUEUE_EVENTS_MAX:
            self._metrics.counter(metric_names.EVENTS_DROPPED).inc()
            return
        self._waiting[happening] = self._waiting.get(happening, 0) + 1
        self._wake.set()

    async def run(self) -> None:
        """Write what was recorded and delete what is old, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write_forever())
            tasks.create_task(self._expire_forever())

    async def _write_forever(self) -> None:
        while True:
            await self._wake.wait()
            batch = dict(itertools.islice(self._waiting.items(), WRITES_AT_ONCE))
            for happening in batch:
                del self._waiting[happening]
            if not self._waiting:
                self._wake.clear()
            async with asyncio.TaskGroup() as tasks:
                for happening, count in batch.items():
                    tasks.create_task(self._write(happening, count))

    async def _write(self, happening: _Happening, count: int) -> None:
        ref = _event_ref(happening)
        now = self._clock.now()
        try:
            try:
                known = msgspec.json.decode((await self._store.get(ref)).body, type=_Counted)
            except NotFound:
                await self._store.create(ref, self._event(ref, happening, count))
            else:
                await self._store.patch(ref, {"count": known.count + count, "lastTimestamp": format_time(now)}, now=now)
        except FleetError as error:
            self._metrics.counter(metric_names.EVENTS_DROPPED).inc()
            _log.debug("event %s of %s dropped: %s", happening.reason, happening.ref, error.message)

    def _event(self, ref: Ref, happening: _Happening, count: int) -> dict[str, Any]:
        now = format_time(self._clock.now())
        return {
            "apiVersion": Event.resource.api_version,
            "kind": Event.resource.kind,
            "metadata": {"name": ref.name, "namespace": ref.namespace, "uid": self._ids(), "creationTimestamp": now},
            "involvedObject": {
                "apiVersion": happening.api_version,
                "kind": happening.kind,
                "namespace": happening.ref.namespace,
                "name": happening.ref.name,
                "uid": happening.uid,
            },
            "type": happening.type,
            "reason": happening.reason,
            "message": happening.message,
            "count": count,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": self._component},
            "reportingComponent": self._component,
        }

    async def _expire_forever(self) -> None:
        while True:
            try:
                await self.expire()
            except FleetError as error:
                _log.debug("events were not expired: %s", error.message)
            await self._clock.sleep(EXPIRY_PERIOD_SECONDS)

    async def expire(self) -> None:
        """Delete the events that did not happen for an hour.

        Raises:
            FleetError: The store does not answer; the next call does the rest.
        """
        now = self._clock.now()
        oldest = format_time(now - timedelta(seconds=EVENT_SECONDS_MAX))
        page = await self._store.list(Event.resource.name)
        old: list[Item] = []
        for number, item in enumerate(page.items, start=1):
            last = msgspec.json.decode(item.body, type=_Counted).last_timestamp
            if last and last < oldest:  # Times of one format in UTC order as text.
                old.append(item)
            if number % SCAN_BATCH == 0:
                await self._clock.sleep(0)
        for start in range(0, len(old), WRITES_AT_ONCE):
            async with asyncio.TaskGroup() as tasks:
                for item in old[start : start + WRITES_AT_ONCE]:
                    tasks.create_task(self._delete(item))

    async def _delete(self, item: Item) -> None:
        try:
            await self._store.delete(item.ref, uid=item.uid, resource_version=item.resource_version, now=self._clock.now())
        except FleetError as error:
            _log.debug("event %s was not deleted: %s", item.ref, error.message)


def _event_ref(happening: _Happening) -> Ref:
    content = msgspec.json.encode((happening.ref.resource, happening.uid, happening.type, happening.reason, happening.message))
    name = f"{happening.ref.name[:NAME_PREFIX_LENGTH_MAX].rstrip('.-')}.{hashlib.sha256(content).hexdigest()[:16]}"
    return Ref(Event.resource.name, happening.ref.namespace or DEFAULT_NAMESPACE, name)
