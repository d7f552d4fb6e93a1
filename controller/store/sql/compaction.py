"""How much of the event log is kept, and when the rest goes.

Little and often: as soon as the log is `COMPACT_EVENTS` too long, the commit that happens anyway deletes that many rows by one range of
the primary key. There is no compaction job, so there is nothing that stops the writers for a noticeable time (kine's did, for most of a
second each minute: https://github.com/k3s-io/kine/pull/613).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

__all__ = ["COMPACT_EVENTS", "LOG_BYTES_MAX", "LOG_EVENTS_MAX", "LogWindow"]

LOG_EVENTS_MAX: Final = 10_000  # A watch may fall behind or be away for this many changes: minutes of a fleet in uproar, hours else.
LOG_BYTES_MAX: Final = 64 << 20  # The log is also held in memory; at 2.5 kB an object the number of events is reached first.
COMPACT_EVENTS: Final = 200  # Rows that one commit deletes on top of its work: about a millisecond.


class LogWindow:
    """Sizes of the events that are kept, oldest first; the writer thread owns it.

    Args:
        sizes: Revision and bytes of each event that the log holds.
        events_max: Events that are kept at least, unless they are too large.
        bytes_max: Bytes of events that are kept at most.
    """

    def __init__(self, sizes: Iterable[tuple[int, int]], *, events_max: int = LOG_EVENTS_MAX, bytes_max: int = LOG_BYTES_MAX) -> None:
        self._kept: Final = deque(sizes)
        self._bytes = sum(size for _, size in self._kept)
        self._events_max: Final = events_max
        self._bytes_max: Final = bytes_max

    def __len__(self) -> int:
        return len(self._kept)

    def restart(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Forget what was kept for these events."""
        self._kept.clear()
        self._kept.extend(sizes)
        self._bytes = sum(size for _, size in self._kept)

    def append(self, revision: int, size: int) -> None:
        """Note an event that was committed."""
        self._kept.append((revision, size))
        self._bytes += size

    def excess(self) -> int | None:
        """Return the revision up to which events should go, or None while the log is short enough."""
        slack = min(COMPACT_EVENTS, self._events_max)
        too_many = len(self._kept) - self._events_max
        if too_many < slack and self._bytes <= self._bytes_max:
            return None
        floor, count, left = 0, 0, self._bytes
        for revision, size in self._kept:
            if count >= COMPACT_EVENTS or (count >= too_many and left <= self._bytes_max):
                break
            floor, count, left = revision, count + 1, left - size
        return floor

    def drop(self, floor: int) -> None:
        """Note that the events up to `floor` are gone."""
        while self._kept and self._kept[0][0] <= floor:
            self._bytes -= self._kept.popleft()[1]
