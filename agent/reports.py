"""Reports: what this board says about itself, ready for whoever carries it.

In: the whole latest state from the loop, and events as they happen. Out: one latest-value cell with a version, and a bounded log that is
kept until it is acknowledged. The loop writes, the session reads; neither waits for the other, so a slow link never builds a queue. What
happened is kept with its moment, and given with its age: see `agent/moments.py`.

Measured speeds change with every request. They are rounded to two digits and move only together with another change of the replica, or
after `MEASURED_SECONDS`, because each report costs the controller a write.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from agent.moments import Moment, Moments, wall_time
from agent.samples import Samples
from rkfleet import conditions
from rkfleet.clock import Clock, format_time
from rkfleet.fleet_time import FleetTime
from rkfleet.kinds.replica import Measured
from rkfleet.report import LOG_ENTRIES_MAX, BoardState, LogEntry, ReplicaState

__all__ = ["Recorded", "Reports", "status_sentence"]

MEASURED_SECONDS: Final = 60.0  # A fleet of 5,000 boards then writes at most 84 speeds a second.


class Recorded(msgspec.Struct, frozen=True, gc=False):
    """An entry of the log and when it happened."""

    entry: LogEntry
    moment: Moment


class Reports:
    """The latest state and the log of one agent.

    Attributes:
        samples: What was sampled while there was no session.
    """

    def __init__(self, clock: Clock, time: FleetTime | None = None) -> None:
        """Take the machine's clock and the best known wall time, which is the same unless somebody knows better."""
        self._clock: Final = clock
        self._moments: Final = Moments(clock, time or FleetTime(clock))
        self.samples: Final = Samples(self._moments)
        self._state: BoardState | None = None
        self._version = 0
        self._changed = asyncio.Event()
        self._measured_at: dict[str, float] = {}
        self._log: Final[deque[Recorded]] = deque()
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
        """Return the kept log entries with a sequence above `after`, oldest first, each with its age now."""
        return tuple(
            msgspec.structs.replace(one.entry, age_seconds=self._moments.age_seconds(one.moment))
            for one in self._log
            if one.entry.sequence > after
        )

    @property
    def recorded(self) -> tuple[Recorded, ...]:
        """The kept log entries with their moments, oldest first."""
        return tuple(self._log)

    def restore(self, entries: Sequence[Recorded]) -> None:
        """Take back entries that were recorded before, with the sequences that they had; call it before anything is recorded."""
        assert not self._sequence
        self._log.extend(entries[-LOG_ENTRIES_MAX:])
        if entries:
            self._sequence = entries[-1].entry.sequence
            self._touch()

    def acknowledge(self, sequence: int) -> None:
        """Forget the log entries up to and including this sequence: somebody else keeps them now."""
        while self._log and self._log[0].entry.sequence <= sequence:
            self._log.popleft()

    def record(
        self, type: Literal["Normal", "Warning"], reason: str, message: str, *, namespace: str = "", name: str = "", uid: str = ""
    ) -> None:
        """Add an event to the log, about a replica if one is named; the oldest entry makes room if the log is full."""
        self._sequence += 1
        if len(self._log) >= LOG_ENTRIES_MAX:
            self._log.popleft()
            self._dropped += 1
        moment = self._moments.now()
        entry = LogEntry(
            sequence=self._sequence, time=format_time(wall_time(moment)), type=type, reason=reason, message=message,
            replica_namespace=namespace, replica_name=name, replica_uid=uid,
        )  # fmt: skip
        self._log.append(Recorded(entry, moment))
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
