"""Garbage collection that does not hold the event loop.

In: nothing. Out: a process whose cycles are collected while they are young, and whose old objects are looked at once in some hours. Started
by `app.py`. Five thousand sessions are a million objects that the collector would walk through whenever a quarter more have come: half
a second each time, in which no board is heard. Nearly all of them are freed by their reference counts; what forms cycles (a request that
failed, with its traceback) dies young.

Source: Python's `gc` module, `freeze` (objects are put aside and still freed by their counts) and `set_threshold`.
"""

from __future__ import annotations

import gc
from typing import Final

from rkfleet.clock import Clock

__all__ = ["collect_gently"]

# Young objects are walked through at 5,000 new ones, what survived at ten times as many: 5 ms at most. The oldest are never collected by
# their number.
YOUNG_OBJECTS: Final = 5_000
MIDDLE_ROUNDS: Final = 10
OLD_ROUNDS: Final = 1_000_000
FREEZE_SECONDS: Final = 10.0  # What has lived so long stays: a session, an object of the store.
# Cycles that lived longer than that before they died are freed four times a day, which holds the loop for about 0.1 s per 1,000 boards.
WHOLE_SECONDS: Final = 6 * 3_600.0


async def collect_gently(clock: Clock) -> None:
    """Set the collector up and help it until cancelled; then it is as it was."""
    before = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, MIDDLE_ROUNDS, OLD_ROUNDS)
    try:
        whole_at = clock.monotonic() + WHOLE_SECONDS
        while True:
            gc.freeze()
            await clock.sleep(FREEZE_SECONDS)
            if clock.monotonic() >= whole_at:
                gc.unfreeze()
                gc.collect()
                whole_at = clock.monotonic() + WHOLE_SECONDS
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
