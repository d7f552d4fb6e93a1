"""Every metric of every program: name, type, unit, labels and, for durations, the first and last instant.

Code makes its metrics from these entries, `docs/reference/metrics.md` lists them, and a test holds the two together. Names have the
prefix `rkfleet_`; the request metrics carry vLLM's suffixes so that dashboards carry over, and OpenTelemetry's GenAI buckets.

Sources: OpenTelemetry GenAI semantic conventions (development status, 2026-04) for buckets and the split of time per output token and
inter-token latency; vLLM `docs/design/metrics.md` for suffixes; Prometheus naming practices for prefixes and units.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

__all__ = ["ALL", "Metric"]

Buckets = tuple[float, ...]

REQUEST_SECONDS: Final[Buckets] = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_SECONDS: Final[Buckets] = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip  # 20, 40 and 80 are added: long prompts take an RK3588 beyond ten seconds.
TOKEN_SECONDS: Final[Buckets] = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One metric.

    Attributes:
        name: Full name as exposed; counters end in `_total`.
        program: Which program exposes it.
        instants: For durations: from which instant to which.
        optional: For gauges: it has no sample until it is set, and none again once it is set to NaN, because unknown is not 0.
    """

    name: str
    type: Literal["counter", "gauge", "histogram"]
    unit: str
    help: str
    program: Literal["controller", "registry", "gateway", "agent", "simulated-boards", "every"]
    labels: tuple[str, ...] = ()
    buckets: Buckets = ()
    instants: str = ""
    optional: bool = False


_entries: list[Metric] = []


def _metric(**values: object) -> Metric:
    entry = msgspec.convert(values, Metric)
    _entries.append(entry)
    return entry


# ---- every program -------------------------------------------------------------------------------------------------------------
BUILD_INFO: Final = _metric(
    name="rkfleet_build_info", type="gauge", unit="", program="every", labels=("program", "version"),
    help="1, with the program's name and version as labels.",
)  # fmt: skip
CERTIFICATE_EXPIRY: Final = _metric(
    name="rkfleet_certificate_expiry_timestamp_seconds", type="gauge", unit="seconds", program="every", labels=("certificate",),
    help="When a certificate ends, in seconds since 1970: board (both of an agent), gateway, controller or registry. Absent while unknown.",
)  # fmt: skip

# ---- agent ---------------------------------------------------------------------------------------------------------------------
ARTIFACT_FETCHED_BYTES: Final = _metric(
    name="rkfleet_artifact_fetched_bytes_total", type="counter", unit="bytes", program="agent",
    help="Bytes of artifacts received from a registry.",
)  # fmt: skip
ARTIFACT_CORRUPT: Final = _metric(
    name="rkfleet_artifact_corrupt_total", type="counter", unit="files", program="agent",
    help="Files that did not have their digest, after a fetch or before a load, and were thrown away.",
)  # fmt: skip
ARTIFACT_EVICTED_BYTES: Final = _metric(
    name="rkfleet_artifact_evicted_bytes_total", type="counter", unit="bytes", program="agent",
    help="Bytes of unreferenced artifacts removed to stay below the limit.",
)  # fmt: skip

# Requests, as the board that answered them saw them. Every instant is read from one monotonic clock in the agent; "arrival" is the moment
# at which the request's head was read by the agent's HTTP server, so the time in the queue is part of what the client waited for.
REQUESTS: Final = _metric(
    name="rkfleet_requests_total", type="counter", unit="requests", program="agent", labels=("namespace", "model_name", "outcome"),
    help="Requests by outcome. Answered: stop, length, tool_calls. Not: invalid, rejected (429, 503), cancelled (client left), failed.",
)  # fmt: skip
REQUESTS_RUNNING: Final = _metric(
    name="rkfleet_num_requests_running", type="gauge", unit="requests", program="agent", labels=("namespace", "model_name"),
    help="Requests that a worker works on now.",
)  # fmt: skip
REQUESTS_WAITING: Final = _metric(
    name="rkfleet_num_requests_waiting", type="gauge", unit="requests", program="agent", labels=("namespace", "model_name"),
    help="Requests that wait in the queue of a replica now.",
)  # fmt: skip
PROMPT_TOKENS: Final = _metric(
    name="rkfleet_prompt_tokens_total", type="counter", unit="tokens", program="agent", labels=("namespace", "model_name"),
    help="Prompt tokens of requests that a worker began.",
)  # fmt: skip
GENERATION_TOKENS: Final = _metric(
    name="rkfleet_generation_tokens_total", type="counter", unit="tokens", program="agent", labels=("namespace", "model_name"),
    help="Output tokens, also of answers that broke off.",
)  # fmt: skip
PARAMETERS_IGNORED: Final = _metric(
    name="rkfleet_request_parameters_ignored_total", type="counter", unit="", program="agent",
    labels=("namespace", "model_name", "parameter"),
    help="Parameters that requests set and nothing honoured, as answers say in the header x-rkfleet-ignored.",
)  # fmt: skip
TIME_TO_FIRST_TOKEN: Final = _metric(
    name="rkfleet_time_to_first_token_seconds", type="histogram", unit="seconds", program="agent", labels=("namespace", "model_name"),
    buckets=FIRST_TOKEN_SECONDS,
    help="Time to first token (TTFT), queue and a load on demand included.",
    instants="From arrival to the first non-empty content from the worker.",
)  # fmt: skip
INTER_TOKEN_LATENCY: Final = _metric(
    name="rkfleet_inter_token_latency_seconds", type="histogram", unit="seconds", program="agent", labels=("namespace", "model_name"),
    buckets=TOKEN_SECONDS,
    help="Inter-token latency (ITL): every gap between two tokens of an answer.",
    instants="From one non-empty content from the worker to the next.",
)  # fmt: skip
TIME_PER_OUTPUT_TOKEN: Final = _metric(
    name="rkfleet_time_per_output_token_seconds", type="histogram", unit="seconds", program="agent", labels=("namespace", "model_name"),
    buckets=TOKEN_SECONDS,
    help="Time per output token (TPOT), one value per answer: (end-to-end latency - TTFT) / (output tokens - 1).",
    instants="From the first non-empty content from the worker to the last byte handed to the client's connection.",
)  # fmt: skip
E2E_REQUEST_LATENCY: Final = _metric(
    name="rkfleet_e2e_request_latency_seconds", type="histogram", unit="seconds", program="agent", labels=("namespace", "model_name"),
    buckets=REQUEST_SECONDS,
    help="Latency of whole answers.",
    instants="From arrival to the last byte handed to the client's connection.",
)  # fmt: skip
QUEUE_TIME: Final = _metric(
    name="rkfleet_request_queue_time_seconds", type="histogram", unit="seconds", program="agent", labels=("namespace", "model_name"),
    buckets=FIRST_TOKEN_SECONDS,
    help="Time that requests waited for a free place in a worker.",
    instants="From arrival to the moment at which the request is sent to the worker.",
)  # fmt: skip
PREFILL_TIME: Final = _metric(
    name="rkfleet_request_prefill_time_seconds", type="histogram", unit="seconds", program="agent", labels=("namespace", "model_name"),
    buckets=FIRST_TOKEN_SECONDS,
    help="Time that the worker took for the prompt and the first token.",
    instants="From the moment at which the request is sent to the worker to its first non-empty content.",
)  # fmt: skip
DECODE_TIME: Final = _metric(
    name="rkfleet_request_decode_time_seconds", type="histogram", unit="seconds", program="agent", labels=("namespace", "model_name"),
    buckets=REQUEST_SECONDS,
    help="Time that the worker took for all tokens after the first.",
    instants="From the first to the last non-empty content from the worker.",
)  # fmt: skip
WORKER_EXITS: Final = _metric(
    name="rkfleet_worker_exits_total", type="counter", unit="exits", program="agent", labels=("runtime", "reason"),
    help="Worker exits that nobody asked for, by reason: Crashed, Killed, OutOfMemory, Hung or LoadFailed.",
)  # fmt: skip
WORKERS: Final = _metric(
    name="rkfleet_workers", type="gauge", unit="workers", program="agent", labels=("phase",),
    help="Workers by phase: Starting, Loading, Ready, Stopping or BackOff.",
)  # fmt: skip
ASSIGNMENT_NUMBER: Final = _metric(
    name="rkfleet_assignment_number", type="gauge", unit="", program="agent",
    help="Number of the assignment that the board has on disk and follows; 0 for none.",
)  # fmt: skip
AGENT_SESSION_OPEN: Final = _metric(
    name="rkfleet_agent_session_open", type="gauge", unit="", program="agent",
    help="1 while the board is in session with a controller, else 0.",
)  # fmt: skip
AGENT_LOOP_ERRORS: Final = _metric(
    name="rkfleet_agent_loop_errors_total", type="counter", unit="errors", program="agent",
    help="Passes of the agent's loop that ended in an error that it does not know.",
)  # fmt: skip
ARTIFACT_BYTES: Final = _metric(
    name="rkfleet_artifact_bytes", type="gauge", unit="bytes", program="agent",
    help="Bytes that artifacts take on the board, those on their way included.",
)  # fmt: skip
BOARD_MEMORY_AVAILABLE: Final = _metric(
    name="rkfleet_board_memory_available_bytes", type="gauge", unit="bytes", program="agent",
    help="Memory that programs could still get without swapping.",
)  # fmt: skip
BOARD_STORAGE_FREE: Final = _metric(
    name="rkfleet_board_storage_free_bytes", type="gauge", unit="bytes", program="agent",
    help="Free bytes of the file system that holds the artifacts.",
)  # fmt: skip
BOARD_SIMULATED: Final = _metric(
    name="rkfleet_board_simulated", type="gauge", unit="boolean", program="agent",
    help="1 when the board's hardware, or what a runtime library needs of it, does not exist: figures of it are simulated; else 0.",
)  # fmt: skip

# The hardware, every 5 s; what is unknown has no sample. Temperatures and clocks that node_exporter shows too have its units.
NPU_UTILIZATION: Final = _metric(
    name="rkfleet_npu_utilization_ratio", type="gauge", unit="ratio", program="agent", labels=("core",),
    help="Share of the last second in which an NPU core was busy, from 0 to 1; the driver tells it in debugfs.",
)  # fmt: skip
NPU_FREQUENCY: Final = _metric(
    name="rkfleet_npu_frequency_hertz", type="gauge", unit="hertz", program="agent", optional=True, help="Clock of the NPU now.",
)  # fmt: skip
GPU_FREQUENCY: Final = _metric(
    name="rkfleet_gpu_frequency_hertz", type="gauge", unit="hertz", program="agent", optional=True, help="Clock of the GPU now.",
)  # fmt: skip
DRAM_FREQUENCY: Final = _metric(
    name="rkfleet_dram_frequency_hertz", type="gauge", unit="hertz", program="agent", optional=True,
    help="Clock of the memory now; kernels without a dmc node do not tell it.",
)  # fmt: skip
CPU_FREQUENCY: Final = _metric(
    name="rkfleet_cpu_frequency_hertz", type="gauge", unit="hertz", program="agent", labels=("policy",),
    help="Clock of the CPU now, by cpufreq policy, which is named after its first core.",
)  # fmt: skip
TEMPERATURE: Final = _metric(
    name="rkfleet_temperature_celsius", type="gauge", unit="celsius", program="agent", labels=("zone",),
    help="Temperature of a thermal zone.",
)  # fmt: skip
THROTTLED: Final = _metric(
    name="rkfleet_board_throttled", type="gauge", unit="boolean", program="agent", optional=True,
    help="1 while heat keeps a clock below what is asked of it, else 0.",
)  # fmt: skip
NPU_OTHER_CLIENTS: Final = _metric(
    name="rkfleet_npu_other_clients", type="gauge", unit="processes", program="agent", optional=True,
    help="Processes beside the agent's workers that have the NPU open; no sample where other users' processes cannot be looked at.",
)  # fmt: skip

# ---- gateway -------------------------------------------------------------------------------------------------------------------
GATEWAY_REQUESTS: Final = _metric(
    name="rkfleet_gateway_requests_total", type="counter", unit="requests", program="gateway", labels=("model_name", "code"),
    help="Requests that were answered, by model and HTTP status; model_name is empty for names that nothing serves.",
)  # fmt: skip
GATEWAY_REQUEST_SECONDS: Final = _metric(
    name="rkfleet_gateway_request_duration_seconds", type="histogram", unit="seconds", program="gateway", labels=("model_name",),
    buckets=REQUEST_SECONDS, help="Duration of requests through the gateway.",
    instants="From the request's last byte at the gateway to the last byte handed to the client's connection.",
)  # fmt: skip
GATEWAY_RETRIES: Final = _metric(
    name="rkfleet_gateway_retries_total", type="counter", unit="tries", program="gateway", labels=("model_name",),
    help="Times that another replica was asked before the first body byte.",
)  # fmt: skip
GATEWAY_BROKEN_STREAMS: Final = _metric(
    name="rkfleet_gateway_broken_streams_total", type="counter", unit="streams", program="gateway", labels=("model_name",),
    help="Answers that a board broke off after the first body byte; the client got an error event.",
)  # fmt: skip
GATEWAY_OPEN_REQUESTS: Final = _metric(
    name="rkfleet_gateway_open_requests", type="gauge", unit="requests", program="gateway", help="Requests in the gateway now.",
)  # fmt: skip
GATEWAY_READY_REPLICAS: Final = _metric(
    name="rkfleet_gateway_ready_replicas", type="gauge", unit="replicas", program="gateway", labels=("model_name",),
    help="Replicas that may be asked, by model.",
)  # fmt: skip

# ---- controller ----------------------------------------------------------------------------------------------------------------
RECONCILES: Final = _metric(
    name="rkfleet_reconciles_total", type="counter", unit="", program="controller", labels=("loop", "result"),
    help="Calls of a control loop for a key, by how they ended: done, later, retry or error.",
)  # fmt: skip
RECONCILE_SECONDS: Final = _metric(
    name="rkfleet_reconcile_seconds", type="histogram", unit="seconds", program="controller", labels=("loop",),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    help="Duration of one call of a control loop.",
    instants="from the key being taken out of the queue to the end of the call",
)  # fmt: skip
QUEUE_DEPTH: Final = _metric(
    name="rkfleet_queue_depth", type="gauge", unit="", program="controller", labels=("loop",),
    help="Keys that wait for a control loop, without the delayed ones.",
)  # fmt: skip
CACHE_OBJECTS: Final = _metric(
    name="rkfleet_cache_objects", type="gauge", unit="", program="controller", labels=("resource",),
    help="Objects that the control loops know of a resource.",
)  # fmt: skip
CACHE_RELISTS: Final = _metric(
    name="rkfleet_cache_relists_total", type="counter", unit="", program="controller", labels=("resource",),
    help="Times that a cache had to list everything again because its watch had expired.",
)  # fmt: skip
EVENTS_DROPPED: Final = _metric(
    name="rkfleet_events_dropped_total", type="counter", unit="", program="controller",
    help="Events that were not written because the recorder's queue was full or the store refused them.",
)  # fmt: skip
BACKUP_FAILURES: Final = _metric(
    name="rkfleet_backup_failures_total", type="counter", unit="", program="controller",
    help="Backups of the schedule (--backup-every) that failed; the log says why.",
)  # fmt: skip
BACKUP_NEWEST: Final = _metric(
    name="rkfleet_backup_newest_timestamp_seconds", type="gauge", unit="seconds", program="controller", optional=True,
    help="When the newest backup of the schedule was begun, in seconds since 1970. Absent while there is none.",
)  # fmt: skip
STORE_COMMITS: Final = _metric(
    name="rkfleet_store_commits_total", type="counter", unit="", program="controller",
    help="Transactions that the store committed, each durable before any of its writes was acknowledged.",
)  # fmt: skip
STORE_WRITES: Final = _metric(
    name="rkfleet_store_writes_total", type="counter", unit="", program="controller", labels=("result",),
    help="Writes that the store answered: stored, unchanged, refused (the caller's fault) or failed (the store's fault).",
)  # fmt: skip
STORE_COMMIT_SECONDS: Final = _metric(
    name="rkfleet_store_commit_seconds", type="histogram", unit="seconds", program="controller",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
    help="Duration of one transaction with its fsync.",
    instants="from the begin of the transaction to the return of the commit",
)  # fmt: skip
CONTROLLER_LEADER: Final = _metric(
    name="rkfleet_controller_leader", type="gauge", unit="", program="controller",
    help="1 while this controller holds the sessions and runs the loops, 0 while it is a standby.",
)  # fmt: skip
STORE_REVISION: Final = _metric(
    name="rkfleet_store_revision", type="gauge", unit="", program="controller",
    help="Revision of the newest acknowledged write.",
)  # fmt: skip
STORE_LOG_EVENTS: Final = _metric(
    name="rkfleet_store_log_events", type="gauge", unit="", program="controller",
    help="Events that the store keeps for watches to resume from.",
)  # fmt: skip
STORE_WATCHES: Final = _metric(
    name="rkfleet_store_watches", type="gauge", unit="", program="controller",
    help="Open watches.",
)  # fmt: skip

API_REQUESTS: Final = _metric(
    name="rkfleet_api_requests_total", type="counter", unit="", program="controller", labels=("verb", "resource", "code"),
    help="Requests that the API answered, by verb and resource (both empty for discovery, schemas and other routes) and HTTP status.",
)  # fmt: skip
API_FAILED_LOGINS: Final = _metric(
    name="rkfleet_api_failed_logins_total", type="counter", unit="", program="controller", labels=("result",),
    help="Tokens that nobody holds (any more): answered 401 (refused), or 429 because the address had too many of them (limited).",
)  # fmt: skip
AUDIT_LINES: Final = _metric(
    name="rkfleet_audit_lines_total", type="counter", unit="", program="controller",
    help="Lines written to the audit log.",
)  # fmt: skip
AUDIT_LINES_LOST: Final = _metric(
    name="rkfleet_audit_lines_lost_total", type="counter", unit="", program="controller",
    help="Lines about refusals that did not get into the audit log, because too many waited; lines about writes are never lost so.",
)  # fmt: skip
API_REQUEST_SECONDS: Final = _metric(
    name="rkfleet_api_request_seconds", type="histogram", unit="seconds", program="controller", labels=("verb",),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    help="Duration of one request of the API, watches left out.",
    instants="from the parsed request head to the last byte of the answer handed to the connection",
)  # fmt: skip
API_WATCHES: Final = _metric(
    name="rkfleet_api_watches", type="gauge", unit="", program="controller",
    help="Watches that clients of the API hold open.",
)  # fmt: skip

SESSIONS: Final = _metric(
    name="rkfleet_sessions", type="gauge", unit="", program="controller",
    help="Boards in session with this controller.",
)  # fmt: skip
SESSION_ENDS: Final = _metric(
    name="rkfleet_session_ends_total", type="counter", unit="", program="controller", labels=("reason",),
    help="Streams of boards that ended: SUPERSEDED, SHUTDOWN, REVOKED, PROTOCOL, or LOST without a Goodbye.",
)  # fmt: skip
SESSION_MESSAGES: Final = _metric(
    name="rkfleet_session_messages_total", type="counter", unit="", program="controller", labels=("direction", "message"),
    help="Messages on the sessions of boards; direction is received or sent.",
)  # fmt: skip
# The fleet as the controller's caches know it: the same figures as `kubectl get` shows, for alerts and dashboards.
BOARDS: Final = _metric(
    name="rkfleet_boards", type="gauge", unit="boards", program="controller",
    labels=("condition", "status", "reason", "soc", "simulated"),
    help="Boards by condition, its status and reason, chip, and whether the hardware is simulated; a board counts once for each condition.",
)  # fmt: skip
DEPLOYMENT_REPLICAS: Final = _metric(
    name="rkfleet_deployment_replicas", type="gauge", unit="replicas", program="controller", labels=("namespace", "deployment"),
    help="Replicas that a deployment wants.",
)  # fmt: skip
DEPLOYMENT_AVAILABLE: Final = _metric(
    name="rkfleet_deployment_replicas_available", type="gauge", unit="replicas", program="controller", labels=("namespace", "deployment"),
    help="Replicas of a deployment that serve and count for the minimum available.",
)  # fmt: skip
DEPLOYMENT_UPDATED: Final = _metric(
    name="rkfleet_deployment_replicas_updated", type="gauge", unit="replicas", program="controller", labels=("namespace", "deployment"),
    help="Replicas of a deployment that are of its newest revision.",
)  # fmt: skip
DEPLOYMENT_CONDITION: Final = _metric(
    name="rkfleet_deployment_condition", type="gauge", unit="", program="controller",
    labels=("namespace", "deployment", "condition", "status", "reason"),
    help="1 for each condition of a deployment (Ready, Available, Progressing) with the status and the reason that it has now.",
)  # fmt: skip

STATUS_WRITES: Final = _metric(
    name="rkfleet_status_writes_total", type="counter", unit="", program="controller", labels=("kind",),
    help="Status writes that reports of boards caused; a report that says nothing new causes none.",
)  # fmt: skip

RENEWALS: Final = _metric(
    name="rkfleet_certificate_renewals_total", type="counter", unit="renewals", program="controller", labels=("result",),
    help="Renewals that boards and gateways asked for: issued, refused, or failed for a reason of the controller or by its limit.",
)  # fmt: skip
LOOP_LAG_SECONDS: Final = _metric(
    name="rkfleet_event_loop_lag_seconds", type="histogram", unit="seconds", program="controller",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
    help="How late the event loop is: 20 probes a second, so that a pause counts as long as it lasts.",
    instants="From the moment at which a sleeping task was due to the moment at which it ran.",
)  # fmt: skip
LOG_STREAMS: Final = _metric(
    name="rkfleet_log_streams", type="gauge", unit="", program="controller",
    help="Logs of workers and agents that clients of the API read now.",
)  # fmt: skip
LOG_LINES_DROPPED: Final = _metric(
    name="rkfleet_log_lines_dropped_total", type="counter", unit="lines", program="controller",
    help="Lines of logs that a reader did not get because the board had to forget them first; the reader is told how many.",
)  # fmt: skip

# ---- registry ------------------------------------------------------------------------------------------------------------------
REGISTRY_REQUESTS: Final = _metric(
    name="rkfleet_registry_requests_total", type="counter", unit="requests", program="registry", labels=("method", "code"),
    help="Requests answered, by HTTP method and status code.",
)  # fmt: skip
REGISTRY_SENT_BYTES: Final = _metric(
    name="rkfleet_registry_blob_sent_bytes_total", type="counter", unit="bytes", program="registry",
    help="Bytes of blobs handed to connections, ranges included.",
)  # fmt: skip
REGISTRY_RECEIVED_BYTES: Final = _metric(
    name="rkfleet_registry_blob_received_bytes_total", type="counter", unit="bytes", program="registry",
    help="Bytes of uploads written to disk.",
)  # fmt: skip
REGISTRY_UPLOADS: Final = _metric(
    name="rkfleet_registry_uploads", type="gauge", unit="uploads", program="registry",
    help="Uploads that were begun and neither finished nor given up.",
)  # fmt: skip
REGISTRY_FREE_BYTES: Final = _metric(
    name="rkfleet_registry_storage_free_bytes", type="gauge", unit="bytes", program="registry",
    help="Free bytes of the file system that holds the blobs, the reserve included.",
)  # fmt: skip

# ---- host of simulated boards --------------------------------------------------------------------------------------------------
SIMULATED_BOARDS: Final = _metric(
    name="rkfleet_simulated_boards", type="gauge", unit="boards", program="simulated-boards", labels=("state",),
    help="Boards of this host by state: in session, away (running without a session), stopping, off (stopped on purpose), failed.",
)  # fmt: skip
SIMULATED_BOARD_FAILURES: Final = _metric(
    name="rkfleet_simulated_board_failures_total", type="counter", unit="failures", program="simulated-boards", labels=("board",),
    help="Times that a board of this host ended by an error and was started again.",
)  # fmt: skip

ALL: Final[tuple[Metric, ...]] = tuple(_entries)
