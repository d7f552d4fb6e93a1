"""What requests took: one `Journey` per request, histograms for the fleet, recent medians per replica.

In: the instants of a request, as `agent/serving/proxy.py` meets them. Out: the request metrics of `rkfleet/metric_names.py`, and
`measured` for status reports. All instants come from one monotonic clock in this process; the metric's declaration says which.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable
from typing import Final, Literal

from agent.serving.request import PARAMETERS, Timing
from agent.serving.routes import Route
from rkfleet import metric_names as names
from rkfleet.clock import Clock
from rkfleet.kinds.replica import Measured
from rkfleet.metrics import Metrics

__all__ = ["Journey", "Measurements", "Outcome"]

Outcome = Literal["stop", "length", "tool_calls", "invalid", "rejected", "cancelled", "failed"]
ANSWERED: Final[frozenset[Outcome]] = frozenset({"stop", "length", "tool_calls"})

RECENT_MAX: Final = 32  # Requests that a median looks back on: enough to be steady, few enough to follow a clock that throttles.


class Journey:
    """The instants of one request, in monotonic seconds, in the order in which they come."""

    def __init__(self, route: Route, arrived_at: float) -> None:
        self.route: Final = route
        self.arrived_at: Final = arrived_at
        self.sent_at: float | None = None  # to the worker
        self.first_at: float | None = None  # first non-empty content from the worker
        self.last_at: float | None = None  # newest non-empty content from the worker
        self.load_seconds = 0.0  # that it waited for its model
        self.prompt_tokens = 0
        self.cached_tokens = 0  # of the prompt, computed by the worker for an earlier request
        self.output_tokens = 0
        self.beat_at: float | None = None  # newest sign of life sent to the client during prefill


class _Recent:
    def __init__(self) -> None:
        self.first_token_seconds: Final[deque[float]] = deque(maxlen=RECENT_MAX)
        self.tokens_per_second: Final[deque[float]] = deque(maxlen=RECENT_MAX)
        self.worker_seconds: Final[deque[float]] = deque(maxlen=RECENT_MAX)


class Measurements:
    """Turns journeys into metrics and medians."""

    def __init__(self, metrics: Metrics, clock: Clock) -> None:
        self._metrics: Final = metrics
        self._clock: Final = clock
        self._recent: Final[dict[str, _Recent]] = {}

    def begin(self, route: Route, arrived_at: float) -> Journey:
        """Begin a request; it waits until `sent`."""
        self._waiting(route, 1)
        return Journey(route, arrived_at)

    def sent(self, journey: Journey) -> None:
        """The request has a place and goes to the worker now."""
        journey.sent_at = self._clock.monotonic()
        self._waiting(journey.route, -1)
        self._running(journey.route, 1)

    def token(self, journey: Journey) -> None:
        """Non-empty content came from the worker now."""
        now = self._clock.monotonic()
        if journey.last_at is None:
            journey.first_at = now
        else:
            self._observe(names.INTER_TOKEN_LATENCY, journey.route, now - journey.last_at)
        journey.last_at = now
        journey.output_tokens += 1

    def timing(self, journey: Journey) -> Timing:
        """Return what the request took until now."""
        first, sent = journey.first_at, journey.sent_at
        return Timing(
            total_seconds=self._clock.monotonic() - journey.arrived_at,
            load_seconds=journey.load_seconds,
            prefill_seconds=None if first is None or sent is None else first - sent,
            decode_seconds=None if first is None or journey.last_at is None else journey.last_at - first,
            prompt_tokens=journey.prompt_tokens,
            output_tokens=journey.output_tokens,
        )

    def left(self, journey: Journey, deadline_seconds: float | None) -> float | None:
        """Return the seconds that are left of a deadline that counts from arrival; None without one."""
        if deadline_seconds is None:
            return None
        return max(0.0, deadline_seconds - (self._clock.monotonic() - journey.arrived_at))

    def now(self) -> float:
        """Return the monotonic second that every instant here is read from."""
        return self._clock.monotonic()

    def beat_due(self, journey: Journey, period_seconds: float) -> bool:
        """Return whether the client should see a sign of life now, at most once a period."""
        now = self._clock.monotonic()
        if journey.beat_at is not None and now - journey.beat_at < period_seconds:
            return False
        journey.beat_at = now
        return True

    def drop(self, journey: Journey) -> None:
        """It was no request for an answer; count nothing."""
        self._waiting(journey.route, -1)

    def ignored(self, journey: Journey, parameters: Iterable[str]) -> None:
        """These parameters of the request have no effect."""
        for parameter in parameters:
            label = parameter if parameter in PARAMETERS else "other"
            self._metrics.counter(names.PARAMETERS_IGNORED, **_labels(journey.route), parameter=label).inc()

    def end(self, journey: Journey, outcome: Outcome) -> None:
        """The request is over: the last byte was handed to the client's connection, or it never will be."""
        now, route = self._clock.monotonic(), journey.route
        if journey.sent_at is None:
            self._waiting(route, -1)
        else:
            self._running(route, -1)
        self._metrics.counter(names.REQUESTS, **_labels(route), outcome=outcome).inc()
        self._metrics.counter(names.PROMPT_TOKENS, **_labels(route)).inc(journey.prompt_tokens)
        self._metrics.counter(names.GENERATION_TOKENS, **_labels(route)).inc(journey.output_tokens)
        if outcome in ANSWERED:
            self._answered(journey, now)

    def _answered(self, journey: Journey, now: float) -> None:
        route, sent, first, last = journey.route, journey.sent_at, journey.first_at, journey.last_at
        recent = self._recent.setdefault(route.uid, _Recent())
        assert sent is not None
        self._observe(names.E2E_REQUEST_LATENCY, route, now - journey.arrived_at)
        self._observe(names.QUEUE_TIME, route, sent - journey.arrived_at)
        recent.worker_seconds.append(now - sent)
        if first is None or last is None:
            return  # an answer may be empty: the model's first token was its end
        self._observe(names.TIME_TO_FIRST_TOKEN, route, first - journey.arrived_at)
        self._observe(names.PREFILL_TIME, route, first - sent)
        self._observe(names.DECODE_TIME, route, last - first)
        if not journey.load_seconds:  # a load is no property of the model's speed, which this is for
            recent.first_token_seconds.append(first - journey.arrived_at)
        if journey.output_tokens > 1:
            self._observe(names.TIME_PER_OUTPUT_TOKEN, route, (now - first) / (journey.output_tokens - 1))
        if journey.output_tokens > 1 and last > first:
            recent.tokens_per_second.append((journey.output_tokens - 1) / (last - first))

    def measured(self, uid: str) -> Measured | None:
        """Return medians of the replica's recent answers, or None before the first.

        Requests that waited for their model to be loaded are not in that of the first token; the histograms have them.
        """
        recent = self._recent.get(uid)
        if recent is None:
            return None
        return Measured(
            time_to_first_token_seconds=_median(recent.first_token_seconds), decode_tokens_per_second=_median(recent.tokens_per_second)
        )

    def seconds_per_request(self, uid: str) -> float:
        """Return how long a worker had a request lately, 1 before the first."""
        recent = self._recent.get(uid)
        return (_median(recent.worker_seconds) if recent else None) or 1.0

    def keep(self, routes: Iterable[Route]) -> None:
        """Forget the medians of replicas that have no route any more."""
        for uid in self._recent.keys() - {route.uid for route in routes}:
            del self._recent[uid]

    def _observe(self, entry: names.Metric, route: Route, seconds: float) -> None:
        self._metrics.histogram(entry, **_labels(route)).observe(seconds)

    def _waiting(self, route: Route, more: int) -> None:
        self._metrics.gauge(names.REQUESTS_WAITING, **_labels(route)).inc(more)

    def _running(self, route: Route, more: int) -> None:
        self._metrics.gauge(names.REQUESTS_RUNNING, **_labels(route)).inc(more)


def _labels(route: Route) -> dict[str, str]:
    """Return the labels of a request: by deployment, not by replica, so that a rollout does not begin new series."""
    return {"namespace": route.namespace, "model_name": route.served_model_name}


def _median(values: deque[float]) -> float | None:
    return statistics.median(values) if values else None
