"""Transcripts of sessions: a text of commands with what both protocols say to each.

A line that is not indented is a command, the indented lines below it are the answer; `#` begins a remark. Both ends are the shipped
protocols; between them are two queues, so a transcript decides what crosses on the way:

    open                       a new stream; the board says Hello at once, one of before logs could be asked for with `logs=no`
    board|controller ACTION    something that end does by itself
    deliver board              the controller hears what the board sent so far; likewise `deliver controller`
    time +SECONDS              time passes
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from agent.session.protocol import BoardSession
from controller.sessions.protocol import ControllerSession
from rkfleet.errors import BadRequest, Internal
from rkfleet.report import BoardFacts, BoardState, LogEntry, Sample
from rkfleet.session import (
    TRANSITIONS,
    AssignmentAnswer,
    AssignmentOffer,
    Goodbye,
    GoodbyeReason,
    Grant,
    GrantRequest,
    Hello,
    LogCancel,
    LogChunk,
    LogLine,
    LogRequest,
    LogSource,
    Message,
    Report,
    ReportAck,
    Table,
    Verdict,
    Welcome,
)

FACTS = BoardFacts(soc="cpu")
HEARTBEAT_SECONDS = 10.0


def run(text: str, table: Table = TRANSITIONS) -> str:
    """Return the transcript with the answers that the protocols give now."""
    theatre = Theatre(table)
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith(" "):
            continue
        lines.append(line)
        if line and not line.startswith("#"):
            lines += [f"  {answer}" for answer in theatre.perform(line)]
    return "\n".join(lines) + "\n"


class Theatre:
    """Two protocols and what is under way between them."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.now = 0.0
        self.from_board: list[Message] = []
        self.from_controller: list[Message] = []
        self._open({})

    def perform(self, line: str) -> Sequence[str]:
        """Do what a command says and return what there is to see."""
        who, *words = shlex.split(line)
        try:
            match who:
                case "open":
                    self._open(arguments(words))
                case "time":
                    self.now += float(words[0])
                case "deliver":
                    return self._deliver(words[0])
                case "board":
                    return [*self._board(words[0], arguments(words[1:])), *self._collect()]
                case "controller":
                    return [*self._controller(words[0], arguments(words[1:])), *self._collect()]
                case _:
                    raise AssertionError(f"no command {line!r}")
        except Internal as error:
            return [f"cannot: {error.message}"]
        return self._collect()

    def _open(self, given: Mapping[str, str]) -> None:
        hello = Hello(
            protocol=1, fleet_id="f", machine_id="m", boot_id="b", assignment_number=0, assignment_sha256="", facts=FACTS,
            answers_logs=given.get("logs") != "no",
        )  # fmt: skip
        self.from_board, self.from_controller = [], []
        self.controller = ControllerSession(self.now, HEARTBEAT_SECONDS, self.table)
        self.board = BoardSession(hello, self.now, self.table)

    def _collect(self) -> list[str]:
        """Move what was sent onto the way, and say so."""
        sent_by_board, sent_by_controller = self.board.take_outgoing(), self.controller.take_outgoing()
        self.from_board += sent_by_board
        self.from_controller += sent_by_controller
        said = [f"board sends {describe(message)} and is in {self.board.state.value}" for message in sent_by_board]
        return said + [f"controller sends {describe(message)} and is in {self.controller.state.value}" for message in sent_by_controller]

    def _deliver(self, sender: str) -> list[str]:
        answers: list[str] = []
        if sender == "board":
            messages, self.from_board = self.from_board, []
            for message in messages:
                answers.append(self._hear("controller", message))
                answers += self._collect()
        else:
            messages, self.from_controller = self.from_controller, []
            for message in messages:
                answers.append(self._hear("board", message))
                answers += self._collect()
        return answers

    def _hear(self, who: str, message: Message) -> str:
        try:
            if who == "controller":
                self.controller.receive(message, self.now)  # type: ignore[arg-type]
                state = self.controller.state
            else:
                self.board.receive(message)  # type: ignore[arg-type]
                state = self.board.state
        except BadRequest as error:
            return f"{who} refuses {describe(message)}: {error.message}"
        return f"{who} hears {describe(message)} and is in {state.value}"

    def _board(self, action: str, given: Mapping[str, str]) -> list[str]:
        match action:
            case "answers":
                verdict = Verdict(given.get("verdict", "ACCEPTED"))
                self.board.answer(AssignmentAnswer(number=int(given["number"]), verdict=verdict))
            case "reports":
                samples = samples_of(given.get("samples", ""))
                taken = not samples or self.board.takes_samples(samples[-1].sequence)
                state, log = BoardState(assignment_number=0, facts=FACTS), log_of(given.get("log", ""))
                self.board.report(state, log, 0, self.now, samples=samples if taken else ())
                return [] if taken else ["the controller takes no samples now"]
            case "requests-grant":
                self.board.request_grant(("sha256:" + "1" * 64,))
            case "sends-lines":
                lines = tuple(LogLine(time_milliseconds=0, text="a line") for _ in range(int(given.get("lines", "1"))))
                self.board.answer_log(LogChunk(request_id=int(given["request"]), lines=lines), self.now)
            case "log":
                waiting = ", ".join(str(request.request_id) for request in self.board.log_requests) or "none"
                return [f"log requests that wait: {waiting}; the next answer is due at {self.board.log_due_at:g}"]
            case "leaves":
                self.board.goodbye(Goodbye(reason=GoodbyeReason(given["reason"])))
            case "due":
                changed, idle = self.board.report_due_at(changed=True), self.board.report_due_at(changed=False)
                return [f"report due at {changed:g} if something changed, else at {idle:g}; welcome due at {self.board.welcome_due_at:g}"]
            case "sends":
                self.from_board.append(raw(given))
            case _:
                raise AssertionError(f"the board cannot {action}")
        return []

    def _controller(self, action: str, given: Mapping[str, str]) -> list[str]:
        match action:
            case "welcomes":
                fleet, heartbeat = given.get("fleet", "f"), float(given.get("heartbeat", HEARTBEAT_SECONDS))
                keeps = given.get("samples") == "yes"
                welcome = Welcome(
                    fleet_id=fleet, session_number=1, heartbeat_seconds=heartbeat, report_interval_seconds_min=0.5, keeps_samples=keeps
                )
                self.controller.welcome(welcome)
            case "offers":
                self.controller.offer(AssignmentOffer(number=int(given["number"]), body=b"{}", sha256="0" * 64))
            case "offers-again":
                self.controller.offer_again()
            case "acknowledges":
                self.controller.acknowledge(log_sequence=int(given.get("log", "0")), sample_sequence=int(given.get("samples", "0")))
            case "grants":
                self.controller.grant(Grant(request_id=int(given["request"]), token="t"))
            case "requests-log":
                self.controller.request_log(LogRequest(request_id=0, source=LogSource.AGENT))
            case "cancels-log":
                self.controller.cancel_log(int(given["request"]))
            case "leaves":
                self.controller.goodbye(Goodbye(reason=GoodbyeReason(given["reason"])))
            case "waits":
                silent = "silent for too long" if self.now >= self.controller.silent_at else "patient"
                return [f"{silent} until {self.controller.silent_at:g}, now is {self.now:g}"]
            case "excuses":
                self.controller.excuse(self.now)
            case "sends":
                self.from_controller.append(raw(given))
            case _:
                raise AssertionError(f"the controller cannot {action}")
        return []


def raw(given: Mapping[str, str]) -> Message:
    """Return a message that the sender's protocol would not send: what a mistaken peer does."""
    match given["message"]:
        case "Hello":
            return Hello(protocol=1, fleet_id="f", machine_id="m", boot_id="b", assignment_number=0, assignment_sha256="", facts=FACTS)
        case "Report":
            state = BoardState(assignment_number=0, facts=FACTS)
            return Report(state=state, log=log_of(given.get("log", "")), samples=samples_of(given.get("samples", "")))
        case "AssignmentAnswer":
            return AssignmentAnswer(number=int(given["number"]), verdict=Verdict.ACCEPTED)
        case "AssignmentOffer":
            return AssignmentOffer(number=int(given["number"]), body=b"{}", sha256="0" * 64)
        case "GrantRequest":
            return GrantRequest(request_id=int(given["request"]), digests=())
        case "Grant":
            return Grant(request_id=int(given["request"]))
        case "ReportAck":
            return ReportAck(log_sequence=int(given["log"]), sample_sequence=int(given.get("samples", "0")))
        case "LogRequest":
            return LogRequest(request_id=int(given["request"]), source=LogSource.AGENT)
        case "LogCancel":
            return LogCancel(request_id=int(given["request"]))
        case "LogChunk":
            return LogChunk(request_id=int(given["request"]))
        case other:
            raise AssertionError(f"no message {other!r}")


def arguments(words: Sequence[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words)


def log_of(text: str) -> tuple[LogEntry, ...]:
    """Read `1,2` as two entries with these sequences."""
    return tuple(LogEntry(sequence=int(number), time="", type="Normal", reason="R", message="") for number in text.split(",") if number)


def samples_of(text: str) -> tuple[Sample, ...]:
    """Read `1,2` as two samples with these sequences."""
    return tuple(Sample(sequence=int(number), age_seconds=0.0, readings=()) for number in text.split(",") if number)


def describe(message: Message) -> str:
    """Return a message as a transcript shows it: its name and what matters of it."""
    match message:
        case AssignmentOffer(number=number):
            return f"AssignmentOffer {number}"
        case AssignmentAnswer(number=number, verdict=verdict):
            return f"AssignmentAnswer {number} {verdict.value}"
        case Report(log=log, samples=samples):
            return " ".join(["Report", *(f"log {entry.sequence}" for entry in log), *(f"sample {one.sequence}" for one in samples)])
        case ReportAck(log_sequence=sequence, sample_sequence=sample_sequence):
            return f"ReportAck {sequence} sample {sample_sequence}" if sample_sequence else f"ReportAck {sequence}"
        case LogChunk(request_id=number, lines=lines):
            return f"LogChunk {number} with {len(lines)} lines"
        case GrantRequest(request_id=number) | Grant(request_id=number) | LogRequest(request_id=number) | LogCancel(request_id=number):
            return f"{type(message).__name__} {number}"
        case Goodbye(reason=reason):
            return f"Goodbye {reason.value}"
        case _:
            return type(message).__name__
