"""One stream of one board: pumps the protocol between a link and the hub.

In: messages of the link. Out: cells that hold the latest report, the latest answer, the log entries and the grant requests that wait, for
the hub's loops to take; and messages to the link. `hub.py` makes one for every stream and ends it. It stands apart from the protocol
because it waits, and from the hub because it knows nothing of boards, stores and assignments.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Generic, Protocol, TypeVar

from controller.sessions.protocol import ControllerSession
from rkfleet.clock import Clock
from rkfleet.errors import BadRequest, Unavailable
from rkfleet.report import LOG_ENTRIES_MAX, LogEntry
from rkfleet.session import (
    AssignmentAnswer,
    AssignmentOffer,
    BoardMessage,
    ControllerMessage,
    Goodbye,
    GoodbyeReason,
    Grant,
    GrantRequest,
    Hello,
    Report,
    Welcome,
)

__all__ = ["GOODBYE_SECONDS_MAX", "Cell", "Link", "Stream"]

GOODBYE_SECONDS_MAX: Final = 0.5  # A half-open peer takes no Goodbye; its successor must not wait, and has it within a second.
PROTOCOL_RECONNECT_SECONDS: Final = 30.0  # A peer that breaks the protocol does so again; it needs an update, not a quick return.
SILENCE_RECONNECT_SECONDS: Final = 1.0


T = TypeVar("T")


class Cell(Generic[T]):
    """A place for the latest value: a newer one replaces one that nobody took."""

    def __init__(self) -> None:
        self.latest: T | None = None
        self._fresh: Final = asyncio.Event()

    def put(self, value: T) -> None:
        """Replace the value."""
        self.latest = value
        self._fresh.set()

    async def take(self) -> T:
        """Wait for a value that was not taken yet, and return it."""
        await self._fresh.wait()
        self._fresh.clear()
        assert self.latest is not None
        return self.latest


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


class Stream:
    """The pump; `run` it, and everything else may be called from the same event loop.

    Attributes:
        over: Set when nothing more will be read or written.
        ended_by: Goodbye of either end; None while it goes on and for a stream that broke.
    """

    def __init__(self, link: Link, clock: Clock, heartbeat_seconds: float) -> None:
        self._link: Final = link
        self._clock: Final = clock
        self._heartbeat_seconds: Final = heartbeat_seconds
        self._session: Final = ControllerSession(clock.monotonic(), heartbeat_seconds)
        self._to_send: Final = asyncio.Event()
        self._leaving: Final = asyncio.Event()
        self._early_offer: AssignmentOffer | None = None
        self._offering = False
        self.over: Final = asyncio.Event()
        self.ended_by: Goodbye | None = None
        self.hello: Final = Cell[Hello]()
        self.report: Final = Cell[Report]()
        self.answer: Final = Cell[AssignmentAnswer]()
        self.log: Final[deque[LogEntry]] = deque(maxlen=LOG_ENTRIES_MAX)  # The agent's bound: while the store is away the oldest go.
        self.log_arrived: Final = asyncio.Event()
        self.grants: Final[asyncio.Queue[GrantRequest]] = asyncio.Queue()

    async def run(self) -> None:
        """Pump until the stream is over; cancel to cut it."""
        async with asyncio.TaskGroup() as tasks:
            pumps = [
                tasks.create_task(self._read()),
                tasks.create_task(self._write()),
                tasks.create_task(self._watch_silence()),
                tasks.create_task(self._bound_goodbye()),
            ]
            await self.over.wait()
            for pump in pumps:
                pump.cancel()

    def welcome(self, welcome: Welcome) -> None:
        """Say that the session is taken."""
        if not self._session.left:
            self._session.welcome(welcome)
            self._to_send.set()

    def begin_offers(self, first: AssignmentOffer) -> None:
        """Make the first offer of the session; one that came before it counts if it is newer."""
        self._offering = True
        early, self._early_offer = self._early_offer, None
        self.offer(first if early is None or early.number < first.number else early)

    def offer(self, offer: AssignmentOffer) -> None:
        """Offer an assignment; before `begin_offers` it waits, because the first must come from a consistent list."""
        if not self._offering:
            self._early_offer = offer
        elif not self._session.left:
            self._session.offer(offer)
            self._to_send.set()

    def offer_again(self) -> None:
        """Offer once more what the board could not take."""
        if not self._session.left:
            self._session.offer_again()
            self._to_send.set()

    def acknowledge(self, log_sequence: int) -> None:
        """Say that the log is stored up to and including this sequence."""
        if not self._session.left:
            self._session.acknowledge(log_sequence)
            self._to_send.set()

    def grant(self, grant: Grant) -> None:
        """Answer a GrantRequest."""
        if not self._session.left:
            self._session.grant(grant)
            self._to_send.set()

    def leave(self, goodbye: Goodbye) -> None:
        """Say Goodbye and be over within `GOODBYE_SECONDS_MAX`, whether or not the other end takes it."""
        if not self._session.left:
            self._session.goodbye(goodbye)
            self.ended_by = goodbye
        self._to_send.set()
        self._leaving.set()

    async def _read(self) -> None:
        try:
            while (message := await self._link.read()) is not None:
                self._session.receive(message, self._clock.monotonic())
                self._keep(message)
                self._to_send.set()
        except BadRequest as error:
            self.leave(
                Goodbye(reason=GoodbyeReason.PROTOCOL, message=error.message, reconnect_after_seconds=PROTOCOL_RECONNECT_SECONDS),
            )
        except Unavailable:
            self.over.set()
        else:
            self.over.set()

    def _keep(self, message: BoardMessage) -> None:
        match message:
            case Hello():
                self.hello.put(message)
            case AssignmentAnswer():
                self.answer.put(message)
            case Report():
                self.report.put(message)
                self.log.extend(message.log)
                if message.log:
                    self.log_arrived.set()
            case GrantRequest():
                self.grants.put_nowait(message)  # Bounded by the protocol: GRANTS_OUTSTANDING_MAX.
            case Goodbye():
                self.ended_by = self.ended_by or message
                self.over.set()

    async def _write(self) -> None:
        try:
            while True:
                await self._to_send.wait()
                self._to_send.clear()
                for message in self._session.take_outgoing():
                    await self._link.write(message)
                if self._session.left:
                    break
        except Unavailable:
            pass
        self.over.set()

    async def _watch_silence(self) -> None:
        while (pause := self._session.silent_at - self._clock.monotonic()) > 0:
            woken_at = self._clock.monotonic() + pause
            await self._clock.sleep(pause)
            if self._clock.monotonic() - woken_at > self._heartbeat_seconds:
                self._session.excuse(self._clock.monotonic())
        silence = "the board said no Hello in time" if self.hello.latest is None else "the board reported nothing for three heartbeats"
        self.leave(Goodbye(reason=GoodbyeReason.PROTOCOL, message=silence, reconnect_after_seconds=SILENCE_RECONNECT_SECONDS))

    async def _bound_goodbye(self) -> None:
        await self._leaving.wait()
        await self._clock.sleep(GOODBYE_SECONDS_MAX)
        self.over.set()
