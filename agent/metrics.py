"""The agent's own gauges: what runs, what it follows, what the machine has left.

In: what the loop saw. Out: gauges in the agent's `Metrics`. Requests are measured where they are served, bytes where they are fetched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, get_args

from agent.workers.base import Phase, WorkerState
from rkfleet.metric_names import (
    AGENT_LOOP_ERRORS,
    AGENT_SESSION_OPEN,
    ARTIFACT_BYTES,
    ASSIGNMENT_NUMBER,
    BOARD_MEMORY_AVAILABLE,
    BOARD_SIMULATED,
    BOARD_STORAGE_FREE,
    CERTIFICATE_EXPIRY,
    WORKERS,
)
from rkfleet.metrics import Metrics

__all__ = ["AgentMetrics"]


class AgentMetrics:
    """Gauges that follow the state of one agent."""

    def __init__(self, metrics: Metrics) -> None:
        """Take the metrics of the program."""
        self._metrics: Final = metrics

    def show(self, assignment_number: int, workers: Sequence[WorkerState], artifact_bytes: int) -> None:
        """Show what the board follows and what runs on it."""
        self._metrics.gauge(ASSIGNMENT_NUMBER).set(assignment_number)
        self._metrics.gauge(ARTIFACT_BYTES).set(artifact_bytes)
        counts = Counter(worker.phase for worker in workers)
        for phase in get_args(Phase):
            self._metrics.gauge(WORKERS, phase=phase).set(counts[phase])

    def show_machine(self, memory_available_bytes: int, storage_free_bytes: int) -> None:
        """Show what the machine has left."""
        self._metrics.gauge(BOARD_MEMORY_AVAILABLE).set(memory_available_bytes)
        self._metrics.gauge(BOARD_STORAGE_FREE).set(storage_free_bytes)

    def show_simulated(self, *, simulated: bool) -> None:
        """Show whether every other figure of this board is simulated."""
        self._metrics.gauge(BOARD_SIMULATED).set(1 if simulated else 0)

    def show_session(self, *, open: bool) -> None:
        """Show whether there is a session."""
        self._metrics.gauge(AGENT_SESSION_OPEN).set(1 if open else 0)

    def show_certificate(self, expires_timestamp: float | None) -> None:
        """Show when the certificates of this board end; nothing while that is not known."""
        if expires_timestamp is not None:
            self._metrics.gauge(CERTIFICATE_EXPIRY, certificate="board").set(expires_timestamp)

    def loop_failed(self) -> None:
        """Count a pass of the loop that ended in an unknown error."""
        self._metrics.counter(AGENT_LOOP_ERRORS).inc()
