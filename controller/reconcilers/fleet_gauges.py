"""The fleet as gauges: how many boards are in which state, and what each deployment wants and has.

In: the caches that the loops read anyway. Out: samples, set when somebody asks for the metrics. Called by the ops listener of `app.py`.
It is apart from the loops because it decides nothing. Boards are counted as they change, so that a scrape of a large fleet costs as much
as there are different counts; deployments are few and are read when asked. What is deleted is gone from the next scrape on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from controller.reconcilers.views import Views
from rkfleet import conditions, metric_names
from rkfleet.kinds import Board, ModelDeployment
from rkfleet.metrics import Metrics

__all__ = ["FleetGauges"]


class _Kind(NamedTuple):
    """What boards are counted by; the labels of `rkfleet_boards`."""

    condition: str
    status: str
    reason: str
    soc: str
    simulated: str


class FleetGauges:
    """Counts over the caches of boards and deployments.

    Args:
        views: Caches; the manager runs them.
    """

    def __init__(self, views: Views) -> None:
        self._views: Final = views
        self._boards: Final[Counter[_Kind]] = Counter()
        views.boards.subscribe(self._board_changed)

    def show(self, metrics: Metrics) -> None:
        """Set the gauges to what the caches know now; before their first lists there are none."""
        metrics.clear(metric_names.BOARDS)
        if self._views.boards.synced:
            for kind, count in self._boards.items():
                metrics.gauge(metric_names.BOARDS, **kind._asdict()).set(count)
        for entry in (
            metric_names.DEPLOYMENT_REPLICAS,
            metric_names.DEPLOYMENT_AVAILABLE,
            metric_names.DEPLOYMENT_UPDATED,
            metric_names.DEPLOYMENT_CONDITION,
        ):
            metrics.clear(entry)
        for deployment in self._views.deployments.snapshot():
            _show_deployment(metrics, deployment)

    def _board_changed(self, old: Board | None, new: Board | None) -> None:
        for kind in _kinds(old):
            self._boards[kind] -= 1
            if not self._boards[kind]:
                del self._boards[kind]
        self._boards.update(_kinds(new))


def _kinds(board: Board | None) -> Iterator[_Kind]:
    """Yield under what a board counts: once for each of its conditions, and for Ready also when nobody has said anything yet."""
    if board is None:
        return
    status = board.status
    simulated = "true" if status.simulated else "false"
    if conditions.find(status.conditions, conditions.READY) is None:
        yield _Kind(conditions.READY, "Unknown", "", status.soc, simulated)
    for one in status.conditions:
        yield _Kind(one.type, one.status, one.reason, status.soc, simulated)


def _show_deployment(metrics: Metrics, deployment: ModelDeployment) -> None:
    labels = {"namespace": deployment.metadata.namespace, "deployment": deployment.metadata.name}
    status = deployment.status
    metrics.gauge(metric_names.DEPLOYMENT_REPLICAS, **labels).set(deployment.spec.replicas)
    metrics.gauge(metric_names.DEPLOYMENT_AVAILABLE, **labels).set(status.available_replicas)
    metrics.gauge(metric_names.DEPLOYMENT_UPDATED, **labels).set(status.updated_replicas)
    for one in status.conditions:
        metrics.gauge(metric_names.DEPLOYMENT_CONDITION, **labels, condition=one.type, status=one.status, reason=one.reason).set(1)
