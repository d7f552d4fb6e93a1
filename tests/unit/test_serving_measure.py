"""What a replica reports of its speed."""

from __future__ import annotations

from agent.serving.measure import Measurements
from agent.serving.routes import Route
from rkfleet.metrics import Metrics
from tests.support.clocks import ManualClock

ROUTE = Route(uid="u", namespace="default", name="chat-0", served_model_name="chat")


def answer(measurements: Measurements, clock: ManualClock, *, load_seconds: float, prefill_seconds: float) -> None:
    """Play a request of two tokens, a second apart."""
    journey = measurements.begin(ROUTE, clock.monotonic())
    clock.advance(load_seconds)
    journey.load_seconds = load_seconds
    measurements.sent(journey)
    for seconds in (prefill_seconds, 1.0):
        clock.advance(seconds)
        measurements.token(journey)
    measurements.end(journey, "stop")


def test_a_request_that_woke_its_model_is_not_in_the_median_of_first_tokens() -> None:
    """The histogram has it, and its decode speed counts."""
    clock, metrics = ManualClock(), Metrics("agent")
    measurements = Measurements(metrics, clock)
    answer(measurements, clock, load_seconds=30, prefill_seconds=0.5)
    first = measurements.measured("u")
    assert first is not None
    assert (first.time_to_first_token_seconds, first.decode_tokens_per_second) == (None, 1.0)
    for prefill in (0.25, 0.5, 0.75):
        answer(measurements, clock, load_seconds=0, prefill_seconds=prefill)
    later = measurements.measured("u")
    assert later is not None
    assert later.time_to_first_token_seconds == 0.5
    (counted,) = (line for line in metrics.text().decode().splitlines() if "time_to_first_token_seconds_count" in line)
    assert float(counted.rpartition(" ")[2]) == 4
