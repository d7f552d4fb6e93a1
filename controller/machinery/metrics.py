"""What the machinery counts; names and meanings stand in `rkfleet/metric_names.py`.

`app.py` makes one for its registry. Without one, every part counts into a registry of its own that nobody exposes, as tests do.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rkfleet import metric_names

__all__ = ["LoopMetrics"]


class LoopMetrics:
    """Counters of caches, queues, reconcilers and the event recorder."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        names = metric_names
        self.reconciles: Final = Counter(names.RECONCILES.name, names.RECONCILES.help, names.RECONCILES.labels, registry=registry)
        self.reconcile_seconds: Final = Histogram(
            names.RECONCILE_SECONDS.name,
            names.RECONCILE_SECONDS.help,
            names.RECONCILE_SECONDS.labels,
            buckets=names.RECONCILE_SECONDS.buckets,
            registry=registry,
        )
        self.queue_depth: Final = Gauge(names.QUEUE_DEPTH.name, names.QUEUE_DEPTH.help, names.QUEUE_DEPTH.labels, registry=registry)
        self.objects: Final = Gauge(names.CACHE_OBJECTS.name, names.CACHE_OBJECTS.help, names.CACHE_OBJECTS.labels, registry=registry)
        self.relists: Final = Counter(names.CACHE_RELISTS.name, names.CACHE_RELISTS.help, names.CACHE_RELISTS.labels, registry=registry)
        self.events_dropped: Final = Counter(
            names.EVENTS_DROPPED.name, names.EVENTS_DROPPED.help, names.EVENTS_DROPPED.labels, registry=registry
        )
