"""The queue of keys that wait for a reconciler.

A key says which object to look at and nothing of what happened. A key that waits already is not queued twice; a key that is being
worked on is queued again only after its worker is done, so one object is never reconciled by two workers at once. Failures of a key
make it wait longer and longer, with jitter; success forgets them. `run` must be running for delayed keys.

The semantics are those of Kubernetes' client-go `util/workqueue`.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from typing import Final

from rkfleet.clock import Clock
from rkfleet.meta import Ref
from rkfleet.racing import until_first

__all__ = ["CONFLICT_SECONDS_MAX", "RETRY_SECONDS_MAX", "WorkQueue"]

RETRY_SECONDS_MIN: Final = 0.01
# A Conflict with a cache that lags is over as soon as the cache has caught up, and the next one says nothing about the one before: while
# many write, several in a row are usual, and a wait that grew with them would outlast the crowd.
CONFLICT_SECONDS_MAX: Final = 0.16
RETRY_SECONDS_MAX: Final = 60.0  # A longer wait would make the recovery of what the error named look like a hang.
RESTING_MAX: Final = 1_000  # Rests that are over are forgotten when so many are known.
RETRY_DOUBLINGS_MAX: Final = 16  # Enough to reach the longest wait; keeps the power of two a small number.


class WorkQueue:
    """Keys for workers; each key at most once in the queue and at most once in work.

    Args:
        clock: For delays.
        random: For the jitter of retries.
    """

    def __init__(self, *, clock: Clock, random: random.Random) -> None:
        self._clock: Final = clock
        self._random: Final = random
        self._waiting: Final[asyncio.Queue[Ref]] = asyncio.Queue()  # Bounded by the number of objects: a key is in it once.
        self._dirty: Final[set[Ref]] = set()  # In `_waiting`, or to be put there when its worker is done.
        self._working: Final[set[Ref]] = set()
        self._failures: Final[dict[Ref, int]] = {}
        self._resting: dict[Ref, float] = {}  # Monotonic end of the rest of keys that were worked on lately.
        self._due: Final[dict[Ref, float]] = {}  # When a delayed key is due; the heap may hold older entries of it.
        self._heap: Final[list[tuple[float, Ref]]] = []
        self._sooner: Final = asyncio.Event()

    def __len__(self) -> int:
        """Keys that wait now, without the delayed ones."""
        return self._waiting.qsize()

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being worked on; delayed keys do not count."""
        return not self._dirty and not self._working

    def add(self, key: Ref) -> None:
        """Queue the key, or remember that it must be looked at once more if a worker has it."""
        if key in self._dirty:
            return
        if (rest := self._resting.get(key)) is not None:
            left = rest - self._clock.monotonic()
            if left > 0:
                self.add_after(key, left)
                return
            del self._resting[key]
        self._dirty.add(key)
        if key not in self._working:
            self._waiting.put_nowait(key)

    def add_after(self, key: Ref, seconds: float) -> None:
        """Queue the key after a delay; of several delays of one key the earliest counts."""
        if seconds <= 0:
            self.add(key)
            return
        due = self._clock.monotonic() + seconds
        if due >= self._due.get(key, float("inf")):
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, key))
        self._sooner.set()

    def add_failed(self, key: Ref, seconds_max: float = RETRY_SECONDS_MAX) -> float:
        """Queue the key after a wait that doubles with each failure in a row, up to `seconds_max`; return the seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        ceiling = min(RETRY_SECONDS_MIN * 2.0 ** min(failures, RETRY_DOUBLINGS_MAX), seconds_max)
        seconds = ceiling * self._random.uniform(0.5, 1.0)
        self.add_after(key, seconds)
        return seconds

    def forget(self, key: Ref) -> None:
        """Forget the failures of a key."""
        self._failures.pop(key, None)

    async def get(self) -> Ref:
        """Wait for a key and take it into work; `done` must follow."""
        key = await self._waiting.get()
        self._dirty.discard(key)
        self._working.add(key)
        return key

    def done(self, key: Ref, rest_seconds: float = 0.0) -> None:
        """End the work on a key; if it was or is added it waits again, but nobody gets it before `rest_seconds` are over."""
        self._working.discard(key)
        if rest_seconds > 0:
            if len(self._resting) >= RESTING_MAX:
                now = self._clock.monotonic()
                self._resting = {other: end for other, end in self._resting.items() if end > now}
            self._resting[key] = self._clock.monotonic() + rest_seconds
            if key in self._dirty:
                self._dirty.discard(key)
                self.add(key)
        elif key in self._dirty:
            self._waiting.put_nowait(key)

    async def run(self) -> None:
        """Move delayed keys into the queue when they are due, until cancelled."""
        while True:
            self._sooner.clear()
            now = self._clock.monotonic()
            while self._heap and self._heap[0][0] <= now:
                due, key = heapq.heappop(self._heap)
                if self._due.get(key) == due:
                    del self._due[key]
                    self.add(key)
            if self._heap:
                await until_first(self._sooner.wait(), self._clock.sleep(self._heap[0][0] - now))
            else:
                await self._sooner.wait()
