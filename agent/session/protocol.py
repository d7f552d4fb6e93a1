"""The board's end of one session, without I/O.

In: messages of the controller, answers and reports of the agent, and the time as an argument. Out: messages to send, and when the next
Report is due. `runner.py` pumps it over a stream. It stands apart so that every rule of the conversation can be driven by a transcript.

Reports are latest-value: one is sent when something changed, no sooner than the controller's minimum interval after the last, and one is
sent as heartbeat when nothing changed. A log entry travels once per session; the agent keeps it until it is acknowledged. So do samples of
an outage, an hour of them at a time: the next hour is sent when the one before is acknowledged.

Lines of journals are sent when asked for, and so slowly that they disturb neither reports nor the worker's cores. Requests are answered
in turn: who asks again stands behind those who wait.
"""

from __future__ import annotations

import math
from typing import Final

from rkfleet.errors import BadRequest, Internal
from rkfleet.report import BoardState, LogEntry, Sample
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
    Welcome,
)

__all__ = ["HEARTBEAT_SECONDS_MAX", "HEARTBEAT_SECONDS_MIN", "LOG_CHUNK_SECONDS_MIN", "WELCOME_SECONDS_MAX", "BoardSession"]

WELCOME_SECONDS_MAX: Final = 30.0  # Taking a session is one write; a controller that needs longer is stuck, and another may answer.
HEARTBEAT_SECONDS_MIN: Final = 0.1  # A controller that asks for more than ten reports a second is mistaken.
HEARTBEAT_SECONDS_MAX: Final = 600.0  # And one that asks for none in ten minutes would not see the board die.
LOG_CHUNK_SECONDS_MIN: Final = 0.05  # Twenty chunks a second, all readers together, cost the board a hundredth of a core.
LOG_LINES_PER_SECOND_MAX: Final = 1000  # A whole journal in half a second; 100 KiB/s of usual lines.


class BoardSession:
    """What was said, what may be said, and what waits to be sent."""

    def __init__(self, hello: Hello, opened_at: float, table: Table = TRANSITIONS) -> None:
        """Begin with an open stream and Hello.

        Args:
            hello: Who the board is and what it holds.
            opened_at: Monotonic time.
            table: The transition table; other than `TRANSITIONS` only in tests.
        """
        self._talk: Final = Conversation(End.BOARD, table)
        self._fleet_id: Final = hello.fleet_id
        self._opened_at: Final = opened_at
        self._outgoing: list[BoardMessage] = []
        self._welcome: Welcome | None = None
        self._reported_at = -math.inf
        self._log_sent = 0
        self._samples_sent = 0
        self._samples_taken = 0
        self._grants: set[int] = set()
        self._grant_last = 0
        self._log_requests: dict[int, LogRequest] = {}
        self._log_request_last = 0
        self._log_due_at = -math.inf
        self._send(hello)

    @property
    def state(self) -> State:
        """Where the conversation is."""
        return self._talk.state

    @property
    def left(self) -> bool:
        """Whether either end said Goodbye."""
        return self._talk.left

    @property
    def welcome_due_at(self) -> float:
        """Monotonic time by which the controller must have answered Hello."""
        return self._opened_at + WELCOME_SECONDS_MAX

    @property
    def log_sent(self) -> int:
        """Sequence of the last log entry that this session carried."""
        return self._log_sent

    def receive(self, message: ControllerMessage) -> None:
        """Take a message of the controller.

        Raises:
            BadRequest: The controller broke the protocol; say Goodbye PROTOCOL with the message.
        """
        self._talk.receive(message)
        if self._talk.left:
            return
        match message:
            case Welcome():
                self._note_welcome(message)
            case ReportAck(log_sequence=sequence) if sequence > self._log_sent:
                raise BadRequest(f"the controller acknowledged log sequence {sequence}, sent were {self._log_sent}")
            case ReportAck(sample_sequence=sequence) if sequence > self._samples_sent:
                raise BadRequest(f"the controller acknowledged sample {sequence}, sent were {self._samples_sent}")
            case ReportAck(sample_sequence=sequence):
                self._samples_taken = max(self._samples_taken, sequence)
            case Grant(request_id=request_id) if request_id not in self._grants:
                raise BadRequest(f"the controller answered grant request {request_id}, which is not open")
            case Grant(request_id=request_id):
                self._grants.discard(request_id)
            case LogRequest():
                self._note_log_request(message)
            case LogCancel(request_id=request_id):
                if self._log_requests.pop(request_id, None):  # else the answer is on its way
                    self._send(LogChunk(request_id=request_id, ended=True))
            case AssignmentOffer() | Goodbye():
                pass  # The table has said all about them.

    def answer(self, answer: AssignmentAnswer) -> None:
        """Answer the offer."""
        self._send(answer)

    def report_due_at(self, *, changed: bool) -> float:
        """Return the monotonic time of the next Report: soon if something changed, else as heartbeat; infinity before the Welcome."""
        if self._welcome is None or not self._talk.may_send(Report):
            return math.inf
        pause = self._welcome.report_interval_seconds_min if changed else self._welcome.heartbeat_seconds
        return self._reported_at + pause

    def takes_samples(self, newest: int) -> bool:
        """Return whether samples up to `newest` may be sent: the controller keeps them, and has acknowledged those that were sent."""
        keeps = self._welcome is not None and self._welcome.keeps_samples
        return keeps and newest > self._samples_sent and self._samples_taken == self._samples_sent

    def report(
        self,
        state: BoardState,
        log: tuple[LogEntry, ...],
        log_dropped: int,
        now: float,
        *,
        samples: tuple[Sample, ...] = (),
        samples_dropped: int = 0,
    ) -> None:
        """Report the whole state, the log entries that this session has not carried yet, and samples while `takes_samples`."""
        unsent = tuple(entry for entry in log if entry.sequence > self._log_sent)
        self._send(Report(state=state, log=unsent, log_dropped=log_dropped, samples=samples, samples_dropped=samples_dropped))
        self._reported_at = now
        if unsent:
            self._log_sent = unsent[-1].sequence
        if samples:
            self._samples_sent = samples[-1].sequence

    @property
    def may_request_grant(self) -> bool:
        """Whether the session is taken and fewer than `GRANTS_OUTSTANDING_MAX` requests are open."""
        return self._talk.may_send(GrantRequest) and len(self._grants) < GRANTS_OUTSTANDING_MAX

    def request_grant(self, digests: tuple[str, ...]) -> int:
        """Ask for tokens for these blobs; return the number of the request."""
        self._grant_last += 1
        self._grants.add(self._grant_last)
        self._send(GrantRequest(request_id=self._grant_last, digests=digests))
        return self._grant_last

    @property
    def log_requests(self) -> tuple[LogRequest, ...]:
        """Requests for lines that wait for an answer, the longest waiting first."""
        return tuple(self._log_requests.values())

    @property
    def log_due_at(self) -> float:
        """Monotonic time of the next answer to a request for lines; infinity while there is none, or none may be sent."""
        return self._log_due_at if self._log_requests and self._talk.may_send(LogChunk) else math.inf

    def answer_log(self, chunk: LogChunk, now: float) -> None:
        """Answer an open request for lines; the next answer is due when this one has been paid for with time.

        Raises:
            Internal: There is no such request, which is our own mistake.
        """
        if self._log_requests.pop(chunk.request_id, None) is None:
            raise Internal(f"log request {chunk.request_id} is not open")
        self._send(chunk)
        self._log_due_at = now + max(LOG_CHUNK_SECONDS_MIN, len(chunk.lines) / LOG_LINES_PER_SECOND_MAX)

    def goodbye(self, goodbye: Goodbye) -> None:
        """Leave; does nothing if either end has left already, or before the stream has carried Hello."""
        if not self._talk.left:
            self._send(goodbye)

    def take_outgoing(self) -> list[BoardMessage]:
        """Return what is to be sent, in order, and forget it."""
        taken, self._outgoing = self._outgoing, []
        return taken

    def _send(self, message: BoardMessage) -> None:
        self._talk.send(message)
        self._outgoing.append(message)

    def _note_log_request(self, request: LogRequest) -> None:
        if request.request_id <= self._log_request_last:
            raise BadRequest(f"log request {request.request_id} came after {self._log_request_last}")
        self._log_request_last = request.request_id
        self._log_requests[request.request_id] = request
        if len(self._log_requests) > LOG_REQUESTS_OUTSTANDING_MAX:
            raise BadRequest(f"{len(self._log_requests)} log requests are open, at most {LOG_REQUESTS_OUTSTANDING_MAX} are allowed")

    def _note_welcome(self, welcome: Welcome) -> None:
        if welcome.fleet_id != self._fleet_id:
            raise BadRequest(f"the controller is of fleet {welcome.fleet_id}, this board joined {self._fleet_id}")
        if not HEARTBEAT_SECONDS_MIN <= welcome.heartbeat_seconds <= HEARTBEAT_SECONDS_MAX:
            raise BadRequest(
                f"the controller asks for a heartbeat every {welcome.heartbeat_seconds} s,"
                f" must be {HEARTBEAT_SECONDS_MIN}..{HEARTBEAT_SECONDS_MAX}"
            )
        if welcome.report_interval_seconds_min > welcome.heartbeat_seconds:
            raise BadRequest(
                f"the controller asks for a report at most every {welcome.report_interval_seconds_min} s"
                f" and at least every {welcome.heartbeat_seconds} s"
            )
        self._welcome = welcome
