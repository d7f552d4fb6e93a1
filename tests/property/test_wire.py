"""Session messages survive the wire, and nothing that comes over it passes a limit."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rkfleet.conditions import Condition
from rkfleet.errors import BadRequest
from rkfleet.kinds.board import DriverVersion, Runtime, Versions
from rkfleet.kinds.replica import LastExit, Measured, Progress
from rkfleet.report import BoardFacts, BoardState, LogEntry, ReplicaState, RunningWorker, Sample
from rkfleet.session import (
    LOG_LINE_LENGTH_MAX,
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
    Report,
    ReportAck,
    Verdict,
    Welcome,
)
from rkfleet.v1 import agent_pb2 as pb
from rkfleet.wire import (
    TIME_MAX,
    decode_board_message,
    decode_controller_message,
    encode_board_message,
    encode_controller_message,
)
from rkfleet.wire_limits import TEXT_LENGTH_MAX

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
count = st.integers(0, 2**53)
small = st.integers(0, 2**31)
sha256 = st.text("0123456789abcdef", min_size=64, max_size=64)
milliseconds = st.integers(0, 10**6).map(lambda number: number / 1000)
moment = st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)).map(lambda at: at.replace(microsecond=0))  # noqa: DTZ001
figure = st.none() | st.floats(0, 1e6)

condition_values = st.builds(
    Condition, type=text, status=st.sampled_from(["True", "False", "Unknown"]), reason=text, message=text, observed_generation=count
)  # fmt: skip
versions = st.builds(Versions, agent=text, kernel=text, npu_driver=st.builds(DriverVersion, family=text, version=text))
facts = st.builds(
    BoardFacts, soc=text, simulated=st.booleans(), memory_bytes=count, storage_bytes=count, npu_cores=small,
    allocatable_memory_bytes=count, allocatable_storage_bytes=count, versions=versions,
    runtimes=st.lists(st.builds(Runtime, name=text, version=text, backend=text), max_size=3).map(tuple),
)  # fmt: skip
replica = st.builds(
    ReplicaState, namespace=text, name=text, uid=text, observed_generation=count, endpoint=text, restarts=small,
    progress=st.none() | st.builds(Progress, fetched_bytes=count, total_bytes=count),
    measured=st.none() | st.builds(Measured, time_to_first_token_seconds=figure, decode_tokens_per_second=figure),
    last_exit=st.none() | st.builds(LastExit, reason=st.sampled_from(["Crashed", "Killed", "Hung"]), message=text, time=text),
    conditions=st.lists(condition_values, max_size=3).map(tuple),
)  # fmt: skip
state = st.builds(
    BoardState, assignment_number=count, facts=facts, serving_url=text, conditions=st.lists(condition_values, max_size=2).map(tuple),
    replicas=st.lists(replica, max_size=2).map(tuple),
    running=st.lists(st.builds(RunningWorker, namespace=text, name=text, uid=text, memory_bytes=count), max_size=2).map(tuple),
)  # fmt: skip
entry = st.builds(
    LogEntry, sequence=count, time=text, type=st.sampled_from(["Normal", "Warning"]), reason=text, message=text,
    replica_namespace=text, replica_name=text, replica_uid=text, age_seconds=st.none() | milliseconds,
)  # fmt: skip
series = st.builds(
    lambda name, labels: f"rkfleet_{name}" + (f"{{{','.join(labels)}}}" if labels else ""), st.text("abc_", min_size=1, max_size=5),
    st.lists(st.text("ab c", max_size=3).map(lambda value: f'label="{value}"'), max_size=2),
)  # fmt: skip
sample = st.builds(
    Sample, sequence=count, age_seconds=milliseconds,
    readings=st.lists(st.tuples(series, st.floats(-1e9, 1e9)), max_size=3).map(tuple),
)  # fmt: skip
goodbye = st.builds(Goodbye, reason=st.sampled_from(GoodbyeReason), message=text, reconnect_after_seconds=milliseconds)

log_line = st.builds(
    LogLine, time_milliseconds=st.integers(0, TIME_MAX),
    text=st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=20),
)  # fmt: skip

board_messages = st.one_of(
    st.builds(
        Hello, protocol=small, fleet_id=text, machine_id=text, boot_id=text, assignment_number=count,
        assignment_sha256=sha256 | st.just(""), facts=facts, serving_url=text, answers_logs=st.booleans(),
    ),
    st.builds(AssignmentAnswer, number=count, verdict=st.sampled_from(Verdict), reason=text),
    st.builds(
        Report, state=state, log=st.lists(entry, max_size=2).map(tuple), log_dropped=count,
        samples=st.lists(sample, max_size=3).map(tuple), samples_dropped=count,
    ),
    st.builds(GrantRequest, request_id=count, digests=st.lists(sha256.map(lambda hex_: f"sha256:{hex_}"), max_size=3).map(tuple)),
    st.builds(
        LogChunk, request_id=count, lines=st.lists(log_line, max_size=3).map(tuple), next=count, newest=count, dropped=count, run=small,
        ended=st.booleans(), refusal=text,
    ),
    goodbye,
)  # fmt: skip
controller_messages = st.one_of(
    st.builds(
        Welcome, fleet_id=text, session_number=count, heartbeat_seconds=milliseconds, report_interval_seconds_min=milliseconds,
        time=st.none() | moment, keeps_samples=st.booleans(),
    ),
    st.builds(AssignmentOffer, number=count, body=st.binary(max_size=50), sha256=text),
    st.builds(ReportAck, log_sequence=count, sample_sequence=count),
    st.builds(
        Grant, request_id=count, sources=st.lists(text, max_size=3).map(tuple), token=text, expires_in_seconds=small, refusal=text
    ),
    st.builds(
        LogRequest, request_id=count, source=st.sampled_from(LogSource), replica_uid=text, run=st.integers(-(2**31), 2**31 - 1),
        after=st.none() | count, tail_lines=st.none() | small, since_seconds=small, wait=st.booleans(),
    ),
    st.builds(LogCancel, request_id=count),
    goodbye,
)  # fmt: skip


@given(board_messages)
def test_what_a_board_says_arrives_as_it_was_said(message: Any) -> None:
    """Encoding and decoding are each other's inverse."""
    encoded = encode_board_message(message).SerializeToString()
    assert decode_board_message(pb.SessionRequest.FromString(encoded)) == message


@given(controller_messages)
def test_what_the_controller_says_arrives_as_it_was_said(message: Any) -> None:
    """Encoding and decoding are each other's inverse."""
    encoded = encode_controller_message(message).SerializeToString()
    assert decode_controller_message(pb.SessionResponse.FromString(encoded)) == message


@given(st.binary(max_size=200))
def test_bytes_that_protobuf_can_read_are_a_message_or_a_bad_request(body: bytes) -> None:
    """No other error comes out of decoding, whatever a peer sends."""
    for message_type, decode in ((pb.SessionRequest, decode_board_message), (pb.SessionResponse, decode_controller_message)):
        try:
            message = message_type.FromString(body)
        except Exception:  # noqa: BLE001 (protobuf refuses; gRPC never shows it to us)
            continue
        with contextlib.suppress(BadRequest):
            decode(message)


LONG = "x" * (TEXT_LENGTH_MAX + 1)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (pb.SessionRequest(hello=pb.Hello(fleet_id=LONG)), "fleet_id has 4097 characters"),
        (pb.SessionRequest(hello=pb.Hello(assignment_sha256="zz")), "is not 64 hex digits"),
        (pb.SessionRequest(hello=pb.Hello(facts=pb.BoardFacts(runtimes=[pb.Runtime()] * 17))), "runtimes has 17 entries, at most 16"),
        (pb.SessionRequest(report=pb.Report(log=[pb.LogEntry(type="Normal")] * 257)), "log has 257 entries, at most 256"),
        (pb.SessionRequest(report=pb.Report(log=[pb.LogEntry(type="Odd")])), "log type 'Odd' must be one of Normal, Warning"),
        (pb.SessionRequest(report=pb.Report(state=pb.BoardState(replicas=[pb.ReplicaState()] * 257))), "replicas has 257 entries"),
        (pb.SessionRequest(report=pb.Report(state=pb.BoardState(conditions=[pb.Condition(status="Yes")]))), "condition status 'Yes'"),
        (
            pb.SessionRequest(report=pb.Report(state=pb.BoardState(replicas=[pb.ReplicaState(last_exit=pb.LastExit(reason="Bored"))]))),
            "exit reason 'Bored' must be one of Crashed",
        ),
        (pb.SessionRequest(grant_request=pb.GrantRequest(digests=["sha256:x"])), "is not sha256: and 64 hex digits"),
        (pb.SessionRequest(grant_request=pb.GrantRequest(digests=["x"] * 65)), "digests has 65 entries"),
        (pb.SessionRequest(log_chunk=pb.LogChunk(lines=[pb.LogLine()] * 201)), "lines has 201 entries, at most 200 are allowed"),
    ],
)
def test_a_message_over_a_limit_is_refused_with_field_value_and_limit(message: pb.SessionRequest, reason: str) -> None:
    """The sentence goes into the Goodbye, so that whoever wrote the peer can mend it."""
    with pytest.raises(BadRequest) as caught:
        decode_board_message(message)
    assert reason in caught.value.message


def test_a_line_of_a_board_moves_no_cursor_and_is_one_short_line() -> None:
    """Whatever a board sends as a line, a terminal that shows it is safe, and its time can be written down."""
    line = pb.LogLine(time_milliseconds=2**64 - 1, text="a\x1b[2Jb\nc\td\x9b" + "x" * 600)
    chunk = decode_board_message(pb.SessionRequest(log_chunk=pb.LogChunk(lines=[line])))
    assert isinstance(chunk, LogChunk)
    assert chunk.lines[0].text.startswith("a[2Jbc\tdx")
    assert len(chunk.lines[0].text) <= LOG_LINE_LENGTH_MAX
    assert chunk.lines[0].time_milliseconds == TIME_MAX


def test_what_a_newer_peer_adds_is_tolerated() -> None:
    """Unknown enum values become the careful known one; figures that are no numbers say nothing."""
    decoded = decode_board_message(pb.SessionRequest(assignment_answer=pb.AssignmentAnswer(verdict=77)))  # type: ignore[arg-type]
    assert isinstance(decoded, AssignmentAnswer)
    assert decoded.verdict is Verdict.INVALID

    unknown = decode_controller_message(pb.SessionResponse(goodbye=pb.Goodbye(reason=77, message="moved")))  # type: ignore[arg-type]
    assert unknown == Goodbye(reason=GoodbyeReason.SHUTDOWN, message="moved")

    asked = decode_controller_message(pb.SessionResponse(log_request=pb.LogRequest(source=77)))  # type: ignore[arg-type]
    assert asked == LogRequest(request_id=0, source=LogSource.UNSPECIFIED)

    measured = pb.Measured(time_to_first_token_seconds=float("nan"), decode_tokens_per_second=float("inf"))
    report = decode_board_message(pb.SessionRequest(report=pb.Report(state=pb.BoardState(replicas=[pb.ReplicaState(measured=measured)]))))
    assert isinstance(report, Report)
    assert report.state.replicas[0].measured == Measured()
