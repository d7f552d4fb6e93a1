"""The agent's own gauges: what runs, what it follows, what the machine has left.

In: what the loop saw. Out: gauges in the agent's `Metrics`. Requests are measured where they are served, bytes where they are fetched.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, get_args

from agent.board.diagnosis import is_throttled
from agent.board.snapshot import BoardSnapshot
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
    CPU_FREQUENCY,
    DRAM_FREQUENCY,
    GPU_FREQUENCY,
    NPU_FREQUENCY,
    NPU_OTHER_CLIENTS,
    NPU_UTILIZATION,
    TEMPERATURE,
    THROTTLED,
    WORKERS,
    Metric,
)
from rkfleet.metrics import Metrics

__all__ = ["AgentMetrics"]


class AgentMetrics:
    """Gauges that follow the state of one agent."""

    def __init__(self, metrics: Metrics) -> None:
        """Take the metrics of the program."""
        self._metrics: Final = metrics
        self._shown: Final[dict[str, frozenset[str]]] = {}

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

    def show_hardware(self, seen: BoardSnapshot) -> None:
        """Show what moves on the board; what is unknown has no sample."""
        self._show_each(NPU_UTILIZATION, "core", {str(core): share for core, share in (seen.load or {}).items()})
        policies = {one.name.removeprefix("cpu"): float(one.current_hertz) for one in seen.policies if one.current_hertz is not None}
        self._show_each(CPU_FREQUENCY, "policy", policies)
        self._show_each(TEMPERATURE, "zone", {zone.name: zone.celsius for zone in seen.zones})
        for entry, name in ((NPU_FREQUENCY, "npu"), (GPU_FREQUENCY, "gpu"), (DRAM_FREQUENCY, "dram")):
            clock = seen.frequency(name)
            self._metrics.gauge(entry).set(math.nan if clock is None or clock.current_hertz is None else clock.current_hertz)
        throttled = is_throttled(seen)
        self._metrics.gauge(THROTTLED).set(math.nan if throttled is None else throttled)
        known = seen.clients is not None and (seen.clients or not seen.hidden_processes)
        self._metrics.gauge(NPU_OTHER_CLIENTS).set(len(seen.clients or ()) if known else math.nan)

    def _show_each(self, entry: Metric, label: str, values: Mapping[str, float]) -> None:
        """Show one sample for each, and none for those that were there before and are unknown now."""
        for gone in self._shown.get(entry.name, frozenset()) - set(values):
            self._metrics.forget(entry, **{label: gone})
        for name, value in values.items():
            self._metrics.gauge(entry, **{label: name}).set(value)
        self._shown[entry.name] = frozenset(values)

    def show_certificate(self, expires_timestamp: float | None) -> None:
        """Show when the certificates of this board end; nothing while that is not known."""
        if expires_timestamp is not None:
            self._metrics.gauge(CERTIFICATE_EXPIRY, certificate="board").set(expires_timestamp)

    def loop_failed(self) -> None:
        """Count a pass of the loop that ended in an unknown error."""
        self._metrics.counter(AGENT_LOOP_ERRORS).inc()
