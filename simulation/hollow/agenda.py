"""What is due when, for all boards of the process: one heap and one task, where a timer for each load would be thousands."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Final

from rkfleet.clock import Clock, give_way
from rkfleet.racing import until_first

__all__ = ["Agenda"]

AT_ONCE: Final = 50  # Calls before other tasks get their turn: a pass of a board is a tenth of a millisecond.


class Agenda:
    """Calls, each at its time; `run` must be running."""

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self._heap: Final[list[tuple[float, int, Callable[[], None]]]] = []
        self._numbers: Final = itertools.count()  # Of two calls for the same moment the earlier one comes first.
        self._sooner: Final = asyncio.Event()

    def at(self, moment: float, call: Callable[[], None]) -> None:
        """Call `call` at this monotonic second; it must not block."""
        heapq.heappush(self._heap, (moment, next(self._numbers), call))
        if self._heap[0][2] is call:
            self._sooner.set()

    def turn(self) -> float | None:
        """Make calls that are due, at most `AT_ONCE`; return the seconds until the next one is, None without one."""
        for _ in range(AT_ONCE):
            if not self._heap or self._heap[0][0] > self._clock.monotonic():
                break
            heapq.heappop(self._heap)[2]()
        return max(0.0, self._heap[0][0] - self._clock.monotonic()) if self._heap else None

    async def run(self) -> None:
        """Make the calls that are due until cancelled."""
        while True:
            self._sooner.clear()
            seconds = self.turn()
            if seconds == 0:
                await give_way()
            else:
                await self._wait(seconds)

    async def _wait(self, seconds: float | None) -> None:
        """Return after so many seconds, or when something is due sooner."""
        if seconds is None:
            await self._sooner.wait()
            return
        await until_first(self._sooner.wait(), self._clock.sleep(seconds))
