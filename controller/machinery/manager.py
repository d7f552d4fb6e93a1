"""Runs caches and reconcilers, all in one task group.

In: reconcilers with the caches that wake them (`add`, called by `app.py`). `run` starts the caches, waits until each has its first
list, and then starts the workers; it ends only by cancellation. An error of a reconciler is logged once here, counted, and its key
waits; an error of our own (anything that is no FleetError) does the same with its traceback, because one broken object must not stop
the care for all others.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any, Final

import msgspec

from controller.machinery.cache import Cache
from controller.machinery.reconciler import Reconciler, Source
from controller.machinery.workqueue import CONFLICT_SECONDS_MAX, RETRY_SECONDS_MAX, WorkQueue
from rkfleet import metric_names
from rkfleet.clock import Clock
from rkfleet.errors import Conflict, FleetError
from rkfleet.kinds.base import Object
from rkfleet.meta import Ref
from rkfleet.metrics import Metrics

__all__ = ["Manager"]

REST_SECONDS_MAX: Final = 0.25  # However long a pass took, what changed since is looked at within a quarter of a second.

_log: Final = logging.getLogger(__name__)


class _Loop(msgspec.Struct, frozen=True):
    name: str
    reconciler: Reconciler
    queue: WorkQueue
    workers: int
    rest_share: float


class Manager:
    """All loops of a program.

    Args:
        clock: For delays and durations.
        random: For jitter.
        metrics: Counts what the loops do.
    """

    def __init__(self, *, clock: Clock, random: random.Random, metrics: Metrics | None = None) -> None:
        self._clock: Final = clock
        self._random: Final = random
        self._metrics: Final = metrics or Metrics("controller")
        self._loops: Final[list[_Loop]] = []
        self._caches: Final[list[Cache[Any]]] = []

    def add(self, name: str, reconciler: Reconciler, *sources: Source, workers: int = 1, rest_share: float = 0.0) -> WorkQueue:
        """Add a loop and return its queue, so that facts outside of the store may wake keys too.

        Args:
            name: Of the loop, in logs and metrics.
            reconciler: What is called for each key.
            sources: What wakes it; their caches are run by the manager.
            workers: Keys reconciled at the same time.
            rest_share: How long a key is left alone after a pass, in times of what the pass took: a key whose pass is long, and which
                each of a thousand changes wakes, then sees them together instead of one after the other.
        """
        queue = WorkQueue(clock=self._clock, random=self._random)
        for source in sources:
            self.follow(source.cache)
            source.cache.subscribe(_waker(source, queue))
        self._loops.append(_Loop(name, reconciler, queue, workers, rest_share))
        return queue

    def follow(self, cache: Cache[Any]) -> None:
        """Run a cache that wakes nothing but is read."""
        if cache not in self._caches:
            self._caches.append(cache)

    @property
    def synced(self) -> bool:
        """Whether every cache has its first list, so that the workers run."""
        return all(cache.synced for cache in self._caches)

    @property
    def idle(self) -> bool:
        """Whether no key waits or is being worked on; delayed keys do not count."""
        return all(loop.queue.idle for loop in self._loops)

    async def run(self) -> None:
        """Run everything until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for cache in self._caches:
                tasks.create_task(cache.run(), name=f"cache {cache.kind.resource.name}")
            for cache in self._caches:
                await cache.wait_synced()
            for loop in self._loops:
                tasks.create_task(loop.queue.run(), name=f"delays of {loop.name}")
                for number in range(loop.workers):
                    tasks.create_task(self._work(loop), name=f"{loop.name} {number}")

    async def _work(self, loop: _Loop) -> None:
        while True:
            self._metrics.gauge(metric_names.QUEUE_DEPTH, loop=loop.name).set(len(loop.queue))
            key = await loop.queue.get()
            started = self._clock.monotonic()
            try:
                result = await self._reconcile(loop, key)
            finally:
                seconds = self._clock.monotonic() - started
                loop.queue.done(key, min(loop.rest_share * seconds, REST_SECONDS_MAX))
            self._metrics.counter(metric_names.RECONCILES, loop=loop.name, result=result).inc()
            self._metrics.histogram(metric_names.RECONCILE_SECONDS, loop=loop.name).observe(seconds)

    async def _reconcile(self, loop: _Loop, key: Ref) -> str:
        try:
            again_after_seconds = await loop.reconciler.reconcile(key)
        except FleetError as error:
            seconds = loop.queue.add_failed(key, CONFLICT_SECONDS_MAX if isinstance(error, Conflict) else RETRY_SECONDS_MAX)
            level = logging.DEBUG if error.retryable else logging.WARNING
            _log.log(level, "loop %s: %s: %s: %s; again in %.2f s", loop.name, key, type(error).__name__, error.message, seconds)
            return "retry" if error.retryable else "error"
        except Exception:  # noqa: BLE001 - the edge of the loop; logged, counted and tried again
            seconds = loop.queue.add_failed(key)
            _log.exception("loop %s: %s: internal error; again in %.2f s", loop.name, key, seconds)
            return "error"
        loop.queue.forget(key)
        if again_after_seconds is None:
            return "done"
        loop.queue.add_after(key, again_after_seconds)
        return "later"


def _waker(source: Source, queue: WorkQueue) -> Any:
    def wake(old: Object | None, new: Object | None) -> None:
        for key in source.keys(old, new):
            queue.add(key)

    return wake
