"""The recent changes in memory, and the watches that read them.

In: every committed change, in commit order (`publish`). Out: watches that deliver exactly what came after a revision. A watch has no
buffer of its own: it is a position in the log of its resource, so a thousand watches share one log and one encoding, resuming and
following are the same code, and a slow watch costs nothing. What it has not read when the log drops it is lost to it: it raises Expired
and its owner lists again. The log's length is therefore the named limit of every watch (`compaction.LOG_EVENTS_MAX`). A change that a
thousand watches see wakes them by and by, because together their lines would hold the loop for tens of milliseconds.

One event loop uses it; only waiting for the next change waits.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
from collections import deque
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from controller.store.base import Change, Item
from controller.store.selecting import Selector
from controller.store.turn import turn
from rkfleet.errors import Expired
from rkfleet.meta import ResourceName

__all__ = ["Broadcaster", "Entry"]

READ_AT_ONCE: Final = 100  # Changes that a watch takes from the log before other tasks get their turn: below a millisecond.
WAKE_AT_ONCE: Final = 100  # Watches woken before other tasks get their turn: sending a line over TLS takes each about 40 us.
BOOKMARK_REVISIONS: Final = 500  # A watch that sees nothing gets its bookmark moved this often, well within the length of the log.


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One change in the log.

    Attributes:
        revision: Its number; the item's resource version.
        item: The object after the change; for DELETED its last state.
        previous: The object before the change; None for ADDED, and where the log was read back from the disk.
    """

    revision: int
    type: Literal["ADDED", "MODIFIED", "DELETED"]
    item: Item
    previous: Item | None


class _Log:
    """The recent changes of one resource, and who reads them."""

    __slots__ = ("dropped", "entries", "watches")

    def __init__(self, dropped: int) -> None:
        self.dropped = dropped  # Revision of the newest change that is not here any more, or higher.
        self.entries: Final[list[Entry]] = []
        self.watches: Final[dict[_Watch, None]] = {}  # A set that keeps its order: who came first is woken first.

    def since(self, revision: int) -> int:
        """Return the index of the first entry after `revision`."""
        return bisect.bisect_right(self.entries, revision, key=_revision)


def _revision(entry: Entry) -> int:
    return entry.revision


class Broadcaster:
    """The log of all resources.

    Args:
        revision: Newest revision.
        floor: Changes up to here are not in `entries`.
        entries: Changes after `floor`, in order, as read back from the disk.
    """

    def __init__(self, revision: int, floor: int, entries: Sequence[Entry]) -> None:
        self.revision = revision
        self._floor = floor
        self._exact = revision  # What was there before a change is known for changes after this revision only.
        self._logs: Final[dict[ResourceName, _Log]] = {}
        self._sleepers: Final[dict[_Watch, None]] = {}  # Whom something was published for, and who was not woken yet, in order.
        self._waking = False  # The next slice of them has its turn coming.
        self._closed = False
        for entry in entries:
            self._log(entry.item.ref.resource).entries.append(entry)

    @property
    def watches(self) -> int:
        """Open watches."""
        return sum(len(log.watches) for log in self._logs.values())

    @property
    def length(self) -> int:
        """Entries that are kept."""
        return sum(len(log.entries) for log in self._logs.values())

    def publish(self, entries: Sequence[Entry], revision: int) -> None:
        """Add changes and wake who waits for them, some at once and the others in the next turns of the loop."""
        touched: dict[ResourceName, _Log] = {}
        for entry in entries:
            resource = entry.item.ref.resource
            log = touched[resource] = self._log(resource)
            log.entries.append(entry)
        bookmark_due = revision // BOOKMARK_REVISIONS != self.revision // BOOKMARK_REVISIONS
        self.revision = revision
        for log in self._logs.values() if bookmark_due else touched.values():
            self._sleepers.update(log.watches)
        if not self._waking:
            self._wake_some()

    def compact(self, floor: int) -> None:
        """Drop the changes up to `floor`."""
        for log in self._logs.values():
            if gone := log.since(floor):
                log.dropped = log.entries[gone - 1].revision
                del log.entries[:gone]
                for watch in log.watches:
                    if watch.position < log.dropped:
                        watch.wake()

    def restart(self, revision: int) -> None:
        """Begin anew at `revision`: what led there is not known, so every open watch falls behind."""
        self.revision = self._floor = self._exact = revision
        for log in self._logs.values():
            log.dropped = revision
            log.entries.clear()
            for watch in log.watches:
                watch.wake()

    def since(self, resource: ResourceName, revision: int) -> Sequence[Entry]:
        """Return the changes of a resource after `revision`, each with what was there before.

        Raises:
            Expired: They are not known any more, or `revision` lies in the future.
        """
        log = self._log(resource)
        self._check(log, resource, revision, exact=True)
        return log.entries[log.since(revision) :]

    def watch(self, resource: ResourceName, selector: Selector, revision: int, *, bookmarks: bool) -> _Watch:
        """Return a watch that delivers what comes after `revision`.

        Raises:
            Expired: Some of it is not known any more, or `revision` lies in the future.
        """
        log = self._log(resource)
        self._check(log, resource, revision, exact=not selector.fixed)
        watch = _Watch(self, log, resource, selector, revision, bookmarks=bookmarks)
        log.watches[watch] = None
        if self._closed:
            watch.end()
        return watch

    def close(self) -> None:
        """End every watch."""
        self._closed = True
        for log in self._logs.values():
            for watch in list(log.watches):
                watch.end()

    def _wake_some(self) -> None:
        for watch in list(itertools.islice(self._sleepers, WAKE_AT_ONCE)):
            del self._sleepers[watch]
            watch.wake()
        self._waking = bool(self._sleepers)
        if self._waking:
            asyncio.get_running_loop().call_soon(self._wake_some)

    def _log(self, resource: ResourceName) -> _Log:
        log = self._logs.get(resource)
        if log is None:
            log = self._logs[resource] = _Log(self._floor)
        return log

    def _check(self, log: _Log, resource: ResourceName, revision: int, *, exact: bool) -> None:
        if revision > self.revision:
            raise Expired(f"{resource}: revision {revision} is not known, the newest is {self.revision}; list again")
        if revision < log.dropped:
            raise Expired(f"{resource}: revision {revision} is too old, changes up to {log.dropped} are compacted; list again")
        if exact and revision < self._exact and log.since(revision) < log.since(self._exact):
            raise Expired(f"{resource}: revision {revision} is from before the last start; list again")


class _Watch:
    """A position in a log; see `controller.store.base.Watch`."""

    def __init__(
        self, broadcaster: Broadcaster, log: _Log, resource: ResourceName, selector: Selector, revision: int, *, bookmarks: bool
    ) -> None:
        self._broadcaster: Final = broadcaster
        self._log: Final = log
        self._resource: Final = resource
        self._selector: Final = selector
        self._bookmarks: Final = bookmarks
        self.position = revision  # Everything up to here was read.
        self._told = revision  # The last revision that was delivered.
        self._ready: Final[deque[Change]] = deque()
        self._wake: Final = asyncio.Event()
        self._ended = False

    def __aiter__(self) -> _Watch:
        return self

    async def __anext__(self) -> Change:
        while not self._ready:
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            if self._read():
                await turn()
            elif not self._ready:
                await self._wake.wait()
        change = self._ready.popleft()
        self._told = int(change.resource_version)
        return change

    async def aclose(self) -> None:
        self.end()

    def wake(self) -> None:
        """Look at the log again."""
        self._wake.set()

    def end(self) -> None:
        """End the iteration."""
        self._ended = True
        self._ready.clear()
        self._log.watches.pop(self, None)
        self._wake.set()

    def _read(self) -> bool:
        """Take the next changes from the log; return whether there are more."""
        log = self._log
        if self.position < log.dropped:
            self.end()
            raise Expired(
                f"{self._resource}: the watch fell behind: it had read up to revision {self.position}, changes up to {log.dropped} are"
                " compacted; list again"
            )
        start = log.since(self.position)
        entries = log.entries[start : start + READ_AT_ONCE]
        self._ready.extend(change for entry in entries if (change := self._seen(entry)) is not None)
        more = start + len(entries) < len(log.entries)
        self.position = entries[-1].revision if more else self._broadcaster.revision
        if self._bookmarks and not self._ready and self.position - self._told >= BOOKMARK_REVISIONS:
            self._ready.append(Change("BOOKMARK", str(self.position)))
        return more

    def _seen(self, entry: Entry) -> Change | None:
        """Return what this watch sees of a change, or None."""
        item = entry.item
        if self._selector.fixed:
            return Change(entry.type, item.resource_version, item) if self._selector.selects(item) else None
        was = entry.previous is not None and self._selector.selects(entry.previous)
        is_ = entry.type != "DELETED" and self._selector.selects(item)
        match was, is_:
            case True, True:
                return Change("MODIFIED", item.resource_version, item)
            case False, True:
                return Change("ADDED", item.resource_version, item)
            case True, False:
                return Change("DELETED", item.resource_version, item)
            case _:
                return None
