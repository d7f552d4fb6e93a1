from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SessionRequest(_message.Message):
    __slots__ = ("hello", "assignment_answer", "report", "grant_request", "goodbye", "log_chunk")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_ANSWER_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    GRANT_REQUEST_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    LOG_CHUNK_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    assignment_answer: AssignmentAnswer
    report: Report
    grant_request: GrantRequest
    goodbye: Goodbye
    log_chunk: LogChunk
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., assignment_answer: _Optional[_Union[AssignmentAnswer, _Mapping]] = ..., report: _Optional[_Union[Report, _Mapping]] = ..., grant_request: _Optional[_Union[GrantRequest, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., log_chunk: _Optional[_Union[LogChunk, _Mapping]] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("welcome", "assignment_offer", "report_ack", "grant", "goodbye", "log_request", "log_cancel")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_OFFER_FIELD_NUMBER: _ClassVar[int]
    REPORT_ACK_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    LOG_REQUEST_FIELD_NUMBER: _ClassVar[int]
    LOG_CANCEL_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    assignment_offer: AssignmentOffer
    report_ack: ReportAck
    grant: Grant
    goodbye: Goodbye
    log_request: LogRequest
    log_cancel: LogCancel
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., assignment_offer: _Optional[_Union[AssignmentOffer, _Mapping]] = ..., report_ack: _Optional[_Union[ReportAck, _Mapping]] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., log_request: _Optional[_Union[LogRequest, _Mapping]] = ..., log_cancel: _Optional[_Union[LogCancel, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "fleet_id", "machine_id", "boot_id", "assignment_number", "assignment_sha256", "facts", "serving_url", "answers_logs")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FLEET_ID_FIELD_NUMBER: _ClassVar[int]
    MACHINE_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_SHA256_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    SERVING_URL_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_LOGS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    fleet_id: str
    machine_id: str
    boot_id: str
    assignment_number: int
    assignment_sha256: str
    facts: BoardFacts
    serving_url: str
    answers_logs: bool
    def __init__(self, protocol: _Optional[int] = ..., fleet_id: _Optional[str] = ..., machine_id: _Optional[str] = ..., boot_id: _Optional[str] = ..., assignment_number: _Optional[int] = ..., assignment_sha256: _Optional[str] = ..., facts: _Optional[_Union[BoardFacts, _Mapping]] = ..., serving_url: _Optional[str] = ..., answers_logs: bool = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("fleet_id", "session_number", "heartbeat_milliseconds", "report_interval_min_milliseconds", "time_milliseconds", "keeps_samples")
    FLEET_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    REPORT_INTERVAL_MIN_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    TIME_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    KEEPS_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    fleet_id: str
    session_number: int
    heartbeat_milliseconds: int
    report_interval_min_milliseconds: int
    time_milliseconds: int
    keeps_samples: bool
    def __init__(self, fleet_id: _Optional[str] = ..., session_number: _Optional[int] = ..., heartbeat_milliseconds: _Optional[int] = ..., report_interval_min_milliseconds: _Optional[int] = ..., time_milliseconds: _Optional[int] = ..., keeps_samples: bool = ...) -> None: ...

class AssignmentOffer(_message.Message):
    __slots__ = ("number", "body", "sha256")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    number: int
    body: bytes
    sha256: str
    def __init__(self, number: _Optional[int] = ..., body: _Optional[bytes] = ..., sha256: _Optional[str] = ...) -> None: ...

class AssignmentAnswer(_message.Message):
    __slots__ = ("number", "verdict", "reason")
    class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        VERDICT_UNSPECIFIED: _ClassVar[AssignmentAnswer.Verdict]
        VERDICT_ACCEPTED: _ClassVar[AssignmentAnswer.Verdict]
        VERDICT_OLDER: _ClassVar[AssignmentAnswer.Verdict]
        VERDICT_CHANGED: _ClassVar[AssignmentAnswer.Verdict]
        VERDICT_INVALID: _ClassVar[AssignmentAnswer.Verdict]
        VERDICT_DISK: _ClassVar[AssignmentAnswer.Verdict]
    VERDICT_UNSPECIFIED: AssignmentAnswer.Verdict
    VERDICT_ACCEPTED: AssignmentAnswer.Verdict
    VERDICT_OLDER: AssignmentAnswer.Verdict
    VERDICT_CHANGED: AssignmentAnswer.Verdict
    VERDICT_INVALID: AssignmentAnswer.Verdict
    VERDICT_DISK: AssignmentAnswer.Verdict
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    number: int
    verdict: AssignmentAnswer.Verdict
    reason: str
    def __init__(self, number: _Optional[int] = ..., verdict: _Optional[_Union[AssignmentAnswer.Verdict, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("state", "log", "log_dropped", "samples", "series", "samples_dropped")
    STATE_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    LOG_DROPPED_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SERIES_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_DROPPED_FIELD_NUMBER: _ClassVar[int]
    state: BoardState
    log: _containers.RepeatedCompositeFieldContainer[LogEntry]
    log_dropped: int
    samples: _containers.RepeatedCompositeFieldContainer[Sample]
    series: _containers.RepeatedScalarFieldContainer[str]
    samples_dropped: int
    def __init__(self, state: _Optional[_Union[BoardState, _Mapping]] = ..., log: _Optional[_Iterable[_Union[LogEntry, _Mapping]]] = ..., log_dropped: _Optional[int] = ..., samples: _Optional[_Iterable[_Union[Sample, _Mapping]]] = ..., series: _Optional[_Iterable[str]] = ..., samples_dropped: _Optional[int] = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("sequence", "age_milliseconds", "series", "values")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    AGE_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    SERIES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    age_milliseconds: int
    series: _containers.RepeatedScalarFieldContainer[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, sequence: _Optional[int] = ..., age_milliseconds: _Optional[int] = ..., series: _Optional[_Iterable[int]] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class ReportAck(_message.Message):
    __slots__ = ("log_sequence", "sample_sequence")
    LOG_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    log_sequence: int
    sample_sequence: int
    def __init__(self, log_sequence: _Optional[int] = ..., sample_sequence: _Optional[int] = ...) -> None: ...

class GrantRequest(_message.Message):
    __slots__ = ("request_id", "digests")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    digests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_id: _Optional[int] = ..., digests: _Optional[_Iterable[str]] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("request_id", "sources", "token", "expires_in_seconds", "refusal")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    sources: _containers.RepeatedScalarFieldContainer[str]
    token: str
    expires_in_seconds: int
    refusal: str
    def __init__(self, request_id: _Optional[int] = ..., sources: _Optional[_Iterable[str]] = ..., token: _Optional[str] = ..., expires_in_seconds: _Optional[int] = ..., refusal: _Optional[str] = ...) -> None: ...

class LogRequest(_message.Message):
    __slots__ = ("request_id", "source", "replica_uid", "run", "after", "tail_lines", "since_seconds", "wait")
    class Source(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SOURCE_UNSPECIFIED: _ClassVar[LogRequest.Source]
        SOURCE_WORKER: _ClassVar[LogRequest.Source]
        SOURCE_AGENT: _ClassVar[LogRequest.Source]
    SOURCE_UNSPECIFIED: LogRequest.Source
    SOURCE_WORKER: LogRequest.Source
    SOURCE_AGENT: LogRequest.Source
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REPLICA_UID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    TAIL_LINES_FIELD_NUMBER: _ClassVar[int]
    SINCE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    source: LogRequest.Source
    replica_uid: str
    run: int
    after: int
    tail_lines: int
    since_seconds: int
    wait: bool
    def __init__(self, request_id: _Optional[int] = ..., source: _Optional[_Union[LogRequest.Source, str]] = ..., replica_uid: _Optional[str] = ..., run: _Optional[int] = ..., after: _Optional[int] = ..., tail_lines: _Optional[int] = ..., since_seconds: _Optional[int] = ..., wait: bool = ...) -> None: ...

class LogChunk(_message.Message):
    __slots__ = ("request_id", "lines", "next", "newest", "dropped", "run", "ended", "refusal")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    lines: _containers.RepeatedCompositeFieldContainer[LogLine]
    next: int
    newest: int
    dropped: int
    run: int
    ended: bool
    refusal: str
    def __init__(self, request_id: _Optional[int] = ..., lines: _Optional[_Iterable[_Union[LogLine, _Mapping]]] = ..., next: _Optional[int] = ..., newest: _Optional[int] = ..., dropped: _Optional[int] = ..., run: _Optional[int] = ..., ended: bool = ..., refusal: _Optional[str] = ...) -> None: ...

class LogLine(_message.Message):
    __slots__ = ("time_milliseconds", "text")
    TIME_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    time_milliseconds: int
    text: str
    def __init__(self, time_milliseconds: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class LogCancel(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    def __init__(self, request_id: _Optional[int] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("reason", "message", "reconnect_after_milliseconds")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[Goodbye.Reason]
        REASON_SUPERSEDED: _ClassVar[Goodbye.Reason]
        REASON_SHUTDOWN: _ClassVar[Goodbye.Reason]
        REASON_REVOKED: _ClassVar[Goodbye.Reason]
        REASON_PROTOCOL: _ClassVar[Goodbye.Reason]
    REASON_UNSPECIFIED: Goodbye.Reason
    REASON_SUPERSEDED: Goodbye.Reason
    REASON_SHUTDOWN: Goodbye.Reason
    REASON_REVOKED: Goodbye.Reason
    REASON_PROTOCOL: Goodbye.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RECONNECT_AFTER_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    reason: Goodbye.Reason
    message: str
    reconnect_after_milliseconds: int
    def __init__(self, reason: _Optional[_Union[Goodbye.Reason, str]] = ..., message: _Optional[str] = ..., reconnect_after_milliseconds: _Optional[int] = ...) -> None: ...

class BoardFacts(_message.Message):
    __slots__ = ("soc", "simulated", "memory_bytes", "storage_bytes", "npu_cores", "allocatable_memory_bytes", "allocatable_storage_bytes", "agent_version", "kernel", "npu_driver_family", "npu_driver_version", "runtimes")
    SOC_FIELD_NUMBER: _ClassVar[int]
    SIMULATED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NPU_CORES_FIELD_NUMBER: _ClassVar[int]
    ALLOCATABLE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ALLOCATABLE_STORAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    NPU_DRIVER_FAMILY_FIELD_NUMBER: _ClassVar[int]
    NPU_DRIVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUNTIMES_FIELD_NUMBER: _ClassVar[int]
    soc: str
    simulated: bool
    memory_bytes: int
    storage_bytes: int
    npu_cores: int
    allocatable_memory_bytes: int
    allocatable_storage_bytes: int
    agent_version: str
    kernel: str
    npu_driver_family: str
    npu_driver_version: str
    runtimes: _containers.RepeatedCompositeFieldContainer[Runtime]
    def __init__(self, soc: _Optional[str] = ..., simulated: bool = ..., memory_bytes: _Optional[int] = ..., storage_bytes: _Optional[int] = ..., npu_cores: _Optional[int] = ..., allocatable_memory_bytes: _Optional[int] = ..., allocatable_storage_bytes: _Optional[int] = ..., agent_version: _Optional[str] = ..., kernel: _Optional[str] = ..., npu_driver_family: _Optional[str] = ..., npu_driver_version: _Optional[str] = ..., runtimes: _Optional[_Iterable[_Union[Runtime, _Mapping]]] = ...) -> None: ...

class Runtime(_message.Message):
    __slots__ = ("name", "version", "backend")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    backend: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., backend: _Optional[str] = ...) -> None: ...

class BoardState(_message.Message):
    __slots__ = ("assignment_number", "facts", "serving_url", "conditions", "replicas", "running")
    ASSIGNMENT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    SERVING_URL_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    assignment_number: int
    facts: BoardFacts
    serving_url: str
    conditions: _containers.RepeatedCompositeFieldContainer[Condition]
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaState]
    running: _containers.RepeatedCompositeFieldContainer[RunningWorker]
    def __init__(self, assignment_number: _Optional[int] = ..., facts: _Optional[_Union[BoardFacts, _Mapping]] = ..., serving_url: _Optional[str] = ..., conditions: _Optional[_Iterable[_Union[Condition, _Mapping]]] = ..., replicas: _Optional[_Iterable[_Union[ReplicaState, _Mapping]]] = ..., running: _Optional[_Iterable[_Union[RunningWorker, _Mapping]]] = ...) -> None: ...

class ReplicaState(_message.Message):
    __slots__ = ("namespace", "name", "uid", "observed_generation", "endpoint", "progress", "measured", "restarts", "last_exit", "conditions")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    LAST_EXIT_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    uid: str
    observed_generation: int
    endpoint: str
    progress: Progress
    measured: Measured
    restarts: int
    last_exit: LastExit
    conditions: _containers.RepeatedCompositeFieldContainer[Condition]
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., uid: _Optional[str] = ..., observed_generation: _Optional[int] = ..., endpoint: _Optional[str] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., measured: _Optional[_Union[Measured, _Mapping]] = ..., restarts: _Optional[int] = ..., last_exit: _Optional[_Union[LastExit, _Mapping]] = ..., conditions: _Optional[_Iterable[_Union[Condition, _Mapping]]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("fetched_bytes", "total_bytes")
    FETCHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    fetched_bytes: int
    total_bytes: int
    def __init__(self, fetched_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class Measured(_message.Message):
    __slots__ = ("time_to_first_token_seconds", "decode_tokens_per_second")
    TIME_TO_FIRST_TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DECODE_TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    time_to_first_token_seconds: float
    decode_tokens_per_second: float
    def __init__(self, time_to_first_token_seconds: _Optional[float] = ..., decode_tokens_per_second: _Optional[float] = ...) -> None: ...

class LastExit(_message.Message):
    __slots__ = ("reason", "message", "time")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    time: str
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., time: _Optional[str] = ...) -> None: ...

class RunningWorker(_message.Message):
    __slots__ = ("namespace", "name", "uid", "memory_bytes")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    uid: str
    memory_bytes: int
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., uid: _Optional[str] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class Condition(_message.Message):
    __slots__ = ("type", "status", "reason", "message", "observed_generation")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    type: str
    status: str
    reason: str
    message: str
    observed_generation: int
    def __init__(self, type: _Optional[str] = ..., status: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., observed_generation: _Optional[int] = ...) -> None: ...

class LogEntry(_message.Message):
    __slots__ = ("sequence", "time", "type", "reason", "message", "replica_namespace", "replica_name", "replica_uid", "age_milliseconds")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REPLICA_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    REPLICA_NAME_FIELD_NUMBER: _ClassVar[int]
    REPLICA_UID_FIELD_NUMBER: _ClassVar[int]
    AGE_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    time: str
    type: str
    reason: str
    message: str
    replica_namespace: str
    replica_name: str
    replica_uid: str
    age_milliseconds: int
    def __init__(self, sequence: _Optional[int] = ..., time: _Optional[str] = ..., type: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., replica_namespace: _Optional[str] = ..., replica_name: _Optional[str] = ..., replica_uid: _Optional[str] = ..., age_milliseconds: _Optional[int] = ...) -> None: ...
