"""One board in session: deals with what it says.

In: a stream with news. Out: the first offer, status writes, Events, acknowledgements, grants. The hub makes one for every session that is
taken and cancels it when the stream is over.

It is a level-triggered loop: news only wakes it, and each pass deals with everything that waits there, oldest duty first. What the store
could not take stays where it is, as the latest by then, and is tried again after a pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import msgspec

from controller.planning.identity import deleted
from controller.sessions import goodbyes
from controller.sessions.board_log import BoardLog
from controller.sessions.seams import Offer, Seams, TimedSample
from controller.sessions.status_writer import StatusWriter
from controller.sessions.stream import Stream
from controller.sessions.taking import Taken
from controller.trust.pki import Peer
from rkfleet import metric_names
from rkfleet.errors import BadRequest, Conflict, FleetError, NotFound, ResourceExhausted, Unavailable
from rkfleet.session import AssignmentOffer, Grant, Hello, LogChunk, LogRequest, Report, Verdict

__all__ = ["AskLog", "Holder"]

AskLog = Callable[[LogRequest], Awaitable[LogChunk]]
"""Asks a board for lines; the request's number is filled in. Raises Unavailable when the board has left."""

LOGS_OPEN_MAX: Final = 4  # Readers share the board's chunks; half of what the protocol allows, because cancelled requests count there.
DROPPED_REASON: Final = "LogEntriesDropped"
SAMPLES_DROPPED_REASON: Final = "SamplesDropped"

_log: Final = logging.getLogger(__name__)


class Holder:
    """The session that a board holds.

    Attributes:
        taken: Its Board and number.
        stream: Where the board is heard.
        since: Monotonic time at which it was taken.
        offered: The newest assignment that was offered or waits to be.
    """

    def __init__(self, seams: Seams, taken: Taken, peer: Peer, hello: Hello, stream: Stream) -> None:
        self._seams: Final = seams
        self._peer: Final = peer
        self._hello: Final = hello
        self._writer: Final = StatusWriter(seams.store, seams.clock, taken, self._count_write)
        self._board_log: Final = BoardLog(seams.store, seams.clock, taken, seams.new_uid)
        self._begun = False
        self._dropped = 0
        self._samples_dropped = 0
        self._refused_until: float | None = None
        self._logs_open = 0
        self.taken: Final = taken
        self.stream: Final = stream
        self.since: Final = seams.clock.monotonic()
        self.offered: AssignmentOffer | None = None

    def note_offer(self, offer: Offer) -> AssignmentOffer:
        """Return the newer of this offer and the newest before, and remember it."""
        if self.offered is None or self.offered.number < offer.number:
            self.offered = AssignmentOffer(number=offer.number, body=offer.body, sha256=offer.sha256)
        return self.offered

    @property
    def key_sha256(self) -> str:
        """Hash of the key by which it holds the session."""
        return self._peer.key_sha256

    @contextlib.contextmanager
    def open_log(self) -> Iterator[AskLog]:
        """Hold one of the places for readers of this board's logs, and give what asks the board.

        Raises:
            BadRequest: The board's agent is from before logs could be asked for.
            ResourceExhausted: All places are taken.
        """
        board = self.taken.board
        if not self._hello.answers_logs:
            version = self._hello.facts.versions.agent or "unknown"
            raise BadRequest(f"the agent of board {board} (version {version}) cannot send logs; update it, then ask again")
        if self._logs_open >= LOGS_OPEN_MAX:
            raise ResourceExhausted(
                f"{self._logs_open} readers of logs of board {board} are there, at most {LOGS_OPEN_MAX}; try again later"
            )
        self._logs_open += 1
        try:
            yield self.stream.ask_log
        finally:
            self._logs_open -= 1

    async def begin(self) -> None:
        """Deal with the board for the first time."""
        self.stream.news.clear()
        if not await self._deal():
            self.stream.news.set()

    async def run(self) -> None:
        """Deal with the board until cancelled."""
        while True:
            await self.stream.news.wait()
            self.stream.news.clear()
            if not await self._deal():
                await self._seams.clock.sleep(self._seams.tempo.store_retry_seconds * self._seams.jitter.uniform(0.5, 1.5))
                self.stream.news.set()

    async def _deal(self) -> bool:
        """Deal with everything that waits, and return whether nothing must be tried again."""
        done = True
        for duty in (
            self._answer_grants,
            self._settle,
            self._begin_offers,
            self._write_answer,
            self._write_report,
            self._keep_log,
            self._keep_samples,
        ):
            if self.stream.left:  # Superseded, for example: what this stream still brings is late.
                return True
            done &= await self._stored(duty())
        return done

    async def _stored(self, duty: Awaitable[None]) -> bool:
        """Await a duty and return whether it is done; leave when the session or the Board is another's or gone."""
        try:
            await duty
        except Conflict as error:
            self.stream.leave(goodbyes.superseded(error.message))
        except NotFound:
            self.stream.leave(goodbyes.revoked(deleted(self.taken.board)))
        except FleetError as error:
            _log.warning("not stored", extra={"board": self.taken.board, "reason": error.message})
            return not error.retryable
        return True

    async def _answer_grants(self) -> None:
        while self.stream.grants:
            request = self.stream.grants.pop(0)
            try:
                grant = await self._seams.issuer.grant(self.taken.board, request.digests)
            except FleetError as error:
                grant = Grant(request_id=0, refusal=error.message)
            self.stream.grant(msgspec.structs.replace(grant, request_id=request.request_id))

    async def _settle(self) -> None:
        if self._seams.tokens.settles(self._peer.name, self._peer.key_sha256):
            await asyncio.to_thread(self._seams.tokens.settle, self._peer.name, self._peer.key_sha256)

    async def _begin_offers(self) -> None:
        if not self._begun:
            try:
                minted = await self._seams.minter.mint(self.taken.board, self._hello.assignment_number, self._hello.assignment_sha256)
            except Conflict as error:  # Others write to the Board; that says nothing about whose session it is.
                raise Unavailable(f"assignment of board {self.taken.board} was not minted") from error
            self._begun = True
            self.stream.begin_offers(self.note_offer(minted))

    async def _write_answer(self) -> None:
        if (answer := self.stream.answer) is not None:
            await self._writer.write_answer(answer)
            if self.stream.answer is answer:
                self.stream.answer = None
            self._refused_until = None
            match answer.verdict:
                case Verdict.ACCEPTED:
                    pass
                case Verdict.OLDER | Verdict.CHANGED:
                    # The ledger is not what Hello said. The next Hello says what it is, and minting goes above it.
                    self.stream.leave(goodbyes.shutdown(f"the board's ledger moved: {answer.reason}"))
                case Verdict.DISK | Verdict.INVALID:
                    self._refused_until = self._seams.clock.monotonic() + self._seams.tempo.refused_retry_seconds
        if self._refused_until is not None and self._seams.clock.monotonic() >= self._refused_until:
            self._refused_until = None
            self.stream.offer_again()

    async def _write_report(self) -> None:
        if (report := self.stream.report) is None:
            return
        self._note_dropped(report)
        await self._writer.write(report.state)
        if self.stream.report is report:
            self.stream.report = None

    async def _keep_log(self) -> None:
        if self.stream.log:
            self.stream.acknowledge(log_sequence=await self._board_log.keep(self.stream.log))

    async def _keep_samples(self) -> None:
        if self._seams.samples is not None and (heard := self.stream.samples):
            taken = [TimedSample(taken, sample.readings) for sample, taken in heard if taken is not None]
            await asyncio.to_thread(self._seams.samples.keep, self.taken.board, self.taken.uid, taken)
            self.stream.acknowledge(sample_sequence=heard[-1].sample.sequence)

    def _note_dropped(self, report: Report) -> None:
        """Tell that a board had to forget what it would have told."""
        board, uid = self.taken.board, self.taken.uid
        if report.log_dropped > self._dropped:
            self._dropped = report.log_dropped
            message = f"{self._dropped} log entries of board {board} were lost to the bound of its log since its agent started"
            self._seams.note(board, uid, "Warning", DROPPED_REASON, message)
        if report.samples_dropped > self._samples_dropped:
            self._samples_dropped = report.samples_dropped
            message = f"{self._samples_dropped} samples of board {board} were lost to the bounds of its ring since its agent started"
            self._seams.note(board, uid, "Warning", SAMPLES_DROPPED_REASON, message)

    def _count_write(self, kind: str) -> None:
        self._seams.metrics.counter(metric_names.STATUS_WRITES, kind=kind).inc()
