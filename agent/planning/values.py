"""What the agent's planner sees and what it decides, as frozen values.

`agent/loop.py` observes an `Observed`, hands it to `agent.planning.plan.plan` and acts on the `Plan`. Steps are a closed union; each is
complete, so acting on one needs no further choice.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from agent.planning.residency import Use
from agent.workers.base import WorkerSpec, WorkerState
from rkfleet.assignment import AssignedFile, AssignedReplica
from rkfleet.benchmarks import Table
from rkfleet.kinds.replica import Measured
from rkfleet.report import ReplicaState

__all__ = [
    "Abilities", "CancelFetch", "Fetch", "FetchState", "InstalledLibrary", "Leaving", "Observed", "Plan", "Served", "Start", "Step", "Stop",
    "Unload", "Verify",
]  # fmt: skip


class _Value(msgspec.Struct, frozen=True, kw_only=True):
    pass


class InstalledLibrary(_Value, frozen=True, kw_only=True):
    """One version of a runtime that can be started.

    Attributes:
        version: Its release; empty where it is not known.
        path: Its file, where a worker must be told; empty otherwise.
        generation: Of its interface, where there are several.
    """

    version: str
    path: str = ""
    generation: str = ""


class Abilities(_Value, frozen=True, kw_only=True):
    """What does not change while the agent runs.

    Attributes:
        libraries: Versions of each runtime that can be started, by runtime name, the newest first.
        soc: The board's chip; only asked for where a runtime is simulated.
        tables: The benchmark table behind each runtime that is simulated, by the runtime's name.
        cores: CPU cores that the agent may use.
        memory_bytes: Memory that workers may take together.
        serving_url: Base URL at which gateways reach this board.
        npu_lock_path: File whose lock a worker holds while it uses the NPU.
        prompt_cache_dir: Directory that holds a directory of saved prompts for each model and runtime.
    """

    libraries: Mapping[str, tuple[InstalledLibrary, ...]]
    cores: int
    memory_bytes: int
    serving_url: str
    soc: str = ""
    tables: Mapping[str, Table] = {}
    npu_lock_path: str = ""
    prompt_cache_dir: str = ""


class FetchState(_Value, frozen=True, kw_only=True):
    """One fetch of a replica's files that runs or has failed; a fetch that succeeded has no state.

    Attributes:
        digests: What it fetches.
        fetched_bytes: Bytes of them that are on the board.
        reason: Condition reason of the failure; empty while it runs.
        message: Sentence about the failure, or about what a running fetch waits for; may be empty while it runs.
        retry_at: Monotonic second of the next try after a failure.
    """

    digests: frozenset[str]
    fetched_bytes: int = 0
    reason: str = ""
    message: str = ""
    retry_at: float = 0.0


class Leaving(_Value, frozen=True, kw_only=True):
    """A replica whose worker is on its way out.

    Attributes:
        replica: As it was last assigned.
        since: Monotonic second at which it began to leave; its drain time counts from here.
        cut: True when requests were still running at the end of the drain time.
    """

    replica: AssignedReplica
    since: float
    cut: bool = False


class Observed(_Value, frozen=True, kw_only=True):
    """What the loop sees at one moment.

    Attributes:
        now: Monotonic seconds.
        files: Path of every complete file in the artifact cache, by digest.
        mismatched: Why a file was thrown away after it was verified, by digest, until it is there again.
        fetches: Fetches that run or failed, by replica uid.
        verifying: Replicas whose files are being verified now.
        verified: For each replica the load (see `load_token`) that its files were last verified for.
        workers: What the supervisor shows, by replica uid.
        in_flight: Requests that run or wait, by replica uid; 0 is left out.
        measured: Speeds, by replica uid.
        known: Replicas as they were last assigned, for workers whose replica is not assigned any more.
        leaving: What the plan before this one said.
        uses: What is known of the use of each replica, by uid.
        available_bytes: Memory that the machine could still give to programs; None where it does not tell.
    """

    now: float
    files: Mapping[str, str] = {}
    mismatched: Mapping[str, str] = {}
    fetches: Mapping[str, FetchState] = {}
    verifying: frozenset[str] = frozenset()
    verified: Mapping[str, str] = {}
    workers: Mapping[str, WorkerState] = {}
    in_flight: Mapping[str, int] = {}
    measured: Mapping[str, Measured] = {}
    known: Mapping[str, AssignedReplica] = {}
    leaving: Mapping[str, Leaving] = {}
    uses: Mapping[str, Use] = {}
    available_bytes: int | None = None


class Fetch(_Value, frozen=True, kw_only=True):
    """Fetch these files of a replica into the cache."""

    replica: AssignedReplica
    files: tuple[AssignedFile, ...]


class CancelFetch(_Value, frozen=True, kw_only=True):
    """Nobody needs this fetch any more; what it has stays for the next one."""

    uid: str


class Verify(_Value, frozen=True, kw_only=True):
    """Read these files again and compare them with their digests, because a load follows; `token` names the load."""

    uid: str
    digests: tuple[str, ...]
    token: str


class Start(_Value, frozen=True, kw_only=True):
    """Have this worker."""

    spec: WorkerSpec


class Stop(_Value, frozen=True, kw_only=True):
    """Have no worker for this replica."""

    uid: str


class Unload(_Value, frozen=True, kw_only=True):
    """Have no worker for this replica until it is wanted again: it is idle, or another model needs the room."""

    uid: str


Step = Fetch | CancelFetch | Verify | Start | Stop | Unload


class Served(_Value, frozen=True, kw_only=True):
    """One replica as the serving side should see it; without an endpoint `waiting` says why.

    Attributes:
        on_demand: A request makes the board load the model and should wait for it.
        max_concurrent: Requests that the runtime works on at the same time.
    """

    replica: AssignedReplica
    endpoint: str = ""
    api_key: str = ""
    draining: bool = False
    waiting: str = ""
    on_demand: bool = False
    max_concurrent: int = 1


class Plan(_Value, frozen=True, kw_only=True):
    """What to do, what to say, and when to look again at the latest.

    Attributes:
        steps: In the order in which they should be taken.
        replicas: State of every assigned replica, for the report.
        served: Every replica that clients may ask for.
        holders: Digests that must stay in the cache, by the uid of the replica that needs them.
        leaving: To be handed back as `Observed.leaving`.
        caches: Names of the directories of saved prompts that a replica of the board uses or will.
        look_again_at: Monotonic second at which something is due although nothing changes; None for never.
    """

    steps: tuple[Step, ...]
    replicas: tuple[ReplicaState, ...]
    served: tuple[Served, ...]
    holders: Mapping[str, tuple[str, ...]]
    leaving: Mapping[str, Leaving]
    caches: frozenset[str]
    look_again_at: float | None
