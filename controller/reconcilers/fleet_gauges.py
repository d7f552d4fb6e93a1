"""The fleet as gauges: how many boards are in which state, and what each deployment wants and has.

In: the changes of the caches that the loops read anyway. Out: gauges in the controller's `Metrics`. `add_loops` calls it once. It is apart
from the loops because it decides nothing. Gauges follow each change as it comes, so that a scrape costs what writing its text costs and no
walk over the fleet. What is deleted is gone from the next scrape on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from controller.reconcilers.views import Views
from rkfleet import conditions, metric_names
from rkfleet.kinds import Board, ModelDeployment
from rkfleet.metrics import Metrics

__all__ = ["follow_fleet"]


class _State(NamedTuple):
    """What boards are counted by; the labels of `rkfleet_boards`."""

    condition: str
    status: str
    reason: str
    soc: str
    simulated: str


def follow_fleet(views: Views, metrics: Metrics) -> None:
    """Show boards and deployments as these caches know them, from now on."""
    views.boards.subscribe(_Boards(metrics).changed)
    views.deployments.subscribe(_Deployments(metrics).changed)


class _Boards:
    """Boards by state."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics: Final = metrics
        self._counts: Final[Counter[_State]] = Counter()

    def changed(self, old: Board | None, new: Board | None) -> None:
        before, after = set(_states(old)), set(_states(new))
        for state in before - after:
            self._show(state, -1)
        for state in after - before:
            self._show(state, 1)

    def _show(self, state: _State, step: int) -> None:
        self._counts[state] += step
        if self._counts[state]:
            self._metrics.gauge(metric_names.BOARDS, **state._asdict()).set(self._counts[state])
        else:
            del self._counts[state]
            self._metrics.forget(metric_names.BOARDS, **state._asdict())


def _states(board: Board | None) -> Iterator[_State]:
    """Yield under what a board counts: once for each of its conditions, and for Ready also when nobody has said anything yet."""
    if board is None:
        return
    status = board.status
    simulated = "true" if status.simulated else "false"
    if conditions.find(status.conditions, conditions.READY) is None:
        yield _State(conditions.READY, "Unknown", "", status.soc, simulated)
    for one in status.conditions:
        yield _State(one.type, one.status, one.reason, status.soc, simulated)


class _Deployments:
    """What each deployment wants, has and is."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics: Final = metrics

    def changed(self, old: ModelDeployment | None, new: ModelDeployment | None) -> None:
        for labels in _said(old):
            if labels not in list(_said(new)):
                self._metrics.forget(metric_names.DEPLOYMENT_CONDITION, **labels)
        for labels in _said(new):
            self._metrics.gauge(metric_names.DEPLOYMENT_CONDITION, **labels).set(1)
        if new is not None:
            self._count(new)
        elif old is not None:
            for entry in (metric_names.DEPLOYMENT_REPLICAS, metric_names.DEPLOYMENT_AVAILABLE, metric_names.DEPLOYMENT_UPDATED):
                self._metrics.forget(entry, **_name(old))

    def _count(self, deployment: ModelDeployment) -> None:
        name, status = _name(deployment), deployment.status
        self._metrics.gauge(metric_names.DEPLOYMENT_REPLICAS, **name).set(deployment.spec.replicas)
        self._metrics.gauge(metric_names.DEPLOYMENT_AVAILABLE, **name).set(status.available_replicas)
        self._metrics.gauge(metric_names.DEPLOYMENT_UPDATED, **name).set(status.updated_replicas)


def _name(deployment: ModelDeployment) -> dict[str, str]:
    return {"namespace": deployment.metadata.namespace, "deployment": deployment.metadata.name}


def _said(deployment: ModelDeployment | None) -> Iterator[dict[str, str]]:
    """Yield the labels of each of its conditions."""
    if deployment is not None:
        for one in deployment.status.conditions:
            yield {**_name(deployment), "condition": one.type, "status": one.status, "reason": one.reason}
