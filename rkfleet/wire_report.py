"""Reports to protobuf and back: facts, the whole state of a board, its log, and the samples of an outage.

In: the frozen values of `rkfleet/report.py`. Out: their messages in `proto/rkfleet/v1/agent.proto`, and the way back. `wire.py` calls it
for what Hello and Report carry. It stands apart from the conversation's messages because it follows the schema of Board and Replica, and
they follow the session.

A series of a sample is written to files that Prometheus reads, so it is a metric of rkfleet and nothing else: what is none is BadRequest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final, Literal, get_args

from rkfleet.conditions import Condition, Status
from rkfleet.errors import BadRequest
from rkfleet.kinds.board import DriverVersion, Runtime, Versions
from rkfleet.kinds.replica import ExitReason, LastExit, Measured, Progress
from rkfleet.report import (
    LOG_ENTRIES_MAX,
    SAMPLES_PER_REPORT_MAX,
    SERIES_LENGTH_MAX,
    SERIES_MAX,
    BoardFacts,
    BoardState,
    LogEntry,
    ReplicaState,
    RunningWorker,
    Sample,
)
from rkfleet.session import Report
from rkfleet.v1 import agent_pb2 as pb
from rkfleet.wire_limits import TEXT_LENGTH_MAX, listed, milliseconds, one_of, text

__all__ = ["decode_facts", "decode_report", "encode_facts", "encode_report"]

REPLICAS_MAX: Final = 256  # As `Board.status.running` in the schema.
CONDITIONS_MAX: Final = 32  # As every list of conditions in the schema.
RUNTIMES_MAX: Final = 16  # As `Board.status.runtimes` in the schema.

_STATUSES: Final[tuple[Status, ...]] = get_args(Status)
_EVENT_TYPES: Final[tuple[Literal["Normal", "Warning"], ...]] = ("Normal", "Warning")
_EXIT_REASONS: Final[tuple[ExitReason, ...]] = get_args(ExitReason)
_LABEL: Final = r'[a-z_]+="(?:[^"\\\n]|\\["\\n])*"'
_SERIES: Final = re.compile(rf"rkfleet_[a-z0-9_]+(?:\{{{_LABEL}(?:,{_LABEL})*\}})?")


def encode_report(report: Report) -> pb.Report:
    """Return a report as protobuf."""
    series = {name: None for sample in report.samples for name, _ in sample.readings}
    places = {name: place for place, name in enumerate(series)}
    return pb.Report(
        state=_encode_state(report.state),
        log=[_encode_log_entry(entry) for entry in report.log],
        log_dropped=report.log_dropped,
        samples=[_encode_sample(sample, places) for sample in report.samples],
        series=series,
        samples_dropped=report.samples_dropped,
    )


def decode_report(report: pb.Report, state: BoardState | None = None) -> Report:
    """Read a report; `state` is its state, where the caller knows it already.

    Raises:
        BadRequest: It breaks a limit.
    """
    return Report(
        state=_decode_state(report.state) if state is None else state,
        log=tuple(_decode_log_entry(one) for one in listed("log", report.log, LOG_ENTRIES_MAX)),
        log_dropped=report.log_dropped,
        samples=_decode_samples(report),
        samples_dropped=report.samples_dropped,
    )


def encode_facts(facts: BoardFacts) -> pb.BoardFacts:
    """Return what a machine has as protobuf."""
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


def decode_facts(facts: pb.BoardFacts) -> BoardFacts:
    """Read what a machine has.

    Raises:
        BadRequest: It breaks a limit.
    """
    driver = DriverVersion(
        family=text("npu_driver_family", facts.npu_driver_family), version=text("npu_driver_version", facts.npu_driver_version)
    )
    return BoardFacts(
        soc=text("soc", facts.soc),
        simulated=facts.simulated,
        memory_bytes=facts.memory_bytes,
        storage_bytes=facts.storage_bytes,
        npu_cores=facts.npu_cores,
        allocatable_memory_bytes=facts.allocatable_memory_bytes,
        allocatable_storage_bytes=facts.allocatable_storage_bytes,
        versions=Versions(agent=text("agent_version", facts.agent_version), kernel=text("kernel", facts.kernel), npu_driver=driver),
        runtimes=tuple(
            Runtime(
                name=text("runtime name", one.name),
                version=text("runtime version", one.version),
                backend=text("runtime backend", one.backend),
            )
            for one in listed("runtimes", facts.runtimes, RUNTIMES_MAX)
        ),
    )


def _encode_state(state: BoardState) -> pb.BoardState:
    return pb.BoardState(
        assignment_number=state.assignment_number,
        facts=encode_facts(state.facts),
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
        facts=decode_facts(state.facts),
        serving_url=text("serving_url", state.serving_url),
        conditions=tuple(_decode_condition(one) for one in listed("conditions", state.conditions, CONDITIONS_MAX)),
        replicas=tuple(_decode_replica(one) for one in listed("replicas", state.replicas, REPLICAS_MAX)),
        running=tuple(
            RunningWorker(
                namespace=text("namespace", one.namespace),
                name=text("name", one.name),
                uid=text("uid", one.uid),
                memory_bytes=one.memory_bytes,
            )
            for one in listed("running", state.running, REPLICAS_MAX)
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
        reason = one_of("exit reason", replica.last_exit.reason, _EXIT_REASONS)
        last_exit = LastExit(
            reason=reason,
            message=replica.last_exit.message[:TEXT_LENGTH_MAX],
            time=text("exit time", replica.last_exit.time),
        )
    return ReplicaState(
        namespace=text("namespace", replica.namespace),
        name=text("name", replica.name),
        uid=text("uid", replica.uid),
        observed_generation=replica.observed_generation,
        endpoint=text("endpoint", replica.endpoint),
        progress=progress,
        measured=measured,
        restarts=replica.restarts,
        last_exit=last_exit,
        conditions=tuple(_decode_condition(one) for one in listed("conditions", replica.conditions, CONDITIONS_MAX)),
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
    status = one_of("condition status", condition.status, _STATUSES)
    return Condition(
        type=text("condition type", condition.type),
        status=status,
        reason=text("condition reason", condition.reason),
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
        age_milliseconds=None if entry.age_seconds is None else milliseconds(entry.age_seconds),
    )


def _decode_log_entry(entry: pb.LogEntry) -> LogEntry:
    type_ = one_of("log type", entry.type, _EVENT_TYPES)
    return LogEntry(
        sequence=entry.sequence,
        time=text("log time", entry.time),
        type=type_,
        reason=text("log reason", entry.reason),
        message=entry.message[:TEXT_LENGTH_MAX],
        replica_namespace=text("replica_namespace", entry.replica_namespace),
        replica_name=text("replica_name", entry.replica_name),
        replica_uid=text("replica_uid", entry.replica_uid),
        age_seconds=entry.age_milliseconds / 1000 if entry.HasField("age_milliseconds") else None,
    )


def _figure(message: pb.Measured, field: Literal["time_to_first_token_seconds", "decode_tokens_per_second"]) -> float | None:
    """Read a figure that may be absent; what is not a number says nothing."""
    value: float = getattr(message, field)
    return value if message.HasField(field) and math.isfinite(value) else None


def _encode_sample(sample: Sample, places: dict[str, int]) -> pb.Sample:
    return pb.Sample(
        sequence=sample.sequence,
        age_milliseconds=milliseconds(sample.age_seconds),
        series=[places[name] for name, _ in sample.readings],
        values=[value for _, value in sample.readings],
    )


def _decode_samples(report: pb.Report) -> tuple[Sample, ...]:
    samples = listed("samples", report.samples, SAMPLES_PER_REPORT_MAX)
    series = listed("series", report.series, SAMPLES_PER_REPORT_MAX * SERIES_MAX)
    for name in series:
        if len(name) > SERIES_LENGTH_MAX or not _SERIES.fullmatch(name):
            raise BadRequest(f"series {name[:80]!r} is no metric of rkfleet with at most {SERIES_LENGTH_MAX} characters")
    return tuple(_decode_sample(sample, series) for sample in samples)


def _decode_sample(sample: pb.Sample, series: Sequence[str]) -> Sample:
    places = listed("series of a sample", sample.series, SERIES_MAX)
    if len(sample.values) != len(places) or any(place >= len(series) for place in places):
        raise BadRequest(f"sample {sample.sequence} has {len(sample.values)} values for {len(places)} series of {len(series)}")
    readings = zip(places, sample.values, strict=True)
    return Sample(
        sequence=sample.sequence,
        age_seconds=sample.age_milliseconds / 1000,
        readings=tuple((series[place], value) for place, value in readings if math.isfinite(value)),
    )
