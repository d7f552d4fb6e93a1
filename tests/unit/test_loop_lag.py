"""How the controller keeps its event loop free, and shows when it does not."""

from __future__ import annotations

import asyncio
import gc

from controller.machinery.collection import gentle_collection, put_aside
from controller.machinery.loop_lag import PROBE_SECONDS, watch_loop_lag
from rkfleet.metrics import Metrics
from tests.support.clocks import ManualClock


def test_a_loop_that_was_held_shows_in_the_histogram() -> None:
    """A probe that comes 0.3 s late is counted as that late."""

    async def scenario() -> str:
        clock, metrics = ManualClock(), Metrics("controller")
        watching = asyncio.ensure_future(watch_loop_lag(clock, metrics))
        for late in (0.0, 0.3):
            await asyncio.wait((watching,), timeout=0)
            clock.advance(PROBE_SECONDS + late)
            await asyncio.wait((watching,), timeout=0)
        watching.cancel()
        return metrics.text().decode()

    text = asyncio.run(scenario())
    assert 'rkfleet_event_loop_lag_seconds_bucket{le="0.001"} 1.0' in text
    assert 'rkfleet_event_loop_lag_seconds_bucket{le="0.5"} 2.0' in text
    assert 'rkfleet_event_loop_lag_seconds_bucket{le="0.2"} 1.0' in text


def test_what_has_lived_is_put_aside_and_the_collector_is_left_as_it_was() -> None:
    """Long-lived objects are not walked through again, and are still freed."""

    async def scenario() -> int:
        clock = ManualClock()
        aside = asyncio.ensure_future(put_aside(clock))
        await asyncio.wait((aside,), timeout=0)
        frozen = gc.get_freeze_count()
        aside.cancel()
        return frozen

    before = gc.get_threshold()
    with gentle_collection():
        assert gc.get_threshold() != before
        assert asyncio.run(scenario()) > 0
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
