"""How late the event loop is: a task that sleeps and looks how much too long it slept.

In: nothing. Out: the histogram `rkfleet_event_loop_lag_seconds`. Started by `app.py`. Whatever holds the loop (a long plan, a large list,
garbage collection, a thread that does not give the interpreter away) shows here and nowhere else.
"""

from __future__ import annotations

from typing import Final

from rkfleet import metric_names
from rkfleet.clock import Clock
from rkfleet.metrics import Metrics

__all__ = ["watch_loop_lag"]

PROBE_SECONDS: Final = 0.05  # Twenty wake-ups a second cost nothing that can be measured, and few pauses of 20 ms pass between two of them.


async def watch_loop_lag(clock: Clock, metrics: Metrics) -> None:
    """Probe until cancelled."""
    lag = metrics.histogram(metric_names.LOOP_LAG_SECONDS)
    while True:
        due = clock.monotonic() + PROBE_SECONDS
        await clock.sleep(PROBE_SECONDS)
        lag.observe(max(0.0, clock.monotonic() - due))
