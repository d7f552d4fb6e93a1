"""The metrics of one running program, made from `rkfleet.metric_names` and from nothing else.

Each `app.py` makes one `Metrics` and hands it down; there is no module-level registry, so two programs in one process (tests) do not
mix. A metric that is not declared for the program cannot be made, and a declared one is always exposed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from rkfleet import __version__
from rkfleet.metric_names import ALL, BUILD_INFO, Metric

__all__ = ["Metrics"]

Program = Literal["controller", "registry", "gateway", "agent", "simulated-boards"]


class Metrics:
    """Counters, gauges and histograms of one program, looked up by their declaration."""

    def __init__(self, program: Program) -> None:
        self._registry: Final = CollectorRegistry()
        self._made: Final[dict[str, Counter | Gauge | Histogram]] = {
            entry.name: _make(entry, self._registry) for entry in ALL if entry.program in {program, "every"}
        }
        self.gauge(BUILD_INFO, program=program, version=__version__).set(1)

    def counter(self, entry: Metric, **labels: str) -> Counter:
        """Return the counter of `entry` with these label values.

        Raises:
            KeyError: The metric is not declared for this program.
        """
        made = self._made[entry.name]
        assert isinstance(made, Counter)
        return made.labels(**labels) if entry.labels else made

    def gauge(self, entry: Metric, **labels: str) -> Gauge:
        """Return the gauge of `entry` with these label values.

        Raises:
            KeyError: The metric is not declared for this program.
        """
        made = self._made[entry.name]
        assert isinstance(made, Gauge)
        return made.labels(**labels) if entry.labels else made

    def histogram(self, entry: Metric, **labels: str) -> Histogram:
        """Return the histogram of `entry` with these label values.

        Raises:
            KeyError: The metric is not declared for this program.
        """
        made = self._made[entry.name]
        assert isinstance(made, Histogram)
        return made.labels(**labels) if entry.labels else made

    def clear(self, entry: Metric) -> None:
        """Forget every label value of a metric, before a gauge is set anew from a whole state."""
        self._made[entry.name].clear()

    def families(self) -> Iterable[Family]:
        """Return every metric with its samples now, for whoever exposes several programs together."""
        return self._registry.collect()

    def forget(self, entry: Metric, **labels: str) -> None:
        """Forget one combination of label values, because what it was about is gone; an unknown one is left alone."""
        with contextlib.suppress(KeyError):
            self._made[entry.name].remove(*(labels[name] for name in entry.labels))

    def text(self) -> bytes:
        """Return everything in the Prometheus text format."""
        return generate_latest(self._registry)


class _Known(Collector):
    """Exposes a gauge's sample only while it is a number: NaN says that it is unknown."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge: Final = gauge

    def collect(self) -> Iterable[Family]:
        for family in self._gauge.collect():
            family.samples = [sample for sample in family.samples if not math.isnan(sample.value)]
            yield family


def _make(entry: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    match entry.type:
        case "counter":
            return Counter(entry.name.removesuffix("_total"), entry.help, entry.labels, registry=registry)
        case "gauge" if entry.optional:
            gauge = Gauge(entry.name, entry.help, entry.labels, registry=None)
            gauge.set(math.nan)
            registry.register(_Known(gauge))
            return gauge
        case "gauge":
            return Gauge(entry.name, entry.help, entry.labels, registry=registry)
        case "histogram":
            return Histogram(entry.name, entry.help, entry.labels, registry=registry, buckets=entry.buckets)
