"""One stream of one board: pumps the protocol between a link and the hub.

In: messages of the link. Out: what the board said and nobody has dealt with yet (the latest report, the latest answer, log entries, grant
requests), with `news` set whenever there is some; and messages to the link. `hub.py` makes one for every stream and ends it. It stands
apart from the protocol because it waits, and from the hub because it knows nothing of boards, stores and assignments.

A controller holds five thousand of these: three tasks and three events each, everything else is a plain value.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Final, NamedTuple, Protocol

from controller.sessions import goodbyes
from controller.sessions.protocol import ControllerSession
from rkfleet.clock import Clock
from rkfleet.errors import BadRequest, ResourceExhausted, Unavailable
from rkfleet.report import LOG_ENTRIES_MAX, SAMPLES_PER_REPORT_MAX, LogEntry, Sample
from rkfleet.session import (
    AssignmentAnswer,
    AssignmentOffer,
    BoardMessage,
    ControllerMessage,
    Goodbye,
    Grant,
    GrantRequest,
    Hello,
    LogChunk,
    LogRequest,
    Report,
    Welcome,
)

__all__ = ["GOODBYE_SECONDS_MAX", "HeardEntry", "HeardSample", "Link", "Stream"]

GOODBYE_SECONDS_MAX: Final = 0.5  # A half-open peer takes no Goodbye; its successor must not wait, and has it within a second.

AGE_SECONDS_MAX: Final = 31 * 86400.0  # A board keeps what it has to tell for a month; a greater age is a mistake.


class Link(Protocol):
    """The two directions of a stream, decoded."""

    async def read(self) -> BoardMessage | None:
        """Return the next message of the board, or None when it closed its direction.

        Raises:
            BadRequest: The message cannot be read.
            Unavailable: The stream broke.
        """
        ...

    async def write(self, message: ControllerMessage) -> None:
        """Hand a message to the transport.

        Raises:
            Unavailable: The stream broke.
        """
        ...


class HeardEntry(NamedTuple):
    """An entry of a board's log, and when it happened by this clock; None if the board could not say how long ago that was."""

    entry: LogEntry
    happened: datetime | None


class HeardSample(NamedTuple):
    """A sample of an outage, and when it was taken by this clock; None if that is too long ago to be true."""

    sample: Sample
    taken: datetime | None


class Stream:
    """The pump; `run` it, and everything else may be called from the same event loop.

    Attributes:
        news: Set when something arrived; whoever deals with it clears it first.
        hello: The board's Hello; None until it came.
        report: The latest report that nobody took.
        answer: The latest answer that nobody took.
        log: Entries that are not stored yet. While the store is away the oldest beyond the agent's own bound go.
        samples: Samples of an outage that are not stored yet; the board sends more when these are acknowledged.
        grants: Requests that are not answered yet; bounded by the protocol.
        over: Set when nothing more will be read or written.
        ended_by: Goodbye of either end; None while it goes on and for a stream that broke.
    """

    def __init__(self, link: Link, clock: Clock, heartbeat_seconds: float) -> None:
        self._link: Final = link
        self._clock: Final = clock
        self._heartbeat_seconds: Final = heartbeat_seconds
        self._session: Final = ControllerSession(clock.monotonic(), heartbeat_seconds)
        self._to_send: Final = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._offering = False
        self._log_waits: Final[dict[int, asyncio.Future[LogChunk]]] = {}
        self.news: Final = asyncio.Event()
        self.hello: Hello | None = None
        self.report: Report | None = None
        self.answer: AssignmentAnswer | None = None
        self.log: list[HeardEntry] = []
        self.samples: list[HeardSample] = []
        self.grants: list[GrantRequest] = []
        self.over: Final = asyncio.Event()
        self.ended_by: Goodbye | None = None

    @property
    def left(self) -> bool:
        """Whether either end said Goodbye."""
        return self._session.left

    async def run(self) -> None:
        """Pump until the stream is over; cancel to cut it."""
        async with asyncio.TaskGroup() as self._tasks:
            pumps = [self._tasks.create_task(one) for one in (self._read(), self._write(), self._watch_silence())]
            if self._session.left:
                pumps.append(self._tasks.create_task(self._bound_goodbye()))
            try:
                await self.over.wait()
            finally:
                self._end_log_waits()
            for pump in pumps:
                pump.cancel()

    def welcome(self, welcome: Welcome) -> None:
        """Say that the session is taken."""
        if not self._session.left:
            self._session.welcome(welcome)
            self._to_send.set()

    def begin_offers(self, first: AssignmentOffer) -> None:
        """Make the first offer of the session."""
        self._offering = True
        self.offer(first)

    def offer(self, offer: AssignmentOffer) -> None:
        """Offer an assignment; nothing is offered before `begin_offers`, because the first must come from a consistent list."""
        if self._offering and not self._session.left:
            self._session.offer(offer)
            self._to_send.set()

    def offer_again(self) -> None:
        """Offer once more what the board could not take."""
        if not self._session.left:
            self._session.offer_again()
            self._to_send.set()

    def acknowledge(self, *, log_sequence: int = 0, sample_sequence: int = 0) -> None:
        """Forget log and samples up to and including these sequences, and say that they are stored."""
        self.log = [heard for heard in self.log if heard.entry.sequence > log_sequence]
        self.samples = [heard for heard in self.samples if heard.sample.sequence > sample_sequence]
        if not self._session.left:
            self._session.acknowledge(log_sequence=log_sequence, sample_sequence=sample_sequence)
            self._to_send.set()

    def grant(self, grant: Grant) -> None:
        """Answer a GrantRequest."""
        if not self._session.left:
            self._session.grant(grant)
            self._to_send.set()

    async def ask_log(self, request: LogRequest) -> LogChunk:
        """Ask for lines and wait for the answer; a caller that is cancelled tells the board so.

        Raises:
            ResourceExhausted: Too many requests are open on this board.
            Unavailable: The session is over; the message says how it ended.
        """
        if self._session.left or self.over.is_set():
            raise Unavailable(self._how_it_ended())
        if not self._session.may_request_log:
            raise ResourceExhausted("too many requests for lines are open on this board; try again later")
        number = self._session.request_log(request)
        self._log_waits[number] = asyncio.get_running_loop().create_future()
        self._to_send.set()
        try:
            return await self._log_waits[number]
        finally:
            del self._log_waits[number]
            self._session.cancel_log(number)  # if the answer did not come
            self._to_send.set()

    def leave(self, goodbye: Goodbye) -> None:
        """Say Goodbye and be over within `GOODBYE_SECONDS_MAX`, whether or not the other end takes it."""
        if self._session.left:
            return
        self._session.goodbye(goodbye)
        self.ended_by = goodbye
        self._to_send.set()
        if self._tasks is not None and not self.over.is_set():
            self._tasks.create_task(self._bound_goodbye())

    async def _read(self) -> None:
        try:
            while (message := await self._link.read()) is not None:
                self._session.receive(message, self._clock.monotonic())
                self._keep(message)
                if self._session.has_outgoing:  # An answer makes room for the offer that waited.
                    self._to_send.set()
        except BadRequest as error:
            self.leave(goodbyes.protocol(error.message))
        except Unavailable:
            self.over.set()
        else:
            self.over.set()

    def _keep(self, message: BoardMessage) -> None:
        match message:
            case Hello():
                self.hello = message
            case AssignmentAnswer():
                self.answer = message
            case Report():
                self.report = message
                self._keep_past(message)
            case GrantRequest():
                self.grants.append(message)
            case LogChunk(request_id=request_id):
                wait = self._log_waits.get(request_id)
                if wait is not None and not wait.done():
                    wait.set_result(message)
                return  # whoever waits for it is woken; the holder has nothing to do
            case Goodbye():
                self.ended_by = self.ended_by or message
                self.over.set()
        self.news.set()

    def _keep_past(self, report: Report) -> None:
        """Keep what a report says about the past, counted back from now: the store may take a while to have it."""
        now = self._clock.now()
        if report.log:
            heard = [HeardEntry(entry, _ago(entry.age_seconds, now)) for entry in report.log]
            self.log = [*self.log, *heard][-LOG_ENTRIES_MAX:]
        if report.samples:
            sampled = [HeardSample(sample, _ago(sample.age_seconds, now)) for sample in report.samples]
            self.samples = [*self.samples, *sampled][-SAMPLES_PER_REPORT_MAX:]

    def _end_log_waits(self) -> None:
        for wait in self._log_waits.values():
            if not wait.done():
                wait.set_exception(Unavailable(self._how_it_ended()))

    def _how_it_ended(self) -> str:
        """Return what became of the session, for those who still wanted something of it."""
        if self.ended_by is None:
            return "its connection broke"
        return f"its session ended with {self.ended_by.reason.value}: {self.ended_by.message or 'no reason given'}"

    async def _write(self) -> None:
        try:
            while True:
                await self._to_send.wait()
                self._to_send.clear()
                while outgoing := self._session.take_outgoing():  # also what was said while the link took its time
                    for message in outgoing:
                        await self._link.write(message)
                if self._session.left:
                    break
        except Unavailable:
            pass
        self.over.set()

    async def _watch_silence(self) -> None:
        while (left := self._session.silent_at - self._clock.monotonic()) > 0:
            pause = min(left, self._heartbeat_seconds)
            began = self._clock.monotonic()
            await self._clock.sleep(pause)
            if self._clock.monotonic() - began > pause + self._heartbeat_seconds:
                self._session.excuse(self._clock.monotonic())
        said_hello = self.hello is not None
        self.leave(goodbyes.silent("the board reported nothing for three heartbeats" if said_hello else "the board said no Hello in time"))

    async def _bound_goodbye(self) -> None:
        await self._clock.sleep(GOODBYE_SECONDS_MAX)
        self.over.set()


def _ago(age_seconds: float | None, now: datetime) -> datetime | None:
    return now - timedelta(seconds=age_seconds) if age_seconds is not None and age_seconds <= AGE_SECONDS_MAX else None
