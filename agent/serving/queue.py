"""The bounded queue in front of each worker: so many requests run, so many wait, one more is refused.

In: requests that want a place at a replica. Out: a place, by its number, in the order of arrival, or ResourceExhausted with the seconds
after which a retry makes sense. Called by `agent/serving/proxy.py`; `in_flight` tells the loop when a draining replica is empty.

The runtime has a queue of its own, which is kept empty on purpose: it cannot refuse, and what waits in it cannot be told apart from what
runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from rkfleet.errors import ResourceExhausted

__all__ = ["Queue"]

RETRY_AFTER_SECONDS_MAX: Final = 60  # Beyond a minute the estimate says nothing; a client should ask anew.


class _Line:
    def __init__(self) -> None:
        self.taken: Final[set[int]] = set()
        self.waiting: Final[deque[asyncio.Future[int]]] = deque()


class Queue:
    """One line per replica uid, there while a request runs or waits."""

    def __init__(self) -> None:
        self._lines: Final[dict[str, _Line]] = {}

    def in_flight(self, uid: str) -> int:
        """Return the requests that run or wait at this replica."""
        line = self._lines.get(uid)
        return len(line.taken) + len(line.waiting) if line else 0

    def taken(self, uid: str) -> frozenset[int]:
        """Return the places in which requests run."""
        line = self._lines.get(uid)
        return frozenset(line.taken) if line else frozenset()

    def waiting(self, uid: str) -> int:
        """Return the requests that wait at this replica."""
        line = self._lines.get(uid)
        return len(line.waiting) if line else 0

    @contextlib.asynccontextmanager
    async def place(
        self,
        uid: str,
        *,
        max_concurrent: int,
        max_queued: int,
        seconds_per_request: float,
        choose: Callable[[Sequence[int]], int] = min,
    ) -> AsyncIterator[int]:
        """Wait for a place at the replica and hold it for as long as the block runs; yields its number, below `max_concurrent`.

        Args:
            uid: Uid of the Replica.
            max_concurrent: Requests that run at the same time.
            max_queued: Requests that may wait.
            seconds_per_request: What one took lately, for the advice to those who are refused.
            choose: Picks one of several free places.

        Raises:
            ResourceExhausted: `max_queued` requests wait already.
        """
        line = self._lines.setdefault(uid, _Line())
        free = [number for number in range(max_concurrent) if number not in line.taken]
        if free and len(line.taken) < max_concurrent:
            place = choose(free)
            line.taken.add(place)
        elif len(line.waiting) >= max_queued:
            raise ResourceExhausted(
                f"{len(line.taken)} requests run and {len(line.waiting)} wait at this replica; {max_queued} may wait (serving.maxQueued)",
                retry_after_seconds=retry_after_seconds(len(line.waiting), max_concurrent, seconds_per_request),
                code="queue_full",
            )
        else:
            place = await self._wait(uid, line)
        try:
            yield place
        finally:
            self._leave(uid, line, place)

    async def _wait(self, uid: str, line: _Line) -> int:
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        line.waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(uid, line, turn.result())  # the place came together with the cancellation
            else:
                with contextlib.suppress(ValueError):  # whoever left last has passed it over already
                    line.waiting.remove(turn)
            raise

    def _leave(self, uid: str, line: _Line, place: int) -> None:
        """Hand the place to the next in line, or give it up."""
        while line.waiting:
            turn = line.waiting.popleft()
            if not turn.done():
                turn.set_result(place)
                return
        line.taken.discard(place)
        if not line.taken:
            del self._lines[uid]


def retry_after_seconds(waiting: int, max_concurrent: int, seconds_per_request: float) -> int:
    """Return after how many seconds a place in the queue should be free: when the first of those that wait begins."""
    turns = (waiting + 1) / max_concurrent
    return max(1, min(RETRY_AFTER_SECONDS_MAX, math.ceil(turns * seconds_per_request)))
