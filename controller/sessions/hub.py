"""The hub: every board in session.

In: streams with verified names, offers from the assignment loop. Out: taken sessions and presence. One task tree per stream: `serve`
conducts it from Hello to Goodbye and returns when it is over. Reconcilers see the hub as `Offers` and `Presence`; what it needs of them and
of the registry stands in `seams.py`.

A board has one session. A second stream of the same board takes it: the first gets Goodbye SUPERSEDED and is over within
`GOODBYE_SECONDS_MAX`, also when its connection is half open and nobody reads there any more. Heartbeats stay in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Final, NamedTuple

from controller.planning.identity import CONFLICT_SECONDS, Attempt, Held
from controller.sessions import goodbyes
from controller.sessions.holder import AskLog, Holder
from controller.sessions.seams import Offer, Seams
from controller.sessions.stream import Link, Stream
from controller.sessions.taking import IdentityConflict, Taken, take
from controller.trust.pki import Peer
from rkfleet import metric_names
from rkfleet.assignment import Assignment, decode_assignment
from rkfleet.errors import FleetError, Unavailable
from rkfleet.session import Hello, Welcome

__all__ = ["Hub"]

CONFLICT_REASON: Final = "IdentityConflict"
REBOOTED_REASON: Final = "Rebooted"  # As Kubernetes' kubelet names it.
# When a whole fleet comes back at once, those who came first are let in first and the others wait: if all were served a little at a time,
# all would be served late, and boards that gave up meanwhile would come again and find the same. More at once would share no more commits.
LET_IN_AT_ONCE: Final = 64

_log: Final = logging.getLogger(__name__)


class _Refused(NamedTuple):
    """The last use of a board's certificate by somebody else, and when (monotonic)."""

    reason: str
    message: str
    at: float


class Hub:
    """All sessions of one controller process.

    Args:
        fleet_id: Fleet that this controller serves.
        controller: Identity of this process, for `Board.status.session`.
        seams: Everything that it holds of others.
    """

    def __init__(self, *, fleet_id: str, controller: str, seams: Seams) -> None:
        self._fleet_id: Final = fleet_id
        self._controller: Final = controller
        self._seams: Final = seams
        self._started_at: Final = seams.clock.monotonic()
        self._in_session: Final[dict[str, Holder]] = {}
        self._last_seen: Final[dict[str, float]] = {}
        self._boots: Final[dict[str, str]] = {}
        self._refused: Final[dict[str, _Refused]] = {}
        self._streams: Final[dict[Stream, None]] = {}  # A set that keeps its order.
        self._doors: Final = asyncio.Semaphore(LET_IN_AT_ONCE)
        self._closing = False

    def offer(self, board: str, offer: Offer) -> None:
        """Offer an assignment to a board if it is in session; the next session of one that is not begins with a fresh one."""
        if holder := self._in_session.get(board):
            holder.stream.offer(holder.note_offer(offer))

    def presence(self, board: str) -> tuple[bool, float]:
        """Return whether the board is in session, and since when (monotonic); one that was never seen is away since the start."""
        if holder := self._in_session.get(board):
            return True, holder.since
        return False, self._last_seen.get(board, self._started_at)

    @contextlib.contextmanager
    def open_log(self, board: str) -> Iterator[AskLog]:
        """Give what asks a board for lines, for as long as the block runs; the answers end with the session that the board holds now.

        Raises:
            Unavailable: The board is not in session.
            BadRequest: Its agent cannot answer.
            ResourceExhausted: Others read its logs already.
        """
        holder = self._in_session.get(board)
        if holder is None:
            raise Unavailable(f"board {board} is not in session, so nobody can ask it for logs; see: rkfleet describe board {board}")
        with holder.open_log() as ask:
            yield ask

    def held(self, board: str) -> Held | None:
        """Return the session that the board holds, or None."""
        holder = self._in_session.get(board)
        return Held(uid=holder.taken.uid, key_sha256=holder.key_sha256) if holder else None

    def attempt(self, board: str) -> Attempt | None:
        """Return the last refused use of the board's certificate by somebody else, or None."""
        refused = self._refused.get(board)
        if refused is None:
            return None
        return Attempt(reason=refused.reason, message=refused.message, seconds=self._seams.clock.monotonic() - refused.at)

    def revoke(self, board: str, message: str) -> None:
        """End the board's session, if it has one, and tell it why."""
        if holder := self._in_session.get(board):
            _log.warning("session revoked", extra={"board": board, "reason": message})
            holder.stream.leave(goodbyes.revoked(message))

    async def assignment_of(self, board: str) -> Assignment | None:
        """Return what the board in session was offered last, or None; what it may fetch is decided by this."""
        holder = self._in_session.get(board)
        return decode_assignment(holder.offered.body) if holder and holder.offered else None

    async def close(self) -> None:
        """Say Goodbye to every board and take no more; returns when all streams are over."""
        self._closing = True
        for stream in tuple(self._streams):
            stream.leave(goodbyes.shutdown())
        for stream in tuple(self._streams):
            await stream.over.wait()

    async def serve(self, peer: Peer, link: Link) -> None:
        """Conduct one stream of the board that the verified certificate names; return when it is over."""
        stream = Stream(link, self._seams.clock, self._seams.tempo.heartbeat_seconds)
        self._streams[stream] = None
        if self._closing:
            stream.leave(goodbyes.shutdown())
        try:
            async with asyncio.TaskGroup() as tasks:
                conduct = tasks.create_task(self._conduct(peer, stream))
                await stream.run()
                conduct.cancel()
        finally:
            stream.over.set()
            self._streams.pop(stream, None)
            self._release(peer.name, stream)
            reason = stream.ended_by.reason.value if stream.ended_by else "LOST"
            self._seams.metrics.counter(metric_names.SESSION_ENDS, reason=reason).inc()

    async def _conduct(self, peer: Peer, stream: Stream) -> None:
        while (hello := stream.hello) is None:
            await stream.news.wait()
        async with self._doors:
            holder = await self._let_in(peer, stream, hello)
        if holder is not None:
            await holder.run()

    async def _let_in(self, peer: Peer, stream: Stream, hello: Hello) -> Holder | None:
        """Take the session, welcome the board and tell it what to run; None if it was refused."""
        seams, tempo = self._seams, self._seams.tempo
        try:
            taken = await take(seams.store, peer, hello, fleet_id=self._fleet_id, controller=self._controller, clock=seams.clock)
        except FleetError as refusal:
            self._refuse(peer, stream, refusal)
            return None
        holder = Holder(seams, taken, peer, hello, stream)
        self._hold(holder)
        self._note_boot(taken, hello)
        stream.welcome(
            Welcome(
                fleet_id=self._fleet_id,
                session_number=taken.number,
                heartbeat_seconds=tempo.heartbeat_seconds,
                report_interval_seconds_min=tempo.report_interval_seconds_min,
                time=seams.clock.now(),
                keeps_samples=seams.samples is not None,
            )
        )
        await holder.begin()
        return holder

    def _refuse(self, peer: Peer, stream: Stream, refusal: FleetError) -> None:
        _log.warning("board refused", extra={"board": peer.name, "reason": refusal.message})
        if isinstance(refusal, IdentityConflict):
            self._note_refused(peer.name, refusal)
        stream.leave(goodbyes.goodbye_for(refusal))

    def _note_refused(self, board: str, refusal: IdentityConflict) -> None:
        """Show the attempt on the Board, as a condition and as an Event; those of boards that were left alone since are forgotten."""
        now = self._seams.clock.monotonic()
        for name in [name for name, one in self._refused.items() if now - one.at > 2 * CONFLICT_SECONDS]:
            del self._refused[name]
        self._refused[board] = _Refused(refusal.reason, refusal.message, now)
        self._seams.note(board, refusal.board.uid, "Warning", CONFLICT_REASON, refusal.message)
        self._seams.on_presence(board)

    def _hold(self, holder: Holder) -> None:
        """Make this the board's session and end the one before."""
        board, number = holder.taken.board, holder.taken.number
        before = self._in_session.get(board)
        self._in_session[board] = holder
        if before is not None:
            before.stream.leave(goodbyes.superseded(f"session {before.taken.number} was taken by session {number}"))
        self._count()
        self._seams.on_presence(board)

    def _release(self, board: str, stream: Stream) -> None:
        holder = self._in_session.get(board)
        if holder is not None and holder.stream is stream:
            del self._in_session[board]
            self._last_seen[board] = self._seams.clock.monotonic()
            self._count()
            self._seams.on_presence(board)

    def _count(self) -> None:
        self._seams.metrics.gauge(metric_names.SESSIONS).set(len(self._in_session))

    def _note_boot(self, taken: Taken, hello: Hello) -> None:
        before = self._boots.get(taken.board)
        self._boots[taken.board] = hello.boot_id
        if before is not None and before != hello.boot_id:
            message = f"board {taken.board} was rebooted, boot id {hello.boot_id}"
            self._seams.note(taken.board, taken.uid, "Normal", REBOOTED_REASON, message)
