"""What is worth an Event when a board's state changes. Pure.

In: the state before and after. Out: happenings for the log of the report. A state says what is; only a happening says that a worker died
at night and came back before anybody looked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal

import msgspec

from rkfleet import conditions
from rkfleet.conditions import Condition
from rkfleet.report import BoardState, ReplicaState

__all__ = ["FIELD_WITHOUT_EFFECT", "LIBRARY_REFUSED", "WORKER_EXITED", "Happening", "happenings"]

WORKER_EXITED: Final = "WorkerExited"
FIELD_WITHOUT_EFFECT: Final = "FieldWithoutEffect"
LIBRARY_REFUSED: Final = "RuntimeLibraryRefused"

_NORMAL: Final = frozenset({
    conditions.FETCHED, conditions.MODEL_LOADED, conditions.DRAIN_COMPLETE,
})  # fmt: skip
_WARNINGS: Final = frozenset({
    conditions.FETCH_FAILED, conditions.DISK_FULL, conditions.DIGEST_MISMATCH, conditions.RUNTIME_MISSING, conditions.DRAIN_DEADLINE,
    conditions.LOW_MEMORY, conditions.NO_REFERENCE_ROW, conditions.NO_NPU_DOMAIN, conditions.WAITING_FOR_MEMORY,
})  # fmt: skip


# What of the board's own conditions needs somebody, by type: everything else is how it should be.
_ALARMS: Final[Mapping[str, str]] = {
    conditions.MEMORY_PRESSURE: "True",
    conditions.DISK_PRESSURE: "True",
    conditions.THERMAL_PRESSURE: "True",
    conditions.NPU_READY: "False",
    conditions.CLOCKS_PINNED: "False",
}


class Happening(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened on the board, or to one of its replicas if it names one."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    namespace: str = ""
    name: str = ""
    uid: str = ""


def happenings(before: BoardState | None, after: BoardState) -> tuple[Happening, ...]:
    """Return what happened between two states; between nothing and the first state only what needs somebody is told."""
    return tuple(_of_board(before, after)) + tuple(_of_replicas(before, after))


def _of_board(before: BoardState | None, after: BoardState) -> Iterator[Happening]:
    for new in after.conditions:
        old = conditions.find(before.conditions, new.type) if before else None
        if new.status != _ALARMS.get(new.type) or new.reason == conditions.CLOCKS_UNMANAGED:
            continue
        if old is None or (old.status, old.reason) != (new.status, new.reason):
            yield Happening(type="Warning", reason=new.reason, message=new.message)


def _of_replicas(before: BoardState | None, after: BoardState) -> Iterator[Happening]:
    earlier = {replica.uid: replica for replica in before.replicas} if before else {}
    for replica in after.replicas:
        old = earlier.get(replica.uid)
        if replica.last_exit is not None and (old is None or replica.last_exit != old.last_exit):
            message = f"the worker ended, {replica.last_exit.reason}: {replica.last_exit.message}"
            yield _happening(replica, "Warning", WORKER_EXITED, message)
        loaded = conditions.find(replica.conditions, conditions.LOADED)
        ready = conditions.is_true(replica.conditions, conditions.READY)  # one that drains has another sentence there
        if loaded is not None and ready and loaded.status == "True" and loaded.message and _is_news(old, loaded):
            yield _happening(replica, "Warning", FIELD_WITHOUT_EFFECT, loaded.message)
        said: set[str] = set()
        for new in replica.conditions:
            if new.reason in said or not _is_new(old, new):
                continue
            said.add(new.reason)
            # One model that goes for another, while the request waits, is everyday.
            if new.reason in _WARNINGS and not (ready and new.reason == conditions.WAITING_FOR_MEMORY):
                yield _happening(replica, "Warning", new.reason, new.message)
            elif new.reason in _NORMAL and new.status == "True" and before is not None:
                yield _happening(replica, "Normal", new.reason, _WORDS.get(new.reason, new.message))
            elif new.reason == conditions.UNLOADED and before is not None:
                yield _happening(replica, "Normal", new.reason, new.message)


_WORDS: Final = {
    conditions.FETCHED: "every file is on the board and verified",
    conditions.MODEL_LOADED: "the model is loaded and answers",
}


def _is_new(old: ReplicaState | None, new: Condition) -> bool:
    found = conditions.find(old.conditions, new.type) if old else None
    return found is None or (found.status, found.reason) != (new.status, new.reason)


def _is_news(old: ReplicaState | None, new: Condition) -> bool:
    found = conditions.find(old.conditions, new.type) if old else None
    return found is None or found.message != new.message


def _happening(replica: ReplicaState, type: Literal["Normal", "Warning"], reason: str, message: str) -> Happening:
    return Happening(type=type, reason=reason, message=message, namespace=replica.namespace, name=replica.name, uid=replica.uid)
