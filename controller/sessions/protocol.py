"""The controller's end of one session, without I/O.

In: messages of the board, decisions of the hub, and the time as an argument. Out: messages to send, and when silence has lasted too long.
`hub.py` pumps it over a stream. It stands apart so that every rule of the conversation can be driven by a transcript.

An offer waits here while an older one is unanswered, and a newer offer takes its place: a slow board never finds a queue.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rkfleet.errors import BadRequest, Internal
from rkfleet.report import LOG_ENTRIES_MAX
from rkfleet.session import (
    GRANTS_OUTSTANDING_MAX,
    LOG_REQUESTS_OUTSTANDING_MAX,
    TRANSITIONS,
    AssignmentAnswer,
    AssignmentOffer,
    BoardMessage,
    ControllerMessage,
    Conversation,
    End,
    Goodbye,
    Grant,
    GrantRequest,
    Hello,
    LogCancel,
    LogChunk,
    LogRequest,
    Report,
    ReportAck,
    State,
    Table,
    Verdict,
    Welcome,
)

__all__ = ["HELLO_SECONDS_MAX", "SILENCE_HEARTBEATS", "ControllerSession"]

HELLO_SECONDS_MAX: Final = 10.0  # A board says Hello with its first packet; a stream that does not is a scanner or is stuck.
SILENCE_HEARTBEATS: Final = 3  # Two heartbeats may be late on a bad link before the board counts as gone.


class ControllerSession:
    """What was said, what may be said, and what waits to be sent."""

    def __init__(self, opened_at: float, heartbeat_seconds: float, table: Table = TRANSITIONS) -> None:
        """Begin with an open stream.

        Args:
            opened_at: Monotonic time.
            heartbeat_seconds: What the Welcome will ask of the board.
            table: The transition table; other than `TRANSITIONS` only in tests.
        """
        self._talk: Final = Conversation(End.CONTROLLER, table)
        self._heartbeat_seconds: Final = heartbeat_seconds
        self._heard_at = opened_at
        self._outgoing: list[ControllerMessage] = []
        self._waiting: AssignmentOffer | None = None
        self._offered: AssignmentOffer | None = None
        self._refused = False
        self._log_heard = 0
        self._log_acknowledged = 0
        self._samples_heard = 0
        self._samples_acknowledged = 0
        self._grants: set[int] = set()
        self._grant_last = 0
        self._answers_logs = False
        self._log_requests: dict[int, bool] = {}  # open ones, and whether they are cancelled
        self._log_request_last = 0

    @property
    def state(self) -> State:
        """Where the conversation is."""
        return self._talk.state

    @property
    def left(self) -> bool:
        """Whether either end said Goodbye."""
        return self._talk.left

    @property
    def silent_at(self) -> float:
        """Monotonic time at which the board has been silent for too long."""
        if self._talk.state is State.OPENING:
            return self._heard_at + HELLO_SECONDS_MAX
        return self._heard_at + SILENCE_HEARTBEATS * self._heartbeat_seconds

    @property
    def _offered_number(self) -> int:
        return self._offered.number if self._offered else 0

    def excuse(self, now: float) -> None:
        """Count the silence from now: this process itself was stopped and could not hear."""
        self._heard_at = now

    def receive(self, message: BoardMessage, now: float) -> None:
        """Take a message of the board.

        Raises:
            BadRequest: The board broke the protocol; say Goodbye PROTOCOL with the message.
        """
        self._talk.receive(message)
        self._heard_at = now
        if self._talk.left:
            return
        match message:
            case AssignmentAnswer(number=number) if number != self._offered_number:
                raise BadRequest(f"the board answered assignment {number}, offered was {self._offered_number}")
            case AssignmentAnswer(verdict=verdict):
                self._refused = verdict is not Verdict.ACCEPTED
                self._send_waiting_offer()
            case Report():
                self._note_log(message)
                self._note_samples(message)
            case GrantRequest(request_id=request_id):
                self._note_grant_request(request_id)
            case LogChunk(request_id=request_id) if request_id not in self._log_requests:
                raise BadRequest(f"the board answered log request {request_id}, which is not open")
            case LogChunk(request_id=request_id):
                del self._log_requests[request_id]
            case Hello(answers_logs=answers_logs):
                self._answers_logs = answers_logs
            case Goodbye():
                pass  # The table has said all about them.

    def welcome(self, welcome: Welcome) -> None:
        """Say that the session is taken."""
        self._send(welcome)

    def offer(self, offer: AssignmentOffer) -> None:
        """Offer an assignment, now or when the one before is answered; what is not newer than the last offer changes nothing."""
        if offer.number > self._offered_number and (self._waiting is None or offer.number > self._waiting.number):
            self._waiting = offer
            self._send_waiting_offer()

    def offer_again(self) -> None:
        """Offer once more what the board could not take; does nothing if it took it, or while an offer is open."""
        if self._refused and self._talk.may_send(AssignmentOffer):
            self._waiting = self._offered
            self._send_waiting_offer()

    def acknowledge(self, *, log_sequence: int = 0, sample_sequence: int = 0) -> None:
        """Say that log or samples are stored up to and including these sequences."""
        if log_sequence > self._log_acknowledged or sample_sequence > self._samples_acknowledged:
            self._log_acknowledged = max(self._log_acknowledged, log_sequence)
            self._samples_acknowledged = max(self._samples_acknowledged, sample_sequence)
            self._send(ReportAck(log_sequence=self._log_acknowledged, sample_sequence=self._samples_acknowledged))

    def grant(self, grant: Grant) -> None:
        """Answer a GrantRequest."""
        self._grants.discard(grant.request_id)
        self._send(grant)

    @property
    def may_request_log(self) -> bool:
        """Whether the session is taken, the board answers such requests, and fewer than the limit are open."""
        return self._answers_logs and self._talk.may_send(LogRequest) and len(self._log_requests) < LOG_REQUESTS_OUTSTANDING_MAX

    def request_log(self, request: LogRequest) -> int:
        """Ask for lines; `request_id` is filled in here and returned.

        Raises:
            Internal: It may not be sent (`may_request_log`), which is our own mistake.
        """
        if not self.may_request_log:
            raise Internal("a log request may not be sent now")
        self._log_request_last += 1
        self._log_requests[self._log_request_last] = False
        self._send(msgspec.structs.replace(request, request_id=self._log_request_last))
        return self._log_request_last

    def cancel_log(self, request_id: int) -> None:
        """Wait for this answer no longer; does nothing if it came already, was cancelled before, or either end left."""
        if self._log_requests.get(request_id) is False and not self._talk.left:
            self._log_requests[request_id] = True
            self._send(LogCancel(request_id=request_id))

    def goodbye(self, goodbye: Goodbye) -> None:
        """Leave; does nothing if either end has left already."""
        if not self._talk.left:
            self._send(goodbye)

    @property
    def has_outgoing(self) -> bool:
        """Whether something is to be sent."""
        return bool(self._outgoing)

    def take_outgoing(self) -> list[ControllerMessage]:
        """Return what is to be sent, in order, and forget it."""
        taken, self._outgoing = self._outgoing, []
        return taken

    def _send(self, message: ControllerMessage) -> None:
        self._talk.send(message)
        self._outgoing.append(message)

    def _send_waiting_offer(self) -> None:
        if self._waiting is not None and self._talk.may_send(AssignmentOffer):
            offer, self._waiting = self._waiting, None
            self._offered = offer
            self._send(offer)

    def _note_log(self, report: Report) -> None:
        for entry in report.log:
            if entry.sequence <= self._log_heard:
                raise BadRequest(f"log sequence {entry.sequence} came after {self._log_heard}")
            self._log_heard = entry.sequence
        if len(report.log) > LOG_ENTRIES_MAX:
            raise BadRequest(f"a report carries {len(report.log)} log entries, at most {LOG_ENTRIES_MAX} are allowed")

    def _note_samples(self, report: Report) -> None:
        for sample in report.samples:
            if sample.sequence <= self._samples_heard:
                raise BadRequest(f"sample {sample.sequence} came after {self._samples_heard}")
            self._samples_heard = sample.sequence

    def _note_grant_request(self, request_id: int) -> None:
        if request_id <= self._grant_last:
            raise BadRequest(f"grant request {request_id} came after {self._grant_last}")
        self._grant_last = request_id
        self._grants.add(request_id)
        if len(self._grants) > GRANTS_OUTSTANDING_MAX:
            raise BadRequest(f"{len(self._grants)} grant requests are unanswered, at most {GRANTS_OUTSTANDING_MAX} are allowed")
