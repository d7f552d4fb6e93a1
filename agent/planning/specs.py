"""What a worker is started with: the library that runs it, its key, and its load parameters. Pure.

In: an assigned replica, what the board can do, where its files are. Out: an `InstalledLibrary`, a `WorkerSpec`, the name of its directory
of saved prompts. Called by `agent/planning/plan.py`; apart from it because this is translation and that is decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

from agent.planning.values import Abilities, InstalledLibrary
from agent.workers.base import WorkerSpec, share_threads, worker_key
from agent.workers.pipe import Adapter, NpuLoad
from rkfleet.assignment import AssignedReplica
from rkfleet.versions import meets

__all__ = ["cache_name", "choose_library", "concurrent_of", "key_of", "npu_generation", "parse_cpus", "runs_on_npu", "spec_of"]

_PERCENT: Final = 100


def choose_library(replica: AssignedReplica, abilities: Abilities) -> InstalledLibrary | None:
    """Return the newest installed version of the runtime that meets what variant and template ask for, or None."""
    for library in abilities.libraries.get(replica.runtime, ()):
        if meets(library.version, replica.runtime_version) and meets(library.version, replica.serving.runtime_version):
            return library
    return None


def runs_on_npu(replica: AssignedReplica, abilities: Abilities) -> bool:
    """Whether its worker uses an NPU that exists: there is a library to load."""
    return replica.runtime == "rkllm" and any(library.path for library in abilities.libraries.get(replica.runtime, ()))


def npu_generation(replica: AssignedReplica, abilities: Abilities) -> str:
    """Return the generation of the library that runs it on an NPU that exists; empty for none."""
    library = choose_library(replica, abilities)
    return library.generation if library is not None and runs_on_npu(replica, abilities) else ""


def concurrent_of(replica: AssignedReplica, abilities: Abilities) -> int:
    """Return the requests that the runtime takes together; the NPU's answers one at a time, and others wait in the agent's own queue."""
    return 1 if runs_on_npu(replica, abilities) else replica.serving.max_concurrent


def key_of(replica: AssignedReplica, library: InstalledLibrary, abilities: Abilities) -> str:
    """Return the key of the worker that the replica should have."""
    # Two files of an unknown version are told apart by their generation.
    version = library.version or library.generation
    return worker_key(replica, version, on_npu=runs_on_npu(replica, abilities), simulated=replica.runtime in abilities.tables)


def cache_name(replica: AssignedReplica, library: InstalledLibrary) -> str:
    """Return the name of the directory of saved prompts: they are of use to the same weights and the same library only.

    Empty if the replica saves none.
    """
    if not replica.serving.prompt_cache_bytes:
        return ""
    return f"{replica.weight.digest.removeprefix('sha256:')}-{library.version or library.generation}"


def spec_of(
    replica: AssignedReplica,
    library: InstalledLibrary,
    *,
    assigned: Mapping[str, AssignedReplica],
    abilities: Abilities,
    paths: Mapping[str, str],
    domain: int,
) -> WorkerSpec:
    """Return the worker to start.

    Args:
        replica: Whose it is.
        library: What runs it.
        assigned: All replicas of the board; threads are shared by those that will be loaded together.
        abilities: What the board can do.
        paths: Path of each file, by digest.
        domain: First IOMMU domain of the NPU, where it uses one.
    """
    # A replica whose place is taken is about to go.
    serving = {uid for uid, each in assigned.items() if each.activation == "Serving"}
    sharers = len(serving - {assigned[uid].replaces for uid in serving})
    shifts = replica.serving.context_overflow == "Shift"
    return WorkerSpec(
        uid=replica.uid,
        namespace=replica.namespace,
        name=replica.name,
        key=key_of(replica, library, abilities),
        runtime=replica.runtime,
        model_path=paths[replica.weight.digest],
        context_tokens=replica.serving.context_tokens,
        max_concurrent=concurrent_of(replica, abilities),
        threads=share_threads(replica.serving.threads, abilities.cores, sharers),
        memory_bytes=replica.memory_bytes,
        dtype=replica.dtype,
        reference_model=replica.reference_model,
        reference_sdk_version=replica.reference_sdk_version,
        library=library.version,
        max_output_tokens=replica.serving.max_output_tokens,
        npu=_npu_load(replica, library, abilities, paths, domain) if runs_on_npu(replica, abilities) else None,
        shift=shifts,
        keep_tokens=replica.serving.keep_tokens if shifts else 0,
    )


def _npu_load(replica: AssignedReplica, library: InstalledLibrary, abilities: Abilities, paths: Mapping[str, str], domain: int) -> NpuLoad:
    serving = replica.serving
    shifts = serving.context_overflow == "Shift"
    cache = cache_name(replica, library)
    return NpuLoad(
        library=library.path,
        generation=library.generation,
        library_version=library.version,
        lock_path=abilities.npu_lock_path,
        base_domain=domain,
        embed_flash=serving.embed_flash,
        cpus=parse_cpus(serving.cpus),
        shift=shifts,
        keep_tokens=serving.keep_tokens if shifts else 0,
        adapters=tuple(
            Adapter(name=PurePosixPath(file.path).stem, path=paths[file.digest], scale=file.scale_percent / _PERCENT)
            for file in replica.files_of("adapter")
        ),
        encoder_path=_path_of("encoder", replica, paths),
        template_path=_path_of("template", replica, paths),
        config_path=_path_of("config", replica, paths),
        cache_dir=f"{abilities.prompt_cache_dir}/{cache}" if cache else "",
        cache_bytes=serving.prompt_cache_bytes,
    )


def parse_cpus(text: str) -> tuple[int, ...]:
    """Return the CPUs of a list such as `0,4-7`, sorted and each once; the kind has checked its form."""
    cpus: set[int] = set()
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(cpus))


def _path_of(role: str, replica: AssignedReplica, paths: Mapping[str, str]) -> str:
    """Return the path of the first file of a role; empty for none."""
    return next((paths[file.digest] for file in replica.files_of(role)), "")
