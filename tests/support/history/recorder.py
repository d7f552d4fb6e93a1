"""Where the clients of one history write down what they did, on one clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from tests.support.history.records import Connection, Delivery, History, Operation, Outcome, Seen, Verb

__all__ = ["Asked", "Recorder"]


class Asked:
    """A question that is under way."""

    def __init__(self, recorder: Recorder, operation: Operation) -> None:
        self._recorder = recorder
        self.operation = operation

    def answered(self, outcome: Outcome, *seen: Seen, **more: Any) -> Operation:
        """Write down how it ended; a write of unknown outcome may be done at any later time."""
        done = msgspec.structs.replace(self.operation, outcome=outcome, seen=seen, **more)
        if outcome != "unknown" or not done.writes:
            done = msgspec.structs.replace(done, returned=self._recorder.now())
        self._recorder.operations.append(done)
        return done


class Recorder:
    """Everything that was written down so far.

    Args:
        now: Seconds of a monotonic clock.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.operations: list[Operation] = []
        self.connections: list[Connection] = []
        self._values = 0

    def value(self) -> str:
        """Return a value that no other write has."""
        self._values += 1
        return f"v{self._values}"

    def ask(self, client: str, verb: Verb, **what: Any) -> Asked:
        """Note that a question is asked now."""
        return Asked(self, Operation(client=client, verb=verb, invoked=self.now(), **what))

    def watched(self, watcher: str, start: int, deliveries: list[Delivery], selection: str, *, last: bool) -> None:
        """Write down a watch that ended."""
        self.connections.append(Connection(watcher=watcher, start=start, deliveries=tuple(deliveries), selection=selection, last=last))

    def history(self, base: int) -> History:
        """Return what was recorded."""
        return History(base=base, operations=tuple(self.operations), connections=tuple(self.connections))
