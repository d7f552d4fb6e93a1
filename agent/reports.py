"""Reports: what this board says about itself, ready for whoever carries it.

In: the whole latest state from the loop, and events as they happen. Out: one latest-value cell with a version, and a bounded log that
is kept until it is acknowledged. The loop writes, the session reads; neither waits for the other, so a slow link never builds a queue.

Measured speeds change with every request. They are rounded to two digits and move only together with another change of the replica, or
after `MEASURED_SECONDS`, because each report costs the controller a write.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Final, Literal

import msgspec

from rkfleet import conditions
from rkfleet.clock import Clock, format_time
from rkfleet.kinds.replica import Measured
from rkfleet.report import LOG_ENTRIES_MAX, BoardState, LogEntry, ReplicaState

__all__ = ["Reports", "status_sentence"]

MEASURED_SECONDS: Final = 60.0  # A fleet of 5,000 boards then writes at most 84 speeds a second.


class Reports:
    """The latest state and the log of one agent."""

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self._state: BoardState | None = None
        self._version = 0
        self._changed = asyncio.Event()
        self._measured_at: dict[str, float] = {}
        self._log: Final[deque[LogEntry]] = deque()
        self._sequence = 0
        self._dropped = 0

    @property
    def state(self) -> BoardState | None:
        """The latest state; None until the loop has looked around once."""
        return self._state

    @property
    def version(self) -> int:
        """Rises with every change of the state or the log."""
        return self._version

    @property
    def dropped(self) -> int:
        """Log entries lost to the bound since the agent started."""
        return self._dropped

    def log(self, after: int = 0) -> tuple[LogEntry, ...]:
        """Return the kept log entries with a sequence above `after`, oldest first."""
        return tuple(entry for entry in self._log if entry.sequence > after)

    def acknowledge(self, sequence: int) -> None:
        """Forget the log entries up to and including this sequence: somebody else keeps them now."""
        while self._log and self._log[0].sequence <= sequence:
            self._log.popleft()

    def record(
        self, type: Literal["Normal", "Warning"], reason: str, message: str, *, namespace: str = "", name: str = "", uid: str = ""
    ) -> None:
        """Add an event to the log, about a replica if one is named; the oldest entry makes room if the log is full."""
        self._sequence += 1
        if len(self._log) >= LOG_ENTRIES_MAX:
            self._log.popleft()
            self._dropped += 1
        entry = LogEntry(
            sequence=self._sequence, time=format_time(self._clock.now()), type=type, reason=reason, message=message,
            replica_namespace=namespace, replica_name=name, replica_uid=uid,
        )  # fmt: skip
        self._log.append(entry)
        self._touch()

    def publish(self, state: BoardState) -> None:
        """Make this the latest state; one that says nothing new changes nothing."""
        before = {replica.uid: replica for replica in self._state.replicas} if self._state else {}
        replicas = tuple(self._damped(before.get(replica.uid), replica) for replica in state.replicas)
        self._measured_at = {uid: moment for uid, moment in self._measured_at.items() if uid in {replica.uid for replica in replicas}}
        state = msgspec.structs.replace(state, replicas=replicas)
        if state != self._state:
            self._state = state
            self._touch()

    async def changed(self, seen: int) -> int:
        """Wait until the version is above `seen` and return it."""
        while self._version <= seen:
            await self._changed.wait()
        return self._version

    def _touch(self) -> None:
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def _damped(self, before: ReplicaState | None, after: ReplicaState) -> ReplicaState:
        now = self._clock.monotonic()
        after = msgspec.structs.replace(after, measured=_two_digits(after.measured))
        if before is not None and after.measured != before.measured:
            only_measured = msgspec.structs.replace(after, measured=before.measured) == before
            if only_measured and before.measured is not None and now - self._measured_at.get(after.uid, -math.inf) < MEASURED_SECONDS:
                return before
        if before is None or after.measured != before.measured:
            self._measured_at[after.uid] = now
        return after


def _two_digits(measured: Measured | None) -> Measured | None:
    if measured is None:
        return None
    return Measured(
        time_to_first_token_seconds=_rounded(measured.time_to_first_token_seconds),
        decode_tokens_per_second=_rounded(measured.decode_tokens_per_second),
    )


def _rounded(value: float | None) -> float | None:
    """Return the value with two significant digits: 0.2137 is 0.21 and 16.4 is 16."""
    return None if value is None else float(f"{value:.2g}")


def status_sentence(state: BoardState) -> str:
    """Return how the board stands, in one line: how many of its replicas answer, and why the first of the others does not."""
    ready = {replica.uid: conditions.find(replica.conditions, conditions.READY) for replica in state.replicas}
    waiting = [replica for replica in state.replicas if (found := ready[replica.uid]) is None or found.status != "True"]
    sentence = f"{len(state.replicas) - len(waiting)} of {len(state.replicas)} replicas answer"
    first = next((f"; {one.namespace}/{one.name}: {said.message}" for one in waiting if (said := ready[one.uid])), "")
    return sentence + first
