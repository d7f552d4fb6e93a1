"""Session messages to protobuf and back.

In: the frozen messages of `rkfleet/session.py`. Out: the generated messages of `proto/rkfleet/v1/agent.proto`, and the way back. Called by
the two places that pump a stream (`controller/sessions/servicer.py`, `agent/session/pump.py`). It stands apart so that protocols,
transcripts and status know nothing of protobuf, and so that every rule about what may come in stands here, in `wire_report.py` (what a
report carries) and in `wire_limits.py`.

Decoding is tolerant of what a newer peer adds (fields and enum values that are unknown here) and strict about what is known: a list or a
text over its named limit, or a word that is none of a closed set, is BadRequest, and the session ends with Goodbye PROTOCOL.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from rkfleet.errors import BadRequest
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
)
from rkfleet.v1 import agent_pb2 as pb
from rkfleet.wire_limits import TEXT_LENGTH_MAX, listed, milliseconds, text
from rkfleet.wire_report import decode_facts, decode_report, encode_facts, encode_report

__all__ = [
    "MESSAGE_BYTES_MAX",
    "decode_board_message",
    "decode_controller_message",
    "decode_report",
    "encode_board_message",
    "encode_controller_message",
]

MESSAGE_BYTES_MAX: Final = 2 << 20  # Twice the largest assignment (ASSIGNMENT_BYTES_MAX); a whole report is some tens of kilobytes.
DIGESTS_MAX: Final = 64  # Files of one variant; a model has a handful.
TIME_MAX: Final = 253_402_300_799_999  # The last millisecond of the year 9999, which every reader can still write down.
SOURCES_MAX: Final = 16  # Registry and peers of one site.

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")  # All but the tab: a line is one line, and moves no cursor.


def encode_board_message(message: BoardMessage) -> pb.SessionRequest:
    """Return what a board sends as protobuf."""
    match message:
        case Hello():
            return pb.SessionRequest(hello=_encode_hello(message))
        case AssignmentAnswer(number=number, verdict=verdict, reason=reason):
            answer = pb.AssignmentAnswer(number=number, verdict=f"VERDICT_{verdict.value}", reason=reason)
            return pb.SessionRequest(assignment_answer=answer)
        case Report():
            return pb.SessionRequest(report=encode_report(message))
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
            return AssignmentAnswer(number=answer.number, verdict=_verdict(answer.verdict), reason=text("reason", answer.reason))
        case "report":
            return decode_report(message.report)
        case "grant_request":
            digests = listed("digests", message.grant_request.digests, DIGESTS_MAX)
            if bad := next((digest for digest in digests if not _DIGEST.fullmatch(digest)), None):
                raise BadRequest(f"digest {bad[:80]!r} is not sha256: and 64 hex digits")
            return GrantRequest(request_id=message.grant_request.request_id, digests=tuple(digests))
        case "log_chunk":
            return _decode_log_chunk(message.log_chunk)
        case "goodbye":
            return _decode_goodbye(message.goodbye)
        case _:
            raise BadRequest("the board sent a message of a kind that this controller does not know")


def encode_controller_message(message: ControllerMessage) -> pb.SessionResponse:
    """Return what the controller sends as protobuf."""
    match message:
        case Welcome():
            return pb.SessionResponse(
                welcome=pb.Welcome(
                    fleet_id=message.fleet_id,
                    session_number=message.session_number,
                    heartbeat_milliseconds=milliseconds(message.heartbeat_seconds),
                    report_interval_min_milliseconds=milliseconds(message.report_interval_seconds_min),
                    time_milliseconds=0 if message.time is None else milliseconds(message.time.timestamp()),
                    keeps_samples=message.keeps_samples,
                )
            )
        case AssignmentOffer(number=number, body=body, sha256=sha256):
            return pb.SessionResponse(assignment_offer=pb.AssignmentOffer(number=number, body=body, sha256=sha256))
        case ReportAck(log_sequence=log_sequence, sample_sequence=sample_sequence):
            return pb.SessionResponse(report_ack=pb.ReportAck(log_sequence=log_sequence, sample_sequence=sample_sequence))
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
                fleet_id=text("fleet_id", welcome.fleet_id),
                session_number=welcome.session_number,
                heartbeat_seconds=welcome.heartbeat_milliseconds / 1000,
                report_interval_seconds_min=welcome.report_interval_min_milliseconds / 1000,
                time=_decode_time(welcome.time_milliseconds),
                keeps_samples=welcome.keeps_samples,
            )
        case "assignment_offer":
            offer = message.assignment_offer
            return AssignmentOffer(number=offer.number, body=offer.body, sha256=text("sha256", offer.sha256))
        case "report_ack":
            return ReportAck(log_sequence=message.report_ack.log_sequence, sample_sequence=message.report_ack.sample_sequence)
        case "grant":
            grant = message.grant
            return Grant(
                request_id=grant.request_id,
                sources=tuple(listed("sources", grant.sources, SOURCES_MAX)),
                token=grant.token,
                expires_in_seconds=grant.expires_in_seconds,
                refusal=text("refusal", grant.refusal),
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
        facts=encode_facts(hello.facts),
        serving_url=hello.serving_url,
        answers_logs=hello.answers_logs,
    )


def _decode_hello(hello: pb.Hello) -> Hello:
    held = hello.assignment_sha256
    if held and not _SHA256.fullmatch(held):
        raise BadRequest(f"assignment_sha256 {held[:80]!r} is not 64 hex digits")
    return Hello(
        protocol=hello.protocol,
        fleet_id=text("fleet_id", hello.fleet_id),
        machine_id=text("machine_id", hello.machine_id),
        boot_id=text("boot_id", hello.boot_id),
        assignment_number=hello.assignment_number,
        assignment_sha256=held,
        facts=decode_facts(hello.facts),
        serving_url=text("serving_url", hello.serving_url),
        answers_logs=hello.answers_logs,
    )


def _decode_time(time_milliseconds: int) -> datetime | None:
    if not 0 < time_milliseconds <= TIME_MAX:
        return None
    return datetime.fromtimestamp(time_milliseconds / 1000, UTC)


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
        replica_uid=text("replica_uid", request.replica_uid),
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
            LogLine(time_milliseconds=min(line.time_milliseconds, TIME_MAX), text=_CONTROL.sub("", line.text[:LOG_LINE_LENGTH_MAX]))
            for line in listed("lines", chunk.lines, LOG_CHUNK_LINES_MAX)
        ),
        next=chunk.next,
        newest=chunk.newest,
        dropped=chunk.dropped,
        run=chunk.run,
        ended=chunk.ended,
        refusal=text("refusal", chunk.refusal),
    )


def _encode_goodbye(goodbye: Goodbye) -> pb.Goodbye:
    return pb.Goodbye(
        reason=f"REASON_{goodbye.reason.value}",
        message=goodbye.message,
        reconnect_after_milliseconds=milliseconds(goodbye.reconnect_after_seconds),
    )


def _decode_goodbye(goodbye: pb.Goodbye) -> Goodbye:
    try:
        reason = GoodbyeReason(pb.Goodbye.Reason.Name(goodbye.reason).removeprefix("REASON_"))
    except ValueError:
        reason = GoodbyeReason.SHUTDOWN  # A reason of a newer peer: it leaves, and says in `message` why.
    return Goodbye(
        reason=reason, message=goodbye.message[:TEXT_LENGTH_MAX], reconnect_after_seconds=goodbye.reconnect_after_milliseconds / 1000
    )
