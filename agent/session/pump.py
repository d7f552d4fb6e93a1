"""One stream of the session: pumps the protocol between gRPC, the ledger and the reports cell.

In: an open call. Out: offers judged, reports sent, grants answered, and the Goodbye by which it ended. `runner.py` makes one for every
attempt. It stands apart from the protocol because it waits, and from the runner because it lives as long as one stream.

One task writes. It reads the reports cell when a report may be sent, not when it changes, and queues nothing behind a message that the link
has not taken: a slow link carries the latest state, less often. Lines of journals come last: a chunk is put together when there is nothing
else to send, so a report waits for one chunk at most.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Final, Protocol

import grpc
import grpc.aio

from agent.session.logs import Logs
from agent.session.protocol import LOG_CHUNK_SECONDS_MIN, BoardSession
from rkfleet.clock import Clock
from rkfleet.errors import BadRequest, Unavailable
from rkfleet.racing import until_first
from rkfleet.report import BoardState, LogEntry, Sample
from rkfleet.session import (
    AssignmentAnswer,
    AssignmentOffer,
    ControllerMessage,
    Goodbye,
    GoodbyeReason,
    Grant,
    Hello,
    LogCancel,
    LogRequest,
    ReportAck,
    Welcome,
)
from rkfleet.v1 import agent_pb2 as pb
from rkfleet.wire import decode_controller_message, encode_board_message

__all__ = ["Call", "Held", "Ledger", "Pump", "Reports"]

GOODBYE_SECONDS_MAX: Final = 1.0  # A stopping agent does not wait for a link that takes nothing.

_BROKEN: Final = (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError)  # What a dead call raises, by moment.

Call = grpc.aio.StreamStreamCall[pb.SessionRequest, pb.SessionResponse]


class Held(Protocol):
    """What the ledger holds; number 0 and an empty hash for nothing."""

    @property
    def number(self) -> int: ...  # noqa: D102 (said above)

    @property
    def sha256(self) -> str: ...  # noqa: D102


class Ledger(Protocol):
    """Takes assignments; implemented by `agent/ledger.py`."""

    @property
    def held(self) -> Held:
        """The accepted assignment."""
        ...

    async def accept(self, offer: AssignmentOffer) -> AssignmentAnswer:
        """Judge an offer; an accepted one is on disk before this returns."""
        ...


class SampleRing(Protocol):
    """Samples of an outage; implemented by `agent/samples.py`."""

    @property
    def newest(self) -> int:
        """Sequence of the newest; 0 when there is none."""
        ...

    @property
    def dropped(self) -> int:
        """Samples lost to the bounds."""
        ...

    def oldest(self) -> tuple[Sample, ...]:
        """Return as many of the oldest as a report carries."""
        ...

    def acknowledge(self, sequence: int) -> None:
        """Forget the samples up to and including this sequence."""
        ...


class Reports(Protocol):
    """The latest state and the log; implemented by `agent/reports.py`."""

    @property
    def samples(self) -> SampleRing:
        """What was sampled while there was no session."""
        ...

    @property
    def state(self) -> BoardState | None:
        """The latest state; None until there is one."""
        ...

    @property
    def version(self) -> int:
        """Rises with every change of state or log."""
        ...

    @property
    def dropped(self) -> int:
        """Log entries lost to the bound."""
        ...

    def log(self, after: int = 0) -> tuple[LogEntry, ...]:
        """Return the kept entries above this sequence."""
        ...

    def acknowledge(self, sequence: int) -> None:
        """Forget the entries up to and including this sequence."""
        ...

    async def changed(self, seen: int) -> int:
        """Wait until the version is above `seen`, and return it."""
        ...


class Pump:
    """Runs one stream.

    Attributes:
        goodbye: The Goodbye of either end; None while it goes on and for a stream that broke.
    """

    def __init__(
        self, call: Call, hello: Hello, clock: Clock, ledger: Ledger, reports: Reports, *, logs: Logs, on_welcome: Callable[[Welcome], None]
    ) -> None:
        """Take an open call and what the stream is about; `on_welcome` must not block."""
        self._call: Final = call
        self._clock: Final = clock
        self._ledger: Final = ledger
        self._reports: Final = reports
        self._logs: Final = logs
        self._on_welcome: Final = on_welcome
        self._session: Final = BoardSession(hello, clock.monotonic())
        self._to_send: Final = asyncio.Event()
        self._welcomed: Final = asyncio.Event()
        self._leaving: Final = asyncio.Event()
        self._over: Final = asyncio.Event()
        self._offers: Final[asyncio.Queue[AssignmentOffer]] = asyncio.Queue()  # The table allows one open offer.
        self._grants: Final[dict[int, asyncio.Future[Grant]]] = {}
        self._broken = ""
        self.goodbye: Goodbye | None = None

    async def run(self) -> None:
        """Pump until either end leaves or the stream breaks; when cancelled, say Goodbye SHUTDOWN first.

        Raises:
            Unavailable: The stream broke; the message says how.
            ExceptionGroup: A mistake of ours: a part of the pump failed in a way that nobody foresaw.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                work = (self._read(), self._write(), self._answer(), self._expect_welcome(), self._bound_goodbye())
                pumps = [tasks.create_task(one) for one in work]
                try:
                    await self._over.wait()
                except asyncio.CancelledError:
                    # A pump that failed ends the others: there is nobody left who could say Goodbye, or be over.
                    failed = any(pump.done() and not pump.cancelled() and pump.exception() is not None for pump in pumps)
                    if failed or self._over.is_set():
                        raise
                    # The pumps are cancelled after the Goodbye, because cancelling a read of gRPC cancels its call.
                    self._leave(Goodbye(reason=GoodbyeReason.SHUTDOWN, message="the agent is stopping"))
                    await self._over.wait()
                    raise
                finally:
                    for pump in pumps:
                        pump.cancel()
        finally:
            for waiting in self._grants.values():
                if not waiting.done():
                    waiting.set_exception(Unavailable("the session ended before the grant came"))
        if self.goodbye is None:
            raise Unavailable(self._broken or "the controller closed the stream")

    def break_off(self) -> None:
        """End the stream at this moment without a word, as a board does that loses its power."""
        self._broken = "broken off"
        self._call.cancel()
        self._over.set()

    async def request_grant(self, digests: tuple[str, ...]) -> Grant:
        """Ask for tokens and wait for the answer.

        Raises:
            Unavailable: The stream is over, or is not taken yet.
        """
        if not self._session.may_request_grant:
            raise Unavailable("there is no session to ask for a grant")
        number = self._session.request_grant(digests)
        self._grants[number] = asyncio.get_running_loop().create_future()
        self._to_send.set()
        return await self._grants[number]

    async def _read(self) -> None:
        try:
            while isinstance(response := await self._call.read(), pb.SessionResponse):
                try:
                    message = decode_controller_message(response)
                    self._session.receive(message)
                except BadRequest as error:
                    self._leave(Goodbye(reason=GoodbyeReason.PROTOCOL, message=error.message))
                else:
                    if isinstance(message, Goodbye) or not self._session.left:
                        self._take(message)
            self._broken = await self._final_status()
        except _BROKEN as error:
            self._broken = _cause(error)
        self._over.set()

    def _take(self, message: ControllerMessage) -> None:
        match message:
            case Welcome():
                self._welcomed.set()
                self._to_send.set()
                self._on_welcome(message)
            case AssignmentOffer():
                self._offers.put_nowait(message)
            case ReportAck(log_sequence=log_sequence, sample_sequence=sample_sequence):
                self._reports.acknowledge(log_sequence)
                self._reports.samples.acknowledge(sample_sequence)
                self._to_send.set()
            case Grant(request_id=request_id):
                waiting = self._grants.pop(request_id, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
            case LogRequest() | LogCancel():
                self._to_send.set()
            case Goodbye():
                self.goodbye = self.goodbye or message
                self._over.set()

    async def _write(self) -> None:
        seen = -1
        with contextlib.suppress(*_BROKEN):  # The reader finds the same, and knows why.
            while True:
                while outgoing := self._session.take_outgoing():
                    for message in outgoing:
                        await self._call.write(encode_board_message(message))
                if self._session.left:
                    await self._call.done_writing()
                    return
                state, now = self._reports.state, self._clock.monotonic()
                ring = self._reports.samples
                sampled = self._session.takes_samples(ring.newest)
                due = self._session.report_due_at(changed=self._reports.version != seen or sampled)
                if state is not None and due <= now:
                    seen = self._reports.version
                    samples = ring.oldest() if sampled else ()
                    log = self._reports.log(self._session.log_sent)
                    self._session.report(state, log, self._reports.dropped, now, samples=samples, samples_dropped=ring.dropped)
                elif not self._answer_log(now):
                    await self._something(seen, due, now)

    def _answer_log(self, now: float) -> bool:
        """Answer the longest waiting request for lines that can be answered, if it is time; return whether one was."""
        if self._session.log_due_at <= now:
            for request in self._session.log_requests:
                if (chunk := self._logs.answer(request)) is not None:
                    self._session.answer_log(chunk, now)
                    return True
        return False

    async def _something(self, seen: int, due: float, now: float) -> None:
        """Wait until there is something to send, something new to report, lines that are asked for, or the heartbeat is due.

        `now` is when the caller found nothing; what has become due since then must not be taken for something that was looked at.
        """
        self._to_send.clear()
        pause = due - now
        waits: list[Coroutine[None, None, object]] = [self._to_send.wait()]
        log_due = self._session.log_due_at - now
        if 0 < log_due < float("inf"):
            waits.append(self._clock.sleep(log_due))
        elif log_due <= 0:
            waits.append(self._lines_came(self._logs.version))
        if self._reports.version == seen or self._reports.state is None:
            waits.append(self._reports.changed(self._reports.version))
        if pause < float("inf") and self._reports.state is not None:
            waits.append(self._clock.sleep(pause))
        await until_first(*waits)

    async def _lines_came(self, seen: int) -> None:
        """Wait until there are lines, and a moment more: a worker that prints much is answered for in few chunks."""
        await self._logs.changed(seen)
        await self._clock.sleep(LOG_CHUNK_SECONDS_MIN)

    async def _answer(self) -> None:
        while True:
            offer = await self._offers.get()
            answer = await self._ledger.accept(offer)
            if not self._session.left:
                self._session.answer(answer)
                self._to_send.set()

    async def _expect_welcome(self) -> None:
        await until_first(self._welcomed.wait(), self._clock.sleep(self._session.welcome_due_at - self._clock.monotonic()))
        if not self._welcomed.is_set():
            self._broken = "the controller took the connection and did not answer Hello"
            self._over.set()

    def _leave(self, goodbye: Goodbye) -> None:
        """Say Goodbye and be over when the controller has ended the call, or within `GOODBYE_SECONDS_MAX`."""
        if not self._session.left:
            self._session.goodbye(goodbye)
            self.goodbye = goodbye
        self._to_send.set()
        self._leaving.set()

    async def _bound_goodbye(self) -> None:
        await self._leaving.wait()
        await self._clock.sleep(GOODBYE_SECONDS_MAX)
        self._over.set()

    async def _final_status(self) -> str:
        """Return why the server ended the call, if it says so."""
        details = await self._call.details()
        return f"{(await self._call.code()).name}: {details}" if details else ""


def _cause(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
