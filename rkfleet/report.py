"""What a board says about itself: facts, the state of its replicas, and a log of events.

*State* is latest-value and whole: the newest replaces all before, so a slow link never builds a queue. *Log* entries are numbered,
bounded and acknowledged; `dropped` counts what the bound cost. The agent builds these, the session carries them, the controller's
status writer turns them into Board and Replica status.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from rkfleet.kinds.base import Condition
from rkfleet.kinds.board import Runtime, Versions
from rkfleet.kinds.replica import LastExit, Measured, Progress

__all__ = ["BoardFacts", "BoardState", "LogEntry", "ReplicaState", "RunningWorker", "Sample"]

LOG_ENTRIES_MAX = 256  # An hour of a busy board; older ones are dropped and counted.
SAMPLES_PER_REPORT_MAX = 60  # An hour of samples, some 10 kB: two seconds of a link of 64 kbit/s.
SERIES_MAX = 32  # Of one sample: six figures of each of four models, and eight of the machine.
SERIES_LENGTH_MAX = 300  # A metric name and two labels of 63 characters each are below 200.


class _Value(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    pass


class BoardFacts(_Value, frozen=True, kw_only=True):
    """What the machine is and has; byte counts are plain numbers.

    Attributes:
        soc: rk3588, rk3576 or cpu.
        simulated: True when the hardware does not exist, or a runtime library stands for it.
        runtimes: Runtimes that the agent can start, with the backend that stands behind each.
    """

    soc: str
    simulated: bool = False
    memory_bytes: int = 0
    storage_bytes: int = 0
    npu_cores: int = 0
    allocatable_memory_bytes: int = 0
    allocatable_storage_bytes: int = 0
    versions: Versions = Versions()
    runtimes: tuple[Runtime, ...] = ()


class ReplicaState(_Value, frozen=True, kw_only=True):
    """State of one replica of the accepted assignment; the fields are those of `Replica.status` that the agent owns."""

    namespace: str
    name: str
    uid: str
    observed_generation: int = 0
    endpoint: str = ""
    progress: Progress | None = None
    measured: Measured | None = None
    restarts: int = 0
    last_exit: LastExit | None = None
    conditions: tuple[Condition, ...] = ()


class RunningWorker(_Value, frozen=True, kw_only=True):
    """A worker process that really runs, also when no replica asks for it any more."""

    namespace: str
    name: str
    uid: str
    memory_bytes: int = 0


class BoardState(_Value, frozen=True, kw_only=True):
    """The whole latest state of a board.

    Attributes:
        assignment_number: Assignment that the agent follows.
        conditions: The board's own conditions that the agent owns (`Board.resource.owners["agent"]`).
    """

    assignment_number: int
    facts: BoardFacts
    serving_url: str = ""
    conditions: tuple[Condition, ...] = ()
    replicas: tuple[ReplicaState, ...] = ()
    running: tuple[RunningWorker, ...] = ()


class Sample(_Value, frozen=True, kw_only=True):
    """Figures of the board at one moment of an outage.

    Attributes:
        sequence: Rises by one with each sample of a board.
        age_seconds: How long ago that was when the report was sent: durations are right on boards whose calendar is not.
        readings: Series as Prometheus writes them (`name{label="value"}`), and their values.
    """

    sequence: int
    age_seconds: float
    readings: tuple[tuple[str, float], ...]


class LogEntry(_Value, frozen=True, kw_only=True):
    """Something that happened on the board.

    Attributes:
        time: The board's wall time when it happened, RFC 3339; it stays the same however often the entry is sent.
        age_seconds: How long ago that was when the report was sent; None if the board cannot know.
    """

    sequence: int
    time: str
    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    replica_namespace: str = ""
    replica_name: str = ""
    replica_uid: str = ""
    age_seconds: float | None = None
