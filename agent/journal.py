"""Journals: the last lines of each worker and of the agent itself, in memory and bounded, for whoever asks.

In: lines as workers print them, what the supervisor says about them, records of the agent. Out: lines by number, for `agent/logs.py`. A
journal outlives the runs of its worker, so that what was said before a crash can still be read after it; it ends a little after its
replica left the board.

Lines are numbered from 1 without gaps, and runs of a worker divide the numbers into ranges. Whoever reads on says the number that it saw
last: what was forgotten in between is known exactly, and a reader that never comes back costs nothing.

Only monotonic times are kept. A board that learns the time late tells the right time of earlier lines too.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections import deque
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import Final

import msgspec

from rkfleet.clock import Clock
from rkfleet.session import LOG_CHUNK_BYTES_MAX, LOG_CHUNK_LINES_MAX, LOG_LINE_LENGTH_MAX

__all__ = ["Journal", "Journals", "Line", "NoSuchRun", "Reading"]

JOURNAL_BYTES_MAX: Final = 96 << 10  # Of one worker: some 400 lines of 100 characters; a crash is explained by its last 40.
JOURNALS_BYTES_MAX: Final = 256 << 10  # All of a board together, the agent's own among them; the agent's memory is counted.
LINE_BYTES: Final = (
    96  # A line without its text: struct, time, place in the queue (CPython 3.11; tracemalloc finds 7% less than is counted).
)
RUNS_KEPT: Final = 64  # Where older runs began is forgotten; a worker that crashes for ever starts again once a minute.
CLOSED_SECONDS: Final = 30.0  # So long after its replica left a journal can be read to its end.

OWN_WORDS: Final = "rkfleet: "  # Before what the agent says in the journal of a worker, which would else look like the runtime's words.

_ESCAPES: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


class Line(msgspec.Struct, frozen=True, gc=False):
    """One line, the monotonic second at which it came, and the run of the worker that it belongs to."""

    at: float
    run: int
    text: str


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a journal has to say to a request.

    Attributes:
        next: Number of the last line that was given, or that there was nothing to give up to.
        newest: Number of the last line that the request is about.
        dropped: Lines that the request is about and that were forgotten.
        run: The run that was asked for.
        ended: Nothing more will come.
    """

    lines: tuple[Line, ...]
    next: int
    newest: int
    dropped: int
    run: int
    ended: bool


class NoSuchRun(LookupError):
    """The run that was asked for never was, or is forgotten; the argument is a sentence."""


class Journal:
    """The last lines of one speaker.

    Attributes:
        newest: Number of the last line; 0 before the first.
        run: Number of the last run; 0 before the first.
        closed_at: Monotonic second at which it was closed; None while lines may come.
        size_bytes: What its lines take in memory.
    """

    def __init__(self, bytes_max: int = JOURNAL_BYTES_MAX) -> None:
        self._bytes_max: Final = bytes_max
        self._lines: Final[deque[Line]] = deque()
        self._begins: Final[dict[int, int]] = {}  # number of the first line of each of the last runs
        self.newest = 0
        self.run = 0
        self.closed_at: float | None = None
        self.size_bytes = 0

    def begin_run(self) -> int:
        """Begin the next run and return its number; lines from now on belong to it."""
        self.run += 1
        self._begins[self.run] = self.newest + 1
        if len(self._begins) > RUNS_KEPT:
            del self._begins[next(iter(self._begins))]
        self.closed_at = None
        return self.run

    def append(self, text: str, at: float) -> None:
        """Add a line, cut to `LOG_LINE_LENGTH_MAX` characters and free of escapes; the oldest make room for it."""
        line = Line(at, self.run, _ESCAPES.sub("", text[:LOG_LINE_LENGTH_MAX]))
        self._lines.append(line)
        self.newest += 1
        self.size_bytes += _cost(line)
        while self.size_bytes > self._bytes_max:
            self.forget_oldest()

    def forget_oldest(self) -> None:
        """Make room."""
        self.size_bytes -= _cost(self._lines.popleft())

    def read(self, *, run: int = 0, after: int | None = None, tail_lines: int | None = None, since: float | None = None) -> Reading:
        """Return the lines after `after`, as many as go into one chunk.

        Args:
            run: 0 is the newest run and all that follow, -1 the one before it, a positive number names a run.
            after: Number of the last line that was seen; None at first.
            tail_lines: At first: no more lines than so many, the last ones.
            since: At first: lines from this monotonic second on.

        Raises:
            NoSuchRun: There is no such run.
        """
        number = run if run > 0 else self.run + run
        low, high = self._range(run, number)
        if after is not None:
            low = after + 1
        elif tail_lines is not None:
            low = max(low, high - tail_lines + 1)
        first = self.newest - len(self._lines) + 1
        dropped = min(max(0, first - low), max(0, high - low + 1))
        taken: list[Line] = []
        size_bytes, given = 0, max(high, low - 1)
        for sequence, line in enumerate(islice(self._lines, max(low - first, 0), max(high - first + 1, 0)), start=max(low, first)):
            if after is None and since is not None and line.at < since:
                continue
            size_bytes += len(line.text.encode())
            if taken and (len(taken) == LOG_CHUNK_LINES_MAX or size_bytes > LOG_CHUNK_BYTES_MAX):
                given = sequence - 1
                break
            taken.append(line)
        ended = given >= high and (self.closed_at is not None or (run != 0 and number < self.run))
        if after is None and since is not None:
            dropped = 0  # what is forgotten is older, as far as anybody knows
        return Reading(lines=tuple(taken), next=given, newest=high, dropped=dropped, run=number, ended=ended)

    def _range(self, run: int, number: int) -> tuple[int, int]:
        """Return the numbers of the first and the last line of a run; the newest run has no last one yet."""
        if number == self.run == 0:  # a speaker that has no runs, or none yet
            return 1, self.newest
        if number < 1 or number > self.run:
            wanted = f"run {number}" if run > 0 else f"the run {-run} before it"
            raise NoSuchRun(f"{wanted} is not there: the worker is in run {self.run}")
        if number not in self._begins:
            raise NoSuchRun(f"run {number} is forgotten: the worker is in run {self.run}, and the last {RUNS_KEPT} are known")
        return self._begins[number], self.newest if run == 0 or number == self.run else self._begins[number + 1] - 1


class Journals:
    """All journals of a board.

    Attributes:
        agent: The agent's own.
    """

    def __init__(self, clock: Clock, *, bytes_max: int = JOURNALS_BYTES_MAX) -> None:
        """Take the clock (monotonic time only) and how much memory all lines together may take."""
        self._clock: Final = clock
        self._bytes_max: Final = bytes_max
        self._workers: Final[dict[str, Journal]] = {}
        self._version = 0
        self._changed = asyncio.Event()
        self.agent: Final = Journal()

    @property
    def version(self) -> int:
        """Rises with every line."""
        return self._version

    async def changed(self, seen: int) -> int:
        """Wait until the version is above `seen` and return it."""
        while self._version <= seen:
            await self._changed.wait()
        return self._version

    def find(self, uid: str) -> Journal | None:
        """Return the journal of a replica's worker, or None."""
        return self._workers.get(uid)

    def begin_run(self, uid: str) -> int:
        """Begin the next run of a replica's worker and return its number."""
        return self._workers.setdefault(uid, Journal()).begin_run()

    def write(self, uid: str, text: str) -> None:
        """Add what a worker printed."""
        if (journal := self._workers.get(uid)) is not None:
            self._append(journal, text)

    def say(self, uid: str, text: str) -> None:
        """Add what the agent has to say about a worker."""
        self.write(uid, OWN_WORDS + text)

    def write_own(self, text: str) -> None:
        """Add a line to the agent's own journal."""
        self._append(self.agent, text)

    def retain(self, uids: AbstractSet[str]) -> None:
        """Close the journals of all other replicas, and forget those that have been closed for long enough."""
        now = self._clock.monotonic()
        for uid, journal in tuple(self._workers.items()):
            if journal.closed_at is None and uid not in uids:
                self.say(uid, "the replica left this board")
                journal.closed_at = now
            elif journal.closed_at is not None and now - journal.closed_at >= CLOSED_SECONDS:
                del self._workers[uid]

    @property
    def size_bytes(self) -> int:
        """What all lines take in memory."""
        return self.agent.size_bytes + sum(journal.size_bytes for journal in self._workers.values())

    def _append(self, journal: Journal, text: str) -> None:
        journal.append(text, self._clock.monotonic())
        while self.size_bytes > self._bytes_max:
            max((self.agent, *self._workers.values()), key=lambda one: one.size_bytes).forget_oldest()
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()


def _cost(line: Line) -> int:
    return sys.getsizeof(line.text) + LINE_BYTES
