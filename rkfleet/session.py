"""The session between a board and the controller: its messages, and the one transition table of both ends.

Both protocols (`controller/sessions/protocol.py`, `agent/session/protocol.py`) walk a `Conversation`; `rkfleet/wire.py` turns the
messages into protobuf and back. Two rules, after h11: everything about the state of a conversation lives in this file, and this file
does not know which end it serves, so that neither end can have a rule of its own.

A conversation has one state, not one per end, although messages cross on the way. That works because the table is confluent: whatever
one end may send in a state leaves the other end's next message legal, in whichever order the two are seen. A test checks this for
every pair of rows. Only Goodbye breaks it, so each end has a leaving state in which the messages that were under way are let through.

    OPENING --Hello--> GREETED --Welcome--> TAKEN --AssignmentOffer--> OFFERED
                                              ^-----AssignmentAnswer------'
    any --Goodbye of the board--> BOARD_LEFT        any --Goodbye of the controller--> CONTROLLER_LEFT
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Final

import msgspec

from rkfleet.errors import BadRequest, Internal
from rkfleet.report import BoardFacts, BoardState, LogEntry, Sample

__all__ = [
    "GRANTS_OUTSTANDING_MAX", "LOG_CHUNK_BYTES_MAX", "LOG_CHUNK_LINES_MAX", "LOG_LINE_LENGTH_MAX", "LOG_REQUESTS_OUTSTANDING_MAX",
    "PROTOCOL_VERSION", "TRANSITIONS", "AssignmentAnswer", "AssignmentOffer", "BoardMessage", "ControllerMessage", "Conversation", "End",
    "Goodbye", "GoodbyeReason", "Grant", "GrantRequest", "Hello", "LogCancel", "LogChunk", "LogLine", "LogRequest", "LogSource", "Message",
    "Report", "ReportAck", "State", "Table", "Verdict", "Welcome",
]  # fmt: skip

PROTOCOL_VERSION: Final = 1
GRANTS_OUTSTANDING_MAX: Final = 16  # One for each replica that is fetched at the same time; a board fetches a few.
LOG_REQUESTS_OUTSTANDING_MAX: Final = 8  # Twice what the controller lets people open on a board: cancelled ones wait for their answer.
LOG_CHUNK_LINES_MAX: Final = 200  # A screen or four; with the next limit, what a report may have to wait for.
LOG_CHUNK_BYTES_MAX: Final = 16 << 10  # Two seconds of a link of 64 kbit/s, a fifth of the silence that ends a session.
LOG_LINE_LENGTH_MAX: Final = 512  # Characters; the lines of a runtime are shorter, and who dumps data into its log is cut.


class Verdict(enum.Enum):
    """What a board says to an offered assignment."""

    ACCEPTED = "ACCEPTED"  # On disk and followed.
    OLDER = "OLDER"  # The ledger holds a higher number.
    CHANGED = "CHANGED"  # The ledger holds this number with other content.
    INVALID = "INVALID"  # The body does not match its hash or cannot be read.
    DISK = "DISK"  # The ledger could not be written.


class GoodbyeReason(enum.Enum):
    """Why one end leaves."""

    SUPERSEDED = "SUPERSEDED"  # Another stream of the same board took the session.
    SHUTDOWN = "SHUTDOWN"  # The sender is stopping.
    REVOKED = "REVOKED"  # The board may not be here: unknown, another key, another machine, another fleet.
    PROTOCOL = "PROTOCOL"  # The other end broke the protocol.


class _Value(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    pass


class Hello(_Value, frozen=True, kw_only=True):
    """First message of the board.

    Attributes:
        protocol: Version of the protocol that the board speaks.
        fleet_id: Fleet that the board enrolled in.
        machine_id: Identity of the machine; the board's certificate is bound to it.
        boot_id: Changes with every boot of the machine.
        assignment_number: Number in the board's ledger; 0 for none.
        assignment_sha256: Hash in the board's ledger; empty for none.
        serving_url: Base URL at which gateways reach the board.
        answers_logs: The board answers a LogRequest; False for agents of before it existed, which must not be asked.
    """

    protocol: int
    fleet_id: str
    machine_id: str
    boot_id: str
    assignment_number: int
    assignment_sha256: str
    facts: BoardFacts
    serving_url: str = ""
    answers_logs: bool = False


class Welcome(_Value, frozen=True, kw_only=True):
    """Answer to Hello: the session is taken.

    Attributes:
        heartbeat_seconds: The board sends a Report at least this often.
        report_interval_seconds_min: The board sends a Report at most this often.
        time: What the controller's clock says, for boards whose own may be wrong; None from controllers of before it was told.
        keeps_samples: The controller takes the samples of an outage; to one of before they existed none are sent.
    """

    fleet_id: str
    session_number: int
    heartbeat_seconds: float
    report_interval_seconds_min: float
    time: datetime | None = None
    keeps_samples: bool = False


class AssignmentOffer(_Value, frozen=True, kw_only=True):
    """The whole desired state of the board: exact bytes and their hex sha256."""

    number: int
    body: bytes
    sha256: str


class AssignmentAnswer(_Value, frozen=True, kw_only=True):
    """What the board did with the offer of that number; `reason` is a sentence when it did not accept."""

    number: int
    verdict: Verdict
    reason: str = ""


class Report(_Value, frozen=True, kw_only=True):
    """The latest state, whole, and the log entries that this session has not carried yet; it is also the heartbeat.

    Attributes:
        log_dropped: Entries lost to the bound since the agent started.
        samples: The oldest samples of an outage that nobody has taken yet; the next come after these are acknowledged.
        samples_dropped: Samples lost to the bound since the agent started.
    """

    state: BoardState
    log: tuple[LogEntry, ...] = ()
    log_dropped: int = 0
    samples: tuple[Sample, ...] = ()
    samples_dropped: int = 0


class ReportAck(_Value, frozen=True, kw_only=True):
    """The controller has stored every log entry and every sample up to and including these sequences."""

    log_sequence: int
    sample_sequence: int = 0


class GrantRequest(_Value, frozen=True, kw_only=True):
    """The board wants to fetch these blobs (`sha256:<hex>`); request numbers rise within a session."""

    request_id: int
    digests: tuple[str, ...]


class Grant(_Value, frozen=True, kw_only=True):
    """Where to fetch and with which token; never stored.

    Attributes:
        sources: OCI repository URLs in order of preference; a blob is at `<source>/blobs/<digest>`.
        expires_in_seconds: A duration, because boards may not know the time.
        refusal: Why nothing is granted; empty when granted.
    """

    request_id: int
    sources: tuple[str, ...] = ()
    token: str = ""
    expires_in_seconds: int = 0
    refusal: str = ""


class LogSource(enum.Enum):
    """Whose journal is asked for."""

    UNSPECIFIED = "UNSPECIFIED"  # One of a newer controller; the board refuses it with a sentence.
    WORKER = "WORKER"  # What a replica's worker wrote, and what its supervisor says about it.
    AGENT = "AGENT"  # What the agent itself logs.


class LogRequest(_Value, frozen=True, kw_only=True):
    """The controller wants lines of a journal; exactly one LogChunk answers it, also when it is cancelled.

    The board remembers nothing between two requests: whoever follows a journal asks again with what the last chunk said.

    Attributes:
        request_id: Rises within a session.
        replica_uid: Whose worker, for `LogSource.WORKER`.
        run: 0 is the worker's newest run and all that follow, -1 the one before it, a positive number names a run.
        after: Number of the last line that was seen; None in the first request.
        tail_lines: Of the first request: no more lines than so many, the last ones; None for all.
        since_seconds: Of the first request: lines that are no older; 0 for all.
        wait: Answer when there is a line, not now.
    """

    request_id: int
    source: LogSource
    replica_uid: str = ""
    run: int = 0
    after: int | None = None
    tail_lines: int | None = None
    since_seconds: int = 0
    wait: bool = False


class LogLine(_Value, frozen=True, kw_only=True):
    """One line, with the milliseconds since 1970 at which it was written, by the board's clock as it is now."""

    time_milliseconds: int
    text: str


class LogChunk(_Value, frozen=True, kw_only=True):
    """Lines of a journal, at most `LOG_CHUNK_LINES_MAX` of together `LOG_CHUNK_BYTES_MAX`.

    Attributes:
        next: What to ask after next time.
        newest: Number of the newest line of the journal.
        dropped: Lines between `after` of the request and the first of these that the journal had to forget.
        run: The run that was asked for, as a number.
        ended: Nothing will ever follow.
        refusal: Why there is nothing to read; empty when there is.
    """

    request_id: int
    lines: tuple[LogLine, ...] = ()
    next: int = 0
    newest: int = 0
    dropped: int = 0
    run: int = 0
    ended: bool = False
    refusal: str = ""


class LogCancel(_Value, frozen=True, kw_only=True):
    """The controller waits for this answer no longer; the board gives it at once, empty."""

    request_id: int


class Goodbye(_Value, frozen=True, kw_only=True):
    """Last message of its sender; the board comes back no sooner than after `reconnect_after_seconds`."""

    reason: GoodbyeReason
    message: str = ""
    reconnect_after_seconds: float = 0.0


BoardMessage = Hello | AssignmentAnswer | Report | GrantRequest | LogChunk | Goodbye
ControllerMessage = Welcome | AssignmentOffer | ReportAck | Grant | LogRequest | LogCancel | Goodbye
Message = BoardMessage | ControllerMessage


class End(enum.Enum):
    """Who sends."""

    BOARD = "board"
    CONTROLLER = "controller"


class State(enum.Enum):
    """Where a conversation is."""

    OPENING = "OPENING"  # The stream is open; the board speaks first.
    GREETED = "GREETED"  # The board said who it is; the controller decides.
    TAKEN = "TAKEN"  # The session is the board's; no offer waits for an answer.
    OFFERED = "OFFERED"  # One offer waits for its answer; a newer one waits until then.
    BOARD_LEFT = "BOARD_LEFT"
    CONTROLLER_LEFT = "CONTROLLER_LEFT"


Table = Mapping[tuple[State, End, type[Message]], State]

TRANSITIONS: Final[Table] = MappingProxyType({
    (State.OPENING, End.BOARD, Hello): State.GREETED,
    (State.OPENING, End.CONTROLLER, Goodbye): State.CONTROLLER_LEFT,

    (State.GREETED, End.CONTROLLER, Welcome): State.TAKEN,
    (State.GREETED, End.BOARD, Goodbye): State.BOARD_LEFT,
    (State.GREETED, End.CONTROLLER, Goodbye): State.CONTROLLER_LEFT,

    (State.TAKEN, End.CONTROLLER, AssignmentOffer): State.OFFERED,
    (State.TAKEN, End.BOARD, Report): State.TAKEN,
    (State.TAKEN, End.CONTROLLER, ReportAck): State.TAKEN,
    (State.TAKEN, End.BOARD, GrantRequest): State.TAKEN,
    (State.TAKEN, End.CONTROLLER, Grant): State.TAKEN,
    (State.TAKEN, End.CONTROLLER, LogRequest): State.TAKEN,
    (State.TAKEN, End.CONTROLLER, LogCancel): State.TAKEN,
    (State.TAKEN, End.BOARD, LogChunk): State.TAKEN,
    (State.TAKEN, End.BOARD, Goodbye): State.BOARD_LEFT,
    (State.TAKEN, End.CONTROLLER, Goodbye): State.CONTROLLER_LEFT,

    (State.OFFERED, End.BOARD, AssignmentAnswer): State.TAKEN,
    (State.OFFERED, End.BOARD, Report): State.OFFERED,
    (State.OFFERED, End.CONTROLLER, ReportAck): State.OFFERED,
    (State.OFFERED, End.BOARD, GrantRequest): State.OFFERED,
    (State.OFFERED, End.CONTROLLER, Grant): State.OFFERED,
    (State.OFFERED, End.CONTROLLER, LogRequest): State.OFFERED,
    (State.OFFERED, End.CONTROLLER, LogCancel): State.OFFERED,
    (State.OFFERED, End.BOARD, LogChunk): State.OFFERED,
    (State.OFFERED, End.BOARD, Goodbye): State.BOARD_LEFT,
    (State.OFFERED, End.CONTROLLER, Goodbye): State.CONTROLLER_LEFT,

    # What was under way when the other end left.
    (State.BOARD_LEFT, End.CONTROLLER, Welcome): State.BOARD_LEFT,
    (State.BOARD_LEFT, End.CONTROLLER, AssignmentOffer): State.BOARD_LEFT,
    (State.BOARD_LEFT, End.CONTROLLER, ReportAck): State.BOARD_LEFT,
    (State.BOARD_LEFT, End.CONTROLLER, Grant): State.BOARD_LEFT,
    (State.BOARD_LEFT, End.CONTROLLER, LogRequest): State.BOARD_LEFT,
    (State.BOARD_LEFT, End.CONTROLLER, LogCancel): State.BOARD_LEFT,
    (State.BOARD_LEFT, End.CONTROLLER, Goodbye): State.BOARD_LEFT,
    (State.CONTROLLER_LEFT, End.BOARD, Hello): State.CONTROLLER_LEFT,
    (State.CONTROLLER_LEFT, End.BOARD, AssignmentAnswer): State.CONTROLLER_LEFT,
    (State.CONTROLLER_LEFT, End.BOARD, Report): State.CONTROLLER_LEFT,
    (State.CONTROLLER_LEFT, End.BOARD, GrantRequest): State.CONTROLLER_LEFT,
    (State.CONTROLLER_LEFT, End.BOARD, LogChunk): State.CONTROLLER_LEFT,
    (State.CONTROLLER_LEFT, End.BOARD, Goodbye): State.CONTROLLER_LEFT,
})  # fmt: skip


class Conversation:
    """One session as one end sees it: the state, moved by what is sent and what is received."""

    def __init__(self, end: End, table: Table = TRANSITIONS) -> None:
        self._end: Final = end
        self._peer: Final = End.CONTROLLER if end is End.BOARD else End.BOARD
        self._table: Final = table
        self.state = State.OPENING

    @property
    def left(self) -> bool:
        """Whether either end said Goodbye; nothing may be sent any more."""
        return self.state in {State.BOARD_LEFT, State.CONTROLLER_LEFT}

    def may_send(self, message: type[Message]) -> bool:
        """Return whether this end may send such a message now."""
        return not self.left and (self.state, self._end, message) in self._table

    def send(self, message: Message) -> None:
        """Move by a message that this end sends.

        Raises:
            Internal: The table does not allow it, which is our own mistake.
        """
        if not self.may_send(type(message)):
            raise Internal(f"the {self._end.value} may not send {type(message).__name__} in state {self.state.value}")
        self.state = self._table[self.state, self._end, type(message)]

    def receive(self, message: Message) -> None:
        """Move by a message that the other end sent.

        Raises:
            BadRequest: The table does not allow it, which is the other end's mistake.
        """
        following = self._table.get((self.state, self._peer, type(message)))
        if following is None:
            raise BadRequest(f"the {self._peer.value} may not send {type(message).__name__} in state {self.state.value}")
        self.state = following
