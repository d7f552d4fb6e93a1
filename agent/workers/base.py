"""Workers as values, and the seam behind which a runtime library lives.

A worker runs one model on one runtime library behind an HTTP listener on loopback that speaks the OpenAI API. The agent's loop says
which workers there should be (`WorkerSpec`), the supervisor keeps them so and shows what they are (`WorkerState`), a `Backend` starts
one (`Worker`). The library never runs in the agent's own process: its crash is an exit reason, not ours.

Who calls: `agent/planning.py` builds specs, `agent/loop.py` hands them to the supervisor, `agent/reports.py` and `agent/serving` read
states. This module stands apart so that all of them, and every backend, agree on words without importing each other.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Final, Literal, Protocol

import msgspec

from agent.failures.modes import Failure
from agent.workers.pipe import NpuLoad
from rkfleet.assignment import AssignedReplica
from rkfleet.kinds.board import Runtime
from rkfleet.kinds.replica import ExitReason, LastExit

__all__ = ["Backend", "Exit", "Listener", "Phase", "Worker", "WorkerSpec", "WorkerState", "share_threads", "worker_key"]

Phase = Literal["Starting", "Loading", "Ready", "Stopping", "BackOff"]

# The agent and the kernel keep one core: with every core spinning in the runtime, tokens wait for the process that should send them.
CORES_KEPT_FREE: Final = 1

# Roles of the files that a worker is given; others only lie beside them.
NPU_ROLES: Final = frozenset({"weight", "adapter", "encoder", "template", "config"})
OTHER_ROLES: Final = frozenset({"weight"})


class WorkerSpec(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One worker to have.

    Attributes:
        uid: Uid of the Replica it runs for; one worker per uid.
        key: `worker_key` of the replica; the process is replaced when it changes, and only then.
        runtime: Runtime of the variant: rkllm, rknn or llamacpp.
        model_path: The verified model file in the artifact cache.
        context_tokens: Context window of one request, prompt and answer together.
        max_concurrent: Requests that the library works on at the same time.
        threads: CPU threads, already shared out (`share_threads`), at least 1. A running worker keeps what it started with.
        memory_bytes: Memory reserved for it, reported while it runs.
        dtype: Quantization of the variant.
        reference_model: Model of the benchmark row that the variant refers to; empty for none. Only simulated workers ask for it.
        reference_sdk_version: Release of that row; empty for the newest that has one.
        library: Version of the runtime library that runs it; a board may have several of one runtime. Empty for the only one.
        max_output_tokens: Most tokens of one answer.
        npu: What a worker on the NPU is told besides; None for other runtimes.
        shift: Forget the oldest tokens when the context is full, instead of ending the answer.
        keep_tokens: Tokens at the start that a shift keeps.
    """

    uid: str
    namespace: str
    name: str
    key: str
    runtime: str
    model_path: str
    context_tokens: int = 1024
    max_concurrent: int = 1
    threads: int = 1
    memory_bytes: int = 0
    dtype: str = ""
    reference_model: str = ""
    reference_sdk_version: str = ""
    library: str = ""
    max_output_tokens: int = 512
    npu: NpuLoad | None = None
    shift: bool = False
    keep_tokens: int = 0

    @property
    def domain(self) -> int:
        """First IOMMU domain of the NPU that it was given; -1 for none."""
        return self.npu.base_domain if self.npu is not None else -1


class WorkerState(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What a worker is now; a worker that is gone has no state.

    Attributes:
        key: Key of the process that runs, or of the one that will be started next.
        phase: Starting (no process yet), Loading (the library reads the model), Ready (answers), Stopping (asked to go, still holds
            its memory), BackOff (exited, starts again at `not_before`).
        endpoint: `http://127.0.0.1:<port>` while Ready, else empty.
        api_key: What the listener demands as bearer token; random per process.
        restarts: Starts after an exit that nobody asked for, since the worker was first ensured.
        last_exit: How it ended last, or None.
        not_before: Monotonic second of the next start while in BackOff, else 0.
        threads: CPU threads that the process was started with.
        pid: Process id, 0 without a process.
        failure: The known failure that `last_exit` was, or that keeps a process from ending; None for one without a name.
        domain: First IOMMU domain of the NPU that it has; -1 for none.
        ready_at: Monotonic second since which it is Ready, else None.
    """

    uid: str
    namespace: str
    name: str
    key: str
    phase: Phase
    endpoint: str = ""
    api_key: str = ""
    restarts: int = 0
    last_exit: LastExit | None = None
    not_before: float = 0.0
    memory_bytes: int = 0
    threads: int = 0
    pid: int = 0
    failure: Failure | None = None
    domain: int = -1
    ready_at: float | None = None


class Listener(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Where a loaded worker answers: an HTTP base URL on loopback and the bearer token it demands."""

    endpoint: str
    api_key: str


class Exit(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """How a worker ended.

    Attributes:
        reason: None when it was asked to end.
        message: What is known in one sentence.
        failure: The known failure that it was; None for one without a name.
    """

    reason: ExitReason | None
    message: str = ""
    failure: Failure | None = None


class Worker(Protocol):
    """One started worker. It exists until `exited` returns."""

    @property
    def pid(self) -> int:
        """Return the process id, 0 when the worker is not a process of its own."""
        ...

    async def loaded(self) -> Listener | None:
        """Wait until the model is loaded; None when the worker ended first."""
        ...

    async def exited(self) -> Exit:
        """Wait until nothing of the worker is left: no process, no memory, no port."""
        ...

    def stop(self) -> None:
        """Ask it to end now; requests it still works on are cut. Idempotent."""
        ...

    def kill(self, reason: ExitReason | None, message: str) -> None:
        """End it without its help; `exited` then tells this reason. Idempotent, the first reason stays."""
        ...


class Backend(Protocol):
    """Starts workers of one runtime.

    Every implementation passes `tests/contract/worker_suite.py`: the listener demands its key, closing a connection ends the request
    within a second also in prefill, a worker ends with the agent, and an exit has a reason.

    The listener answers POST /v1/chat/completions and /v1/completions with a stream of OpenAI's chunks. Where the request asks for it
    (`return_progress`), chunks with `prompt_progress: {"total": <prompt tokens>}` come before the first token: one when the request gets
    its place and one after each step of prefill. The last chunk has `usage`. A prompt that does not fit is 400 with the error type
    `exceed_context_size_error` and `n_prompt_tokens`.

    A request may carry what the agent adds: header `X-Request-Id`; `adapter`, the name of a LoRA; for runtimes that keep prompts by
    themselves `tenant` and `prompt_cache_key`, between which nothing that was computed is ever shared. The first event may name in
    `ignored` the parameters that have no effect on this runtime.

    It answers POST /v1/embeddings with `input`, one text or one list of token ids, and `encoding_format: base64` with one vector as OpenAI
    does (numbers or base64 of little-endian float32) and `usage.prompt_tokens`, or refuses with a sentence when it has none to give.
    Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md.
    """

    @property
    def runtime(self) -> Runtime:
        """Return the runtime's name, the library's version and the backend's name, as the board advertises them."""
        ...

    async def start(self, spec: WorkerSpec, tasks: asyncio.TaskGroup, beat: Callable[[], None], log: Callable[[str], None]) -> Worker:
        """Start a worker; it loads in the background.

        Args:
            spec: What to load.
            tasks: Where the worker's own tasks live; cancelling them ends the worker.
            beat: Called each time the worker proved that it makes progress.
            log: Called with each line that the worker or its library prints, without the line's end; never after `exited` returned.

        Raises:
            Unavailable: No process could be started.
        """
        ...


def worker_key(replica: AssignedReplica, library: str, *, on_npu: bool = False, simulated: bool = False) -> str:
    """Return the hex key of what a running worker depends on: digests, library and load parameters.

    Parameters that the agent itself applies (queue length, longest answer, served name, when to load and unload) are left out, because
    changing them needs no new process; so are the thread share and an IOMMU domain that the board chose, because a neighbour that comes or
    goes is no reason to drop requests. What only the NPU's runtime honours counts `on_npu` alone. The reference to a benchmark row is what
    a `simulated` worker is made of, and nothing to any other.
    """
    serving = replica.serving
    used = NPU_ROLES if on_npu else OTHER_ROLES
    files = sorted(f"{file.role}={file.path}={file.digest}" for file in replica.files if file.role in used)
    facts: list[object] = [replica.runtime, library, serving.context_tokens, files]
    facts.append([serving.context_overflow, serving.keep_tokens] if serving.context_overflow == "Shift" else [])
    if on_npu:
        scales = sorted(f"{file.path}={file.scale_percent}" for file in replica.files_of("adapter"))
        facts += [scales, serving.max_output_tokens, serving.prompt_cache_bytes, serving.embed_flash, serving.cpus, serving.iommu_domain]
    else:
        facts += [serving.max_concurrent, serving.threads]
    if simulated:
        facts += [replica.dtype, replica.reference_model, replica.reference_sdk_version]
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:32]


def share_threads(wanted: int, cores: int, sharers: int) -> int:
    """Return the CPU threads of a worker: `wanted`, or for 0 an equal part of all cores but one, at least 1.

    Args:
        wanted: `serving.threads` of the replica.
        cores: Cores that the agent may use.
        sharers: Replicas of the board that will be loaded together, this one included.

    Threads of one worker wait for each other by spinning, so more threads than cores is far worse than fewer: two workers with two
    threads each on two cores ran six times slower than with one each.
    """
    if wanted > 0:
        return wanted
    return max(1, (cores - CORES_KEPT_FREE) // max(1, sharers))
