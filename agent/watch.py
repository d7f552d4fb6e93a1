"""The watch over the board's hardware: looks every few seconds, keeps the clocks as they are wanted, says how the hardware stands.

In: telemetry, the clocks that the assignment wants (`want`, called by the loop). Out: conditions that the loop puts into its report,
gauges, a wake-up of the loop when a condition changes. Made by `agent/parts.py`. It stands beside the loop because setting clocks can wait
for the kernel and for the helper, and the loop waits for nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from agent.board.clock_control import Answer, ClockControl
from agent.board.sensors import LOOK_SECONDS
from agent.board.snapshot import BoardSnapshot
from agent.board.telemetry import Telemetry
from agent.metrics import AgentMetrics
from agent.planning.hardware import Clocks, clocks_pinned, is_settled, npu_ready, thermal_pressure
from rkfleet import conditions
from rkfleet.clock import Clock
from rkfleet.conditions import Condition
from rkfleet.disk import in_thread
from rkfleet.racing import until_first

__all__ = ["BoardWatch"]

# Clocks that do not follow are set again after a pause that doubles: drift is repaired at once, a fight with another program is not.
RETRY_SECONDS_MIN: Final = 5.0
RETRY_SECONDS_MAX: Final = 600.0
# Clocks that have stayed for so long have nobody who fights.
CALM_SECONDS: Final = 600.0
# A condition whose sentence alone changes, such as by another process id, is a write to the controller: at most one in this time.
MESSAGE_SECONDS: Final = 60.0

_log = logging.getLogger(__name__)


class BoardWatch:
    """The watch of one board; `run` must run for the clocks to be set."""

    def __init__(
        self,
        telemetry: Telemetry,
        control: ClockControl,
        *,
        clock: Clock,
        metrics: AgentMetrics,
        on_change: Callable[[], None],
        runtime_problem: Callable[[], str] = lambda: "",
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """Take what is looked at and set; nothing is looked at yet.

        Args:
            telemetry: The board.
            control: Its clocks.
            clock: Monotonic time and waiting.
            metrics: Gauges.
            on_change: Called when a condition has changed.
            runtime_problem: Asked at each look why the vendor's library cannot be used; empty if it can.
            look_seconds: Time between two looks.
        """
        self._telemetry: Final = telemetry
        self._control: Final = control
        self._clock: Final = clock
        self._metrics: Final = metrics
        self._on_change: Final = on_change
        self._runtime_problem: Final = runtime_problem
        self._look_seconds: Final = look_seconds
        self._wanted: Clocks | None = None
        self._changed: Final = asyncio.Event()
        self._said: dict[str, tuple[Condition, float]] = {}
        self._has_npu = False
        self._looked = False
        self._undone = False
        self._failures = 0
        self._not_before = 0.0
        self._settled_since: float | None = None
        self._answer = Answer()

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What is to be said about the hardware now, by type."""
        return tuple(said for _, (said, _) in sorted(self._said.items()))

    def want(self, clocks: Clocks) -> None:
        """Take how the clocks are to run; does not block."""
        if clocks != self._wanted:
            self._wanted, self._undone, self._failures, self._not_before, self._answer = clocks, False, 0, 0.0, Answer()
            self._changed.set()

    async def run(self) -> None:
        """Look and set until cancelled."""
        while True:
            self._changed.clear()
            self.look()
            try:
                await self._tune()
            except Exception:  # noqa: BLE001 (the edge of the watch: a board whose clocks do the unexpected still serves)
                self._failed("setting the clocks failed")
            await self._wait()

    def look(self) -> None:
        """Read the board once: gauges, and the conditions that follow from what is seen."""
        try:
            self._look()
        except Exception:  # noqa: BLE001 (the edge of the watch: a board whose files say the unexpected still serves)
            self._failed("a look at the hardware failed")

    def _failed(self, what: str) -> None:
        _log.exception(what)
        self._metrics.loop_failed()

    def _look(self) -> None:
        # Before anything runs there is time to look at every process at once; later looks share it among them.
        seen = self._telemetry.observe() if self._looked else self._telemetry.observe(links_max=None)
        self._looked = True
        self._has_npu = seen.soc.npu_cores > 0
        self._metrics.show_hardware(seen)
        self._say(conditions.NPU_READY, npu_ready(seen, self._runtime_problem() if self._has_npu else ""))
        self._say(conditions.THERMAL_PRESSURE, self._thermal(seen))

    def _thermal(self, seen: BoardSnapshot) -> Condition | None:
        before = self._said.get(conditions.THERMAL_PRESSURE)
        return thermal_pressure(seen, before=before is not None and before[0].status == "True")

    async def _tune(self) -> None:
        wanted = self._wanted
        if wanted is None:
            return
        now = self._clock.monotonic()
        if wanted == "Unmanaged":
            if not self._undone and now >= self._not_before:
                answer = await in_thread(self._control.undo)
                if wanted != self._wanted:
                    return  # Something else is wanted by now, and what came of this says nothing about that.
                self._take(answer)
                self._undone = not self._answer.problem and all(item.outcome != "refused" for item in self._answer.items)
            items = self._answer.items
        else:
            items = self._control.read()
            if is_settled(items):
                self._rest(now)
            elif now >= self._not_before:
                self._settled_since = None
                answer = await in_thread(self._control.apply)
                if wanted != self._wanted:
                    return
                self._take(answer)
                items = answer.items or items
        has_profile, problem = self._control.has_profile, self._answer.problem
        found = clocks_pinned(wanted, items, has_npu=self._has_npu, has_profile=has_profile, problem=problem)
        self._say(conditions.CLOCKS_PINNED, found)

    def _take(self, answer: Answer) -> None:
        """Keep what came of an attempt, and when the next may be made."""
        self._answer = answer
        pause = min(RETRY_SECONDS_MIN * 2.0 ** min(self._failures, 16), RETRY_SECONDS_MAX)
        self._failures += 1
        self._not_before = self._clock.monotonic() + pause
        for item in answer.items:
            if item.outcome in {"left", "refused"}:
                _log.warning("a clock was not set", extra={"clock": item.name, "cause": item.why})
        if answer.problem:
            _log.warning("clocks were not set", extra={"cause": answer.problem})

    def _rest(self, now: float) -> None:
        """Forget failures once the clocks have stayed as they are wanted."""
        self._answer = Answer()
        self._settled_since = now if self._settled_since is None else self._settled_since
        if now - self._settled_since >= CALM_SECONDS:
            self._failures = 0

    def _say(self, type: str, new: Condition | None) -> None:
        """Replace a condition, at once if its status or reason is new, else not too often."""
        now, old = self._clock.monotonic(), self._said.get(type)
        if new is None:
            if self._said.pop(type, None) is not None:
                self._on_change()
            return
        if old is not None:
            same = (old[0].status, old[0].reason) == (new.status, new.reason)
            if old[0] == new or (same and now - old[1] < MESSAGE_SECONDS):
                return
        self._said[type] = (new, now)
        self._on_change()

    async def _wait(self) -> None:
        """Return when other clocks are wanted, or when the next look is due."""
        await until_first(self._changed.wait(), self._clock.sleep(self._look_seconds))
