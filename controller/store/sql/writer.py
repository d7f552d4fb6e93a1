"""The one writer: a thread that decides writes in order and commits what waits together.

In: writes with the futures of their callers (`submit`, from the event loop). Out: a `Delivery` for each batch, handed to the event loop:
what changed, and an answer for every write, given only after the commit returned, which is after the fsync. A write that loses (its name
is taken, its expectation does not hold) gets its error, and the rest of the batch commits without it.

Group commit: while a transaction is on its way to the disk, writes wait and share the next one. A write that comes alone never waits
for company. When others were seen to wait, the next batch gathers until as many are there as were seen, or nobody came for
`QUIET_SECONDS`, or `GATHER_SECONDS` are over: a burst of hundreds becomes a few commits, a handful of writers who wait for each answer
share every commit without a pause, and a lone one pays nothing.

The thread keeps its own map of what is stored, ahead of the event loop's by at most one batch; items are immutable and shared. When a
commit fails, everything in it is answered with the reason and forgotten, what the file really holds is read back, and the thread goes on:
it tries with the next write, and without one it tries by itself every second, so that a full disk that has room again is known as such.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from controller.store.base import Item
from controller.store.broadcaster import Entry
from controller.store.sql.compaction import LogWindow
from controller.store.sql.database import Batch, Database
from controller.store.writes import Write, evaluate
from rkfleet.errors import FleetError, Internal, Unavailable
from rkfleet.kinds.base import Resource
from rkfleet.meta import Ref

__all__ = ["Delivery", "Pending", "Writer"]

BATCH_WRITES_MAX: Final = 128  # 100 per commit already cost a 16th of 100 commits; more would make everybody wait for the slowest.
BATCH_BYTES_MAX: Final = 4 << 20  # Of objects after the write: keeps one transaction in the write-ahead log below its checkpoint.
QUIET_SECONDS: Final = 0.002  # A gap this long says that those who write at the same time have all arrived.
GATHER_SECONDS: Final = 0.008  # The longest wait for company; a few fsyncs.
PROBE_SECONDS: Final = 1.0  # How often a store in trouble looks whether the trouble is over.

_log: Final = logging.getLogger(__name__)


class Pending(msgspec.Struct, frozen=True):
    """A write and who waits for it."""

    write: Write
    resource: Resource
    answer: asyncio.Future[Item]


class Delivery(msgspec.Struct, frozen=True):
    """What one batch came to.

    Attributes:
        answers: For each write its item or its error.
        entries: What changed, in order, durable.
        revision: Newest revision after it.
        floor: Events up to here are compacted.
        commits: Transactions that it took: 0 or 1.
        commit_seconds: How long the transaction took.
        trouble: Why writes fail at the moment; empty while they do not.
    """

    answers: Sequence[tuple[Pending, Item | FleetError]]
    entries: Sequence[Entry]
    revision: int
    floor: int
    commits: int
    commit_seconds: float
    trouble: str


class _Plan:
    """The changes of one batch on top of what is stored."""

    def __init__(self, stored: dict[Ref, Item], revision: int) -> None:
        self._stored: Final = stored
        self.revision = revision
        self.changed: Final[dict[Ref, Item | None]] = {}
        self.entries: Final[list[Entry]] = []
        self.answers: Final[list[tuple[Pending, Item | FleetError]]] = []
        self.bytes = 0

    def add(self, pending: Pending) -> None:
        """Decide one write."""
        ref = pending.write.ref
        before = self.changed[ref] if ref in self.changed else self._stored.get(ref)
        try:
            outcome = evaluate(pending.write, before, pending.resource, self.revision + 1)
        except FleetError as error:
            self.answers.append((pending, error))
            return
        except Exception as error:  # noqa: BLE001 - our mistake in one write must not fail its neighbours
            _log.exception("write to %s failed", ref)
            self.answers.append((pending, Internal(f"internal error in a write to {ref}: {type(error).__name__}")))
            return
        self.answers.append((pending, outcome.item))
        if outcome.type:
            self.revision += 1
            self.changed[ref] = None if outcome.type == "DELETED" else outcome.item
            self.entries.append(Entry(self.revision, outcome.type, outcome.item, before))
            self.bytes += len(outcome.item.body)


class Writer:
    """The writer thread's state and its loop; `run` is the thread, the other methods are called from outside.

    Args:
        database: Used by this thread only from now on.
        items: What is stored.
        revision: Newest revision.
        floor: Events up to here are compacted.
        window: Sizes of the events that are kept.
        deliver: Takes each delivery, in order; must hand it to the event loop.
        monotonic: Seconds, for the gathering of batches and for metrics.
    """

    def __init__(
        self,
        database: Database,
        items: Iterable[Item],
        revision: int,
        floor: int,
        *,
        window: LogWindow,
        deliver: Callable[[Delivery], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._database: Final = database
        self._stored: Final = {item.ref: item for item in items}
        self._revision = revision
        self._floor = floor
        self._window: Final = window
        self._deliver: Final = deliver
        self._monotonic: Final = monotonic
        self._inbox: Final[queue.SimpleQueue[Sequence[Pending] | None]] = queue.SimpleQueue()
        self._waiting: Final[deque[Pending]] = deque()
        self._stopping = False
        self._crowd = 1  # How many were seen to write at the same time.
        self._trouble = ""

    def submit(self, writes: Sequence[Pending]) -> None:
        """Queue writes that arrived together."""
        self._inbox.put(writes)

    def stop(self) -> None:
        """End the thread after everything that was submitted."""
        self._inbox.put(None)

    def run(self) -> None:
        """Commit until stopped."""
        while self._collect():
            if self._trouble:
                self._catch_up()
            plan = self._take()
            try:
                self._commit(plan)
            except FleetError as error:
                self._fail(plan, error.message)
            except Exception:  # noqa: BLE001 - the edge of the thread; who waits is told, and the next batch is tried
                _log.exception("the store's writer failed")
                self._fail(plan, "internal error in the store's writer")
        self._database.close()

    def _collect(self) -> bool:
        """Wait for writes; return False when all is done. Without writes it returns after a while when there is trouble."""
        if not self._waiting and not self._stopping:
            try:
                self._receive(self._inbox.get(timeout=PROBE_SECONDS if self._trouble else None))
            except queue.Empty:
                return True
        deadline = self._monotonic() + GATHER_SECONDS
        while not self._stopping and len(self._waiting) < BATCH_WRITES_MAX:
            left = min(QUIET_SECONDS, deadline - self._monotonic()) if len(self._waiting) < self._crowd else 0.0
            try:
                self._receive(self._inbox.get(timeout=left) if left > 0 else self._inbox.get_nowait())
            except queue.Empty:
                break
        return bool(self._waiting) or not self._stopping

    def _receive(self, message: Sequence[Pending] | None) -> None:
        if message is None:
            self._stopping = True
        else:
            self._waiting.extend(message)

    def _take(self) -> _Plan:
        """Decide the next writes, as many as one transaction may hold."""
        plan = _Plan(self._stored, self._revision)
        while self._waiting and len(plan.answers) < BATCH_WRITES_MAX and plan.bytes < BATCH_BYTES_MAX:
            pending = self._waiting.popleft()
            if not pending.answer.cancelled():
                plan.add(pending)
        return plan

    def _commit(self, plan: _Plan) -> None:
        """Make a plan durable and answer its callers; in trouble an empty plan is committed too, to see whether it is over.

        Raises:
            FleetError: Nothing was written, or nobody knows.
        """
        if not plan.entries and not self._trouble:
            self._answer(plan, commits=0, seconds=0.0)
            return
        batch = self._batch(plan)
        started = self._monotonic()
        self._database.commit(batch)
        seconds = self._monotonic() - started
        self._trouble = ""
        self._crowd = self._crowd_after(plan)
        self._remember(plan.changed, plan.entries, batch.floor)
        self._answer(plan, commits=1, seconds=seconds)

    def _crowd_after(self, plan: _Plan) -> int:
        """Return how many write at the same time: those of this batch and those who came while it was on its way to the disk."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._receive(self._inbox.get_nowait())
        return len(plan.answers) + len(self._waiting)

    def _batch(self, plan: _Plan) -> Batch:
        floor = self._window.excess()
        return Batch(
            base=self._revision,
            revision=plan.revision,
            floor=self._floor if floor is None else floor,
            compact=floor is not None,
            put=[item for item in plan.changed.values() if item is not None],
            removed=[ref for ref, item in plan.changed.items() if item is None],
            entries=plan.entries,
        )

    def _remember(self, changed: dict[Ref, Item | None], entries: Sequence[Entry], floor: int) -> None:
        for ref, item in changed.items():
            if item is None:
                self._stored.pop(ref, None)
            else:
                self._stored[ref] = item
        for entry in entries:
            self._window.append(entry.revision, len(entry.item.body))
            self._revision = entry.revision
        self._window.drop(floor)
        self._floor = floor

    def _catch_up(self) -> None:
        """Take in what a failed commit left in the file after all; a file that cannot be read is the next commit's error.

        Before anybody is told, one more commit makes it durable.
        """
        try:
            floor, entries = self._database.since(self._revision)
            if not entries:
                return
            top = entries[-1].revision
            self._database.commit(Batch(base=top, revision=top, floor=floor, compact=False, put=(), removed=(), entries=()))
        except FleetError as error:
            _log.debug("the store cannot catch up: %s", error.message)
            return
        changed: dict[Ref, Item | None] = {}
        complete = []
        for entry in entries:
            ref = entry.item.ref
            complete.append(msgspec.structs.replace(entry, previous=changed[ref] if ref in changed else self._stored.get(ref)))
            changed[ref] = None if entry.type == "DELETED" else entry.item
        self._remember(changed, complete, floor)
        self._deliver(Delivery((), complete, self._revision, self._floor, 1, 0.0, self._trouble))

    def _fail(self, plan: _Plan, reason: str) -> None:
        if reason != self._trouble:
            _log.error("the store cannot write: %s", reason)
        self._trouble = reason
        answers = [(pending, Unavailable(reason)) for pending, _ in plan.answers]
        self._deliver(Delivery(answers, (), self._revision, self._floor, 0, 0.0, reason))

    def _answer(self, plan: _Plan, *, commits: int, seconds: float) -> None:
        self._deliver(Delivery(plan.answers, plan.entries, self._revision, self._floor, commits, seconds, self._trouble))
