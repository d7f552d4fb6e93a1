"""Session messages to protobuf and back.

In: the frozen messages of `rkfleet/session.py`. Out: the generated messages of `proto/rkfleet/v1/agent.proto`, and the way back. Called by
the two places that pump a stream (`controller/sessions/servicer.py`, `agent/session/runner.py`). It stands apart so that protocols,
transcripts and status know nothing of protobuf, and so that every rule about what may come in stands in one file.

Decoding is tolerant of what a newer peer adds (fields and enum values that are unknown here) and strict about what is known: a list or a
text over its named limit, or a word that is none of a closed set, is BadRequest, and the session ends with Goodbye PROTOCOL.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final, Literal, TypeVar, get_args

from rkfleet.conditions import Condition, Status
from rkfleet.errors import BadRequest
from rkfleet.kinds.board import DriverVersion, Runtime, Versions
from rkfleet.kinds.replica import ExitReason, LastExit, Measured, Progress
from rkfleet.report import LOG_ENTRIES_MAX, BoardFacts, BoardState, LogEntry, ReplicaState, RunningWorker
from rkfleet.session import (
    LOG_CHUNK_LINES_MAX,
    LOG_LINE_LENGTH_MAX,
    AssignmentAnswer,
    AssignmentOffer,
    BoardMessage,
    ControllerMessage,
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
    Report,
    ReportAck,
    Verdict,
    Welcome,
)  # fmt: skip
from rkfleet.v1 import agent_pb2 as pb

__all__ = [
    "MESSAGE_BYTES_MAX",
    "decode_board_message",
    "decode_controller_message",
    "decode_report",
    "encode_board_message",
    "encode_controller_message",
]

MESSAGE_BYTES_MAX: Final = 2 << 20  # Twice the largest assignment (ASSIGNMENT_BYTES_MAX); a whole report is some tens of kilobytes.
TEXT_LENGTH_MAX: Final = 4096  # Sentences, versions, URLs; as `lastExit.message` in the schema.
REPLICAS_MAX: Final = 256  # As `Board.status.running` in the schema.
CONDITIONS_MAX: Final = 32  # As every list of conditions in the schema.
RUNTIMES_MAX: Final = 16  # As `Board.status.runtimes` in the schema.
DIGESTS_MAX: Final = 64  # Files of one variant; a model has a handful.
LOG_TIME_MAX: Final = 253_402_300_799_999  # The last millisecond of the year 9999, which every reader can still write down.
SOURCES_MAX: Final = 16  # Registry and peers of one site.

T = TypeVar("T")
Word = TypeVar("Word", bound=str)

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")  # All but the tab: a line is one line, and moves no cursor.
_STATUSES: Final[tuple[Status, ...]] = get_args(Status)
_EVENT_TYPES: Final[tuple[Literal["Normal", "Warning"], ...]] = ("Normal", "Warning")
_EXIT_REASONS: Final[tuple[ExitReason, ...]] = get_args(ExitReason)


def encode_board_message(message: BoardMessage) -> pb.SessionRequest:
    """Return what a board sends as protobuf."""
    match message:
        case Hello():
            return pb.SessionRequest(hello=_encode_hello(message))
        case AssignmentAnswer(number=number, verdict=verdict, reason=reason):
            answer = pb.AssignmentAnswer(number=number, verdict=f"VERDICT_{verdict.value}", reason=reason)
            return pb.SessionRequest(assignment_answer=answer)
        case Report(state=state, log=log, log_dropped=dropped):
            entries = [_encode_log_entry(entry) for entry in log]
            return pb.SessionRequest(report=pb.Report(state=_encode_state(state), log=entries, log_dropped=dropped))
        case GrantRequest(request_id=request_id, digests=digests):
            return pb.SessionRequest(grant_request=pb.GrantRequest(request_id=request_id, digests=digests))
        case LogChunk():
            return pb.SessionRequest(log_chunk=_encode_log_chunk(message))
        case Goodbye():
            return pb.SessionRequest(goodbye=_encode_goodbye(message))


def decode_board_message(message: pb.SessionRequest) -> BoardMessage:
    """Read what a board sent.

    Raises:
        BadRequest: The message is of no known kind or breaks a limit.
    """
    match message.WhichOneof("message"):
        case "hello":
            return _decode_hello(message.hello)
        case "assignment_answer":
            answer = message.assignment_answer
            return AssignmentAnswer(number=answer.number, verdict=_verdict(answer.verdict), reason=_text("reason", answer.reason))
        case "report":
            return decode_report(message.report)
        case "grant_request":
            digests = _list("digests", message.grant_request.digests, DIGESTS_MAX)
            if bad := next((digest for digest in digests if not _DIGEST.fullmatch(digest)), None):
                raise BadRequest(f"digest {bad[:80]!r} is not sha256: and 64 hex digits")
            return GrantRequest(request_id=message.grant_request.request_id, digests=tuple(digests))
        case "log_chunk":
            return _decode_log_chunk(message.log_chunk)
        case "goodbye":
            return _decode_goodbye(message.goodbye)
        case _:
            raise BadRequest("the board sent a message of a kind that this controller does not know")


def decode_report(report: pb.Report, state: BoardState | None = None) -> Report:
    """Read a report; `state` is its state, where the caller knows it already.

    Raises:
        BadRequest: It breaks a limit.
    """
    return Report(
        state=_decode_state(report.state) if state is None else state,
        log=tuple(_decode_log_entry(one) for one in _list("log", report.log, LOG_ENTRIES_MAX)),
        log_dropped=report.log_dropped,
    )


def encode_controller_message(message: ControllerMessage) -> pb.SessionResponse:
    """Return what the controller sends as protobuf."""
    match message:
        case Welcome():
            return pb.SessionResponse(
                welcome=pb.Welcome(
                    fleet_id=message.fleet_id,
                    session_number=message.session_number,
                    heartbeat_milliseconds=_milliseconds(message.heartbeat_seconds),
                    report_interval_min_milliseconds=_milliseconds(message.report_interval_seconds_min),
                )
            )
        case AssignmentOffer(number=number, body=body, sha256=sha256):
            return pb.SessionResponse(assignment_offer=pb.AssignmentOffer(number=number, body=body, sha256=sha256))
        case ReportAck(log_sequence=sequence):
            return pb.SessionResponse(report_ack=pb.ReportAck(log_sequence=sequence))
        case Grant():
            return pb.SessionResponse(
                grant=pb.Grant(
                    request_id=message.request_id,
                    sources=message.sources,
                    token=message.token,
                    expires_in_seconds=message.expires_in_seconds,
                    refusal=message.refusal,
                )
            )
        case LogRequest():
            return pb.SessionResponse(log_request=_encode_log_request(message))
        case LogCancel(request_id=request_id):
            return pb.SessionResponse(log_cancel=pb.LogCancel(request_id=request_id))
        case Goodbye():
            return pb.SessionResponse(goodbye=_encode_goodbye(message))


def decode_controller_message(message: pb.SessionResponse) -> ControllerMessage:
    """Read what the controller sent.

    Raises:
        BadRequest: The message is of no known kind or breaks a limit.
    """
    match message.WhichOneof("message"):
        case "welcome":
            welcome = message.welcome
            return Welcome(
                fleet_id=_text("fleet_id", welcome.fleet_id),
                session_number=welcome.session_number,
                heartbeat_seconds=welcome.heartbeat_milliseconds / 1000,
                report_interval_seconds_min=welcome.report_interval_min_milliseconds / 1000,
            )
        case "assignment_offer":
            offer = message.assignment_offer
            return AssignmentOffer(number=offer.number, body=offer.body, sha256=_text("sha256", offer.sha256))
        case "report_ack":
            return ReportAck(log_sequence=message.report_ack.log_sequence)
        case "grant":
            grant = message.grant
            return Grant(
                request_id=grant.request_id,
                sources=tuple(_list("sources", grant.sources, SOURCES_MAX)),
                token=grant.token,
                expires_in_seconds=grant.expires_in_seconds,
                refusal=_text("refusal", grant.refusal),
            )
        case "log_request":
            return _decode_log_request(message.log_request)
        case "log_cancel":
            return LogCancel(request_id=message.log_cancel.request_id)
        case "goodbye":
            return _decode_goodbye(message.goodbye)
        case _:
            raise BadRequest("the controller sent a message of a kind that this agent does not know")


def _encode_hello(hello: Hello) -> pb.Hello:
    return pb.Hello(
        protocol=hello.protocol,
        fleet_id=hello.fleet_id,
        machine_id=hello.machine_id,
        boot_id=hello.boot_id,
        assignment_number=hello.assignment_number,
        assignment_sha256=hello.assignment_sha256,
        facts=_encode_facts(hello.facts),
        serving_url=hello.serving_url,
        answers_logs=hello.answers_logs,
    )


def _decode_hello(hello: pb.Hello) -> Hello:
    held = hello.assignment_sha256
    if held and not _SHA256.fullmatch(held):
        raise BadRequest(f"assignment_sha256 {held[:80]!r} is not 64 hex digits")
    return Hello(
        protocol=hello.protocol,
        fleet_id=_text("fleet_id", hello.fleet_id),
        machine_id=_text("machine_id", hello.machine_id),
        boot_id=_text("boot_id", hello.boot_id),
        assignment_number=hello.assignment_number,
        assignment_sha256=held,
        facts=_decode_facts(hello.facts),
        serving_url=_text("serving_url", hello.serving_url),
        answers_logs=hello.answers_logs,
    )


def _verdict(code: int) -> Verdict:
    """Read a verdict; one of a newer board that is not known here is not an acceptance."""
    try:
        return Verdict(pb.AssignmentAnswer.Verdict.Name(code).removeprefix("VERDICT_"))
    except ValueError:
        return Verdict.INVALID


def _encode_log_request(request: LogRequest) -> pb.LogRequest:
    return pb.LogRequest(
        request_id=request.request_id,
        source=f"SOURCE_{request.source.value}",
        replica_uid=request.replica_uid,
        run=request.run,
        after=request.after,
        tail_lines=request.tail_lines,
        since_seconds=request.since_seconds,
        wait=request.wait,
    )


def _decode_log_request(request: pb.LogRequest) -> LogRequest:
    try:
        source = LogSource(pb.LogRequest.Source.Name(request.source).removeprefix("SOURCE_"))
    except ValueError:
        source = LogSource.UNSPECIFIED
    return LogRequest(
        request_id=request.request_id,
        source=source,
        replica_uid=_text("replica_uid", request.replica_uid),
        run=request.run,
        after=request.after if request.HasField("after") else None,
        tail_lines=request.tail_lines if request.HasField("tail_lines") else None,
        since_seconds=request.since_seconds,
        wait=request.wait,
    )


def _encode_log_chunk(chunk: LogChunk) -> pb.LogChunk:
    return pb.LogChunk(
        request_id=chunk.request_id,
        lines=[pb.LogLine(time_milliseconds=line.time_milliseconds, text=line.text) for line in chunk.lines],
        next=chunk.next,
        newest=chunk.newest,
        dropped=chunk.dropped,
        run=chunk.run,
        ended=chunk.ended,
        refusal=chunk.refusal,
    )


def _decode_log_chunk(chunk: pb.LogChunk) -> LogChunk:
    return LogChunk(
        request_id=chunk.request_id,
        lines=tuple(
            LogLine(time_milliseconds=min(line.time_milliseconds, LOG_TIME_MAX), text=_CONTROL.sub("", line.text[:LOG_LINE_LENGTH_MAX]))
            for line in _list("lines", chunk.lines, LOG_CHUNK_LINES_MAX)
        ),
        next=chunk.next,
        newest=chunk.newest,
        dropped=chunk.dropped,
        run=chunk.run,
        ended=chunk.ended,
        refusal=_text("refusal", chunk.refusal),
    )


def _encode_goodbye(goodbye: Goodbye) -> pb.Goodbye:
    return pb.Goodbye(
        reason=f"REASON_{goodbye.reason.value}",
        message=goodbye.message,
        reconnect_after_milliseconds=_milliseconds(goodbye.reconnect_after_seconds),
    )


def _decode_goodbye(goodbye: pb.Goodbye) -> Goodbye:
    try:
        reason = GoodbyeReason(pb.Goodbye.Reason.Name(goodbye.reason).removeprefix("REASON_"))
    except ValueError:
        reason = GoodbyeReason.SHUTDOWN  # A reason of a newer peer: it leaves, and says in `message` why.
    return Goodbye(
        reason=reason, message=goodbye.message[:TEXT_LENGTH_MAX], reconnect_after_seconds=goodbye.reconnect_after_milliseconds / 1000
    )


def _encode_facts(facts: BoardFacts) -> pb.BoardFacts:
    return pb.BoardFacts(
        soc=facts.soc,
        simulated=facts.simulated,
        memory_bytes=facts.memory_bytes,
        storage_bytes=facts.storage_bytes,
        npu_cores=facts.npu_cores,
        allocatable_memory_bytes=facts.allocatable_memory_bytes,
        allocatable_storage_bytes=facts.allocatable_storage_bytes,
        agent_version=facts.versions.agent,
        kernel=facts.versions.kernel,
        npu_driver_family=facts.versions.npu_driver.family,
        npu_driver_version=facts.versions.npu_driver.version,
        runtimes=[pb.Runtime(name=one.name, version=one.version, backend=one.backend) for one in facts.runtimes],
    )


def _decode_facts(facts: pb.BoardFacts) -> BoardFacts:
    driver = DriverVersion(
        family=_text("npu_driver_family", facts.npu_driver_family), version=_text("npu_driver_version", facts.npu_driver_version)
    )
    return BoardFacts(
        soc=_text("soc", facts.soc),
        simulated=facts.simulated,
        memory_bytes=facts.memory_bytes,
        storage_bytes=facts.storage_bytes,
        npu_cores=facts.npu_cores,
        allocatable_memory_bytes=facts.allocatable_memory_bytes,
        allocatable_storage_bytes=facts.allocatable_storage_bytes,
        versions=Versions(agent=_text("agent_version", facts.agent_version), kernel=_text("kernel", facts.kernel), npu_driver=driver),
        runtimes=tuple(
            Runtime(
                name=_text("runtime name", one.name),
                version=_text("runtime version", one.version),
                backend=_text("runtime backend", one.backend),
            )
            for one in _list("runtimes", facts.runtimes, RUNTIMES_MAX)
        ),
    )


def _encode_state(state: BoardState) -> pb.BoardState:
    return pb.BoardState(
        assignment_number=state.assignment_number,
        facts=_encode_facts(state.facts),
        serving_url=state.serving_url,
        conditions=[_encode_condition(one) for one in state.conditions],
        replicas=[_encode_replica(one) for one in state.replicas],
        running=[
            pb.RunningWorker(namespace=one.namespace, name=one.name, uid=one.uid, memory_bytes=one.memory_bytes) for one in state.running
        ],
    )


def _decode_state(state: pb.BoardState) -> BoardState:
    return BoardState(
        assignment_number=state.assignment_number,
        facts=_decode_facts(state.facts),
        serving_url=_text("serving_url", state.serving_url),
        conditions=tuple(_decode_condition(one) for one in _list("conditions", state.conditions, CONDITIONS_MAX)),
        replicas=tuple(_decode_replica(one) for one in _list("replicas", state.replicas, REPLICAS_MAX)),
        running=tuple(
            RunningWorker(
                namespace=_text("namespace", one.namespace),
                name=_text("name", one.name),
                uid=_text("uid", one.uid),
                memory_bytes=one.memory_bytes,
            )
            for one in _list("running", state.running, REPLICAS_MAX)
        ),
    )


def _encode_replica(replica: ReplicaState) -> pb.ReplicaState:
    message = pb.ReplicaState(
        namespace=replica.namespace,
        name=replica.name,
        uid=replica.uid,
        observed_generation=replica.observed_generation,
        endpoint=replica.endpoint,
        restarts=replica.restarts,
        conditions=[_encode_condition(one) for one in replica.conditions],
    )
    if replica.progress is not None:
        message.progress.CopyFrom(pb.Progress(fetched_bytes=replica.progress.fetched_bytes, total_bytes=replica.progress.total_bytes))
    if replica.measured is not None:
        message.measured.CopyFrom(
            pb.Measured(
                time_to_first_token_seconds=replica.measured.time_to_first_token_seconds,
                decode_tokens_per_second=replica.measured.decode_tokens_per_second,
            )
        )
    if replica.last_exit is not None:
        last = replica.last_exit
        message.last_exit.CopyFrom(pb.LastExit(reason=last.reason, message=last.message, time=last.time))
    return message


def _decode_replica(replica: pb.ReplicaState) -> ReplicaState:
    progress = measured = last_exit = None
    if replica.HasField("progress"):
        progress = Progress(fetched_bytes=replica.progress.fetched_bytes, total_bytes=replica.progress.total_bytes)
    if replica.HasField("measured"):
        figures = replica.measured
        measured = Measured(
            time_to_first_token_seconds=_figure(figures, "time_to_first_token_seconds"),
            decode_tokens_per_second=_figure(figures, "decode_tokens_per_second"),
        )
    if replica.HasField("last_exit"):
        reason = _one_of("exit reason", replica.last_exit.reason, _EXIT_REASONS)
        last_exit = LastExit(
            reason=reason,
            message=replica.last_exit.message[:TEXT_LENGTH_MAX],
            time=_text("exit time", replica.last_exit.time),
        )
    return ReplicaState(
        namespace=_text("namespace", replica.namespace),
        name=_text("name", replica.name),
        uid=_text("uid", replica.uid),
        observed_generation=replica.observed_generation,
        endpoint=_text("endpoint", replica.endpoint),
        progress=progress,
        measured=measured,
        restarts=replica.restarts,
        last_exit=last_exit,
        conditions=tuple(_decode_condition(one) for one in _list("conditions", replica.conditions, CONDITIONS_MAX)),
    )


def _encode_condition(condition: Condition) -> pb.Condition:
    return pb.Condition(
        type=condition.type,
        status=condition.status,
        reason=condition.reason,
        message=condition.message,
        observed_generation=condition.observed_generation,
    )


def _decode_condition(condition: pb.Condition) -> Condition:
    status = _one_of("condition status", condition.status, _STATUSES)
    return Condition(
        type=_text("condition type", condition.type),
        status=status,
        reason=_text("condition reason", condition.reason),
        message=condition.message[:TEXT_LENGTH_MAX],
        observed_generation=condition.observed_generation,
    )


def _encode_log_entry(entry: LogEntry) -> pb.LogEntry:
    return pb.LogEntry(
        sequence=entry.sequence,
        time=entry.time,
        type=entry.type,
        reason=entry.reason,
        message=entry.message,
        replica_namespace=entry.replica_namespace,
        replica_name=entry.replica_name,
        replica_uid=entry.replica_uid,
    )


def _decode_log_entry(entry: pb.LogEntry) -> LogEntry:
    type_ = _one_of("log type", entry.type, _EVENT_TYPES)
    return LogEntry(
        sequence=entry.sequence,
        time=_text("log time", entry.time),
        type=type_,
        reason=_text("log reason", entry.reason),
        message=entry.message[:TEXT_LENGTH_MAX],
        replica_namespace=_text("replica_namespace", entry.replica_namespace),
        replica_name=_text("replica_name", entry.replica_name),
        replica_uid=_text("replica_uid", entry.replica_uid),
    )


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _text(field: str, value: str) -> str:
    if len(value) > TEXT_LENGTH_MAX:
        raise BadRequest(f"{field} has {len(value)} characters, at most {TEXT_LENGTH_MAX} are allowed")
    return value


def _one_of(field: str, value: str, words: tuple[Word, ...]) -> Word:
    for word in words:
        if word == value:
            return word
    raise BadRequest(f"{field} {value[:80]!r} must be one of {', '.join(words)}")


def _list(field: str, values: Sequence[T], limit: int) -> Sequence[T]:
    if len(values) > limit:
        raise BadRequest(f"{field} has {len(values)} entries, at most {limit} are allowed")
    return values


def _figure(message: pb.Measured, field: Literal["time_to_first_token_seconds", "decode_tokens_per_second"]) -> float | None:
    """Read a figure that may be absent; what is not a number says nothing."""
    value: float = getattr(message, field)
    return value if message.HasField(field) and math.isfinite(value) else None
