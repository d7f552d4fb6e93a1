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

__all__ = ["BoardFacts", "BoardState", "LogEntry", "ReplicaState", "RunningWorker"]

LOG_ENTRIES_MAX = 256  # An hour of a busy board; older ones are dropped and counted.


class _Value(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    pass


class BoardFacts(_Value, frozen=True, kw_only=True):
    """What the machine is and has; byte counts are plain numbers.

    Attributes:
        soc: rk3588, rk3576 or cpu.
        simulated: True when the hardware does not exist.
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


class LogEntry(_Value, frozen=True, kw_only=True):
    """Something that happened on the board, with the board's wall time in RFC 3339."""

    sequence: int
    time: str
    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    replica_namespace: str = ""
    replica_name: str = ""
    replica_uid: str = ""
