"""The one writer: a thread that decides writes in order and commits what waits together.

In: writes with the futures of their callers (`submit`, from the event loop). Out: a `Delivery` for each batch, handed to the event loop:
what changed, and an answer for every write, given only after the commit returned, which is after the fsync. A write that loses (its name
is taken, its expectation does not hold) gets its error, and the rest of the batch commits without it.

Group commit: while a transaction is on its way to the disk, writes wait and share the next one. A write that comes alone never waits
for company. When others were seen to wait, the next batch gathers until as many are there as were seen, or nobody came for
`QUIET_SECONDS`, or `GATHER_SECONDS` are over: a burst of hundreds becomes a few commits, a handful of writers who wait for each answer
share every commit without a pause, and a lone one pays nothing.

The thread keeps its own map of what is stored, ahead of the event loop's by at most one batch; items are immutable and shared. When a
commit fails, everything in it is answered with the reason and forgotten, what the database really holds is read back, and the thread goes
on: it tries with the next write, and without one it tries by itself every second, so that a full disk that has room again is known as such.

Where several controllers share the database, each batch is a turn: what others wrote before it is taken in and handed to the event loop
first, then the batch is decided on top of that, so its preconditions are judged on what really is. `poke` takes in what others wrote
without a write of our own. A write that carries the term of a leader is refused when there is a newer leader, by the statement that
advances the counter too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from controller.store.base import Item
from controller.store.broadcaster import Entry
from controller.store.sql.compaction import LogWindow
from controller.store.sql.database import Batch, Contents, Database, Tail
from controller.store.writes import Write, evaluate
from rkfleet.errors import FleetError, Internal, Unavailable
from rkfleet.kinds.base import Resource
from rkfleet.meta import Ref

__all__ = ["Delivery", "Pending", "TakeTerm", "Writer"]

BATCH_WRITES_MAX: Final = 128  # 100 per commit already cost a 16th of 100 commits; more would make everybody wait for the slowest.
BATCH_BYTES_MAX: Final = 4 << 20  # Of objects after the write: keeps one transaction in the write-ahead log below its checkpoint.
QUIET_SECONDS: Final = 0.002  # A gap this long says that those who write at the same time have all arrived.
GATHER_SECONDS: Final = 0.008  # The longest wait for company; a few fsyncs.
PROBE_SECONDS: Final = 1.0  # How often a store in trouble looks whether the trouble is over.

_log: Final = logging.getLogger(__name__)


class TakeTerm(msgspec.Struct, frozen=True):
    """Begin the term of a leader; terms that are lower end with it."""

    term: int


class Pending(msgspec.Struct, frozen=True):
    """A write and who waits for it.

    Attributes:
        write: What is asked for.
        resource: Kind of the object; None for a term.
        answer: Gets the item; None for a term.
        term: The write counts only while this is the newest leader's term; None if anybody may write it.
    """

    write: Write | TakeTerm
    resource: Resource | None
    answer: asyncio.Future[Any]
    term: int | None = None


class Delivery(msgspec.Struct, frozen=True):
    """What one batch came to.

    Attributes:
        answers: For each write its item (None for a term) or its error.
        entries: What changed, in order, durable.
        revision: Newest revision after it.
        floor: Events up to here are compacted.
        commits: Transactions that it took: 0 or 1.
        commit_seconds: How long the transaction took.
        trouble: Why writes fail at the moment; empty while they do not.
        contents: Everything, in place of `entries`, where this process was away for longer than the event log is.
    """

    answers: Sequence[tuple[Pending, Item | FleetError | None]]
    entries: Sequence[Entry]
    revision: int
    floor: int
    commits: int
    commit_seconds: float
    trouble: str
    contents: Contents | None = None


class _Plan:
    """The changes of one batch on top of what is stored."""

    def __init__(self, stored: dict[Ref, Item], revision: int, term: int) -> None:
        self._stored: Final = stored
        self.revision = revision
        self.base_term: Final = term
        self.term = term
        self.changed: Final[dict[Ref, Item | None]] = {}
        self.entries: Final[list[Entry]] = []
        self.answers: Final[list[tuple[Pending, Item | FleetError | None]]] = []
        self.bytes = 0

    @property
    def empty(self) -> bool:
        """Whether nothing changes."""
        return not self.entries and self.term == self.base_term

    def add(self, pending: Pending) -> None:
        """Decide one write."""
        write, resource = pending.write, pending.resource
        if isinstance(write, TakeTerm):
            self.answers.append((pending, None if write.term > self.term else _no_leader(write.term, self.term)))
            self.term = max(self.term, write.term)
            return
        if pending.term is not None and pending.term != self.term:
            self.answers.append((pending, _no_leader(pending.term, self.term)))
            return
        assert resource is not None, "every write but a term is about a kind"
        ref = write.ref
        before = self.changed[ref] if ref in self.changed else self._stored.get(ref)
        try:
            outcome = evaluate(write, before, resource, self.revision + 1)
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


def _no_leader(term: int, newest: int) -> Unavailable:
    return Unavailable(f"this controller leads no more: its term is {term}, the newest is {newest}", reason="NotLeader")


class Writer:
    """The writer thread's state and its loop; `run` is the thread, the other methods are called from outside.

    Args:
        database: Used by this thread only from now on.
        items: What is stored.
        revision: Newest revision.
        floor: Events up to here are compacted.
        term: Term of the newest leader.
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
        term: int = 0,
        *,
        window: LogWindow,
        deliver: Callable[[Delivery], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._database: Final = database
        self._stored: Final = {item.ref: item for item in items}
        self._revision = revision
        self._floor = floor
        self._term = term
        self._window: Final = window
        self._deliver: Final = deliver
        self._monotonic: Final = monotonic
        self._inbox: Final[queue.SimpleQueue[Sequence[Pending] | None]] = queue.SimpleQueue()
        self._waiting: Final[deque[Pending]] = deque()
        self._stopping = False
        self._crowd = 1  # How many were seen to write at the same time.
        self._trouble = ""
        self._plan: _Plan | None = None  # What is under way.

    def submit(self, writes: Sequence[Pending]) -> None:
        """Queue writes that arrived together."""
        self._inbox.put(writes)

    def poke(self) -> None:
        """Look what others wrote."""
        self._inbox.put(())

    def stop(self) -> None:
        """End the thread after everything that was submitted."""
        self._inbox.put(None)

    def run(self) -> None:
        """Commit until stopped."""
        while self._collect():
            try:
                self.turn()
            except Exception:  # noqa: BLE001 - the edge of the thread; who waits is told, and the next batch is tried
                _log.exception("the store's writer failed")
                self._fail("internal error in the store's writer")
        self._database.close()

    def turn(self) -> None:
        """Take in what others wrote, decide what waits, and commit it."""
        self._plan = None
        try:
            if not self._waiting and not self._trouble:
                if self._database.shared:
                    self._follow(self._database.tail(self._revision))
                return
            self._follow(self._database.begin(self._revision, unsure=bool(self._trouble)))
            self._plan = self._take()
            self._commit(self._plan)
        except FleetError as error:
            self._fail(error.message)

    def _collect(self) -> bool:
        """Wait for writes; return False when all is done. Without writes it returns after a while when there is trouble."""
        if not self._waiting and not self._stopping:
            try:
                self._receive(self._inbox.get(timeout=PROBE_SECONDS if self._trouble else None))
            except queue.Empty:
                return True
        deadline = self._monotonic() + GATHER_SECONDS
        while self._waiting and not self._stopping and len(self._waiting) < BATCH_WRITES_MAX:
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
        plan = _Plan(self._stored, self._revision, self._term)
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
        if plan.empty and not self._trouble:
            self._database.leave()
            self._answer(plan, commits=0, seconds=0.0)
            return
        batch = self._batch(plan)
        started = self._monotonic()
        self._database.commit(batch)
        seconds = self._monotonic() - started
        self._trouble = ""
        self._term = plan.term
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
            base_term=plan.base_term,
            term=plan.term,
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

    def _follow(self, tail: Tail) -> None:
        """Take in what was committed by others, or by a commit of ours of which nobody knew, and hand it to the event loop."""
        self._term = tail.term
        if tail.contents is not None:
            self._start_anew(tail.contents)
            return
        if not tail.entries and tail.floor <= self._floor:
            return
        changed: dict[Ref, Item | None] = {}
        complete = []
        for entry in tail.entries:
            ref = entry.item.ref
            complete.append(msgspec.structs.replace(entry, previous=changed[ref] if ref in changed else self._stored.get(ref)))
            changed[ref] = None if entry.type == "DELETED" else entry.item
        self._remember(changed, complete, max(tail.floor, self._floor))
        self._deliver(Delivery((), complete, self._revision, self._floor, 0, 0.0, self._trouble))

    def _start_anew(self, contents: Contents) -> None:
        """Forget everything for what the database holds: the log does not tell any more what was missed."""
        self._stored.clear()
        self._stored.update((item.ref, item) for item in contents.items)
        self._revision, self._floor, self._term = contents.revision, contents.floor, contents.term
        self._window.restart((entry.revision, len(entry.item.body)) for entry in contents.entries)
        self._deliver(Delivery((), (), self._revision, self._floor, 0, 0.0, self._trouble, contents))

    def _fail(self, reason: str) -> None:
        """Answer the writes of the batch that failed, or, if it was not yet decided, those that wait for it."""
        if reason != self._trouble:
            _log.error("the store cannot write: %s", reason)
        self._trouble = reason
        failed = [pending for pending, _ in self._plan.answers] if self._plan is not None else self._next()
        self._deliver(Delivery([(one, Unavailable(reason)) for one in failed], (), self._revision, self._floor, 0, 0.0, reason))

    def _next(self) -> list[Pending]:
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_WRITES_MAX))]

    def _answer(self, plan: _Plan, *, commits: int, seconds: float) -> None:
        self._deliver(Delivery(plan.answers, plan.entries, self._revision, self._floor, commits, seconds, self._trouble))
