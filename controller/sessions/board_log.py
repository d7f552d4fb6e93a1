"""The log of a board becomes Events, and is acknowledged after they are stored.

In: numbered entries of one session. Out: one Event for each, and the number up to which the board may forget. Called by the hub from one
task per session. It is apart from the event recorder of the machinery, which is best effort: what a board was promised to be kept is kept,
once.

An Event's name is made from the board, the entry's number, time and words: an entry that comes again, because the acknowledgement was lost
or the agent restarted in between, finds its Event and makes no second one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from controller.sessions.stream import HeardEntry
from controller.sessions.taking import Taken
from controller.store.base import Store
from rkfleet.clock import Clock, format_time, parse_time
from rkfleet.errors import AlreadyExists, NotFound
from rkfleet.kinds.base import Resource
from rkfleet.kinds.board import Board
from rkfleet.kinds.event import Event
from rkfleet.kinds.replica import Replica
from rkfleet.meta import Ref
from rkfleet.report import LogEntry

__all__ = ["BoardLog"]

# Of an entry whose age the board does not say (agents of before that, a reboot without a clock): a board without a clock says 1970, and
# beyond an hour its time is worse than that of arrival.
TIME_TRUSTED: Final = timedelta(hours=1)
MESSAGE_LENGTH_MAX: Final = 1024  # As Kubernetes' event validation (`core/validation/events.go`, NoteLengthLimit).
NAME_PREFIX_LENGTH_MAX: Final = 200  # With the 17 characters of the suffix below the 253 that a name may have.
BOARD_EVENTS_NAMESPACE: Final = "default"  # Where Kubernetes keeps the events of cluster-scoped objects.


class BoardLog:
    """Stores the log of one session."""

    def __init__(self, store: Store, clock: Clock, taken: Taken, new_uid: Callable[[], str]) -> None:
        """Take the store, the wall time for entries without a trusted time, the session, and the source of uids."""
        self._store: Final = store
        self._clock: Final = clock
        self._taken: Final = taken
        self._new_uid: Final = new_uid

    async def keep(self, entries: Sequence[HeardEntry]) -> int:
        """Store every entry and return the sequence of the last.

        Raises:
            Unavailable: The store cannot write; nothing may be acknowledged, and the same entries may be given again.
        """
        results = await asyncio.gather(*(self._keep(heard) for heard in entries), return_exceptions=True)
        for failure in results:
            if failure is not None:
                raise failure
        return max(heard.entry.sequence for heard in entries)

    async def _keep(self, heard: HeardEntry) -> None:
        entry = heard.entry
        about, resource, uid = await self._subject(entry)
        content = msgspec.json.encode((self._taken.uid, entry.sequence, entry.time, entry.reason, entry.message))
        name = f"{about.name[:NAME_PREFIX_LENGTH_MAX].rstrip('.-')}.{hashlib.sha256(content).hexdigest()[:16]}"
        ref = Ref(Event.resource.name, about.namespace or BOARD_EVENTS_NAMESPACE, name)
        with contextlib.suppress(AlreadyExists):  # Stored before; the acknowledgement was lost.
            await self._store.create(ref, self._event(ref, about, resource, uid, heard))

    async def _subject(self, entry: LogEntry) -> tuple[Ref, Resource, str]:
        """Return what the entry is about: the Replica that it names if that is or was this board's, else the Board."""
        board = Ref(Board.resource.name, "", self._taken.board)
        if not entry.replica_uid:
            return board, Board.resource, self._taken.uid
        replica = Ref(Replica.resource.name, entry.replica_namespace, entry.replica_name)
        try:
            item = await self._store.get(replica)
        except NotFound:
            return board, Board.resource, self._taken.uid
        if item.uid != entry.replica_uid or msgspec.json.decode(item.body, type=Replica).spec.board_name != self._taken.board:
            return board, Board.resource, self._taken.uid
        return replica, Replica.resource, entry.replica_uid

    def _event(self, ref: Ref, about: Ref, resource: Resource, uid: str, heard: HeardEntry) -> dict[str, Any]:
        now, entry = self._clock.now(), heard.entry
        happened = format_time(heard.happened or _trusted(entry.time, now))
        return {
            "apiVersion": Event.resource.api_version,
            "kind": Event.resource.kind,
            "metadata": {"name": ref.name, "namespace": ref.namespace, "uid": self._new_uid(), "creationTimestamp": format_time(now)},
            "involvedObject": {
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "namespace": about.namespace,
                "name": about.name,
                "uid": uid,
            },
            "type": entry.type,
            "reason": entry.reason,
            "message": entry.message[:MESSAGE_LENGTH_MAX],
            "count": 1,
            "firstTimestamp": happened,
            "lastTimestamp": happened,
            "source": {"component": "rkfleet-agent", "host": self._taken.board},
            "reportingComponent": "rkfleet-agent",
            "reportingInstance": self._taken.board,
        }


def _trusted(time: str, now: datetime) -> datetime:
    """Return when an entry happened by the board's clock, or now if that clock cannot be right."""
    try:
        happened = parse_time(time)
    except ValueError:
        return now
    return happened if now - TIME_TRUSTED <= happened <= now else now
