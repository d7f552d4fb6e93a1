"""Which declared fields have no effect with the runtime that a replica runs on, in one sentence. Pure.

A field without effect is said, never passed over: `Loaded` carries the sentence and an Event tells it. Called by
`agent/planning/conditions.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rkfleet.assignment import AssignedReplica, ServingParameters

__all__ = ["without_effect"]

_DEFAULTS: Final = ServingParameters()


def without_effect(replica: AssignedReplica, npu_generation: str) -> str:
    """Return the sentence, or an empty one when every field acts.

    Args:
        replica: What is declared.
        npu_generation: Of the library that runs it on an NPU; empty for another runtime and for a simulated NPU.
    """
    fields = sorted(_of_npu(replica, npu_generation) if npu_generation else _of_others(replica))
    if not fields:
        return ""
    what = f"runtime {replica.runtime}"
    if replica.runtime == "rkllm":
        what = f"{what} of generation {npu_generation}" if npu_generation else "a simulated NPU"
    return f"{', '.join(fields)} {'has' if len(fields) == 1 else 'have'} no effect with {what}"


def _of_npu(replica: AssignedReplica, generation: str) -> Iterator[str]:
    serving = replica.serving
    yield from _of_all(serving)
    # The library answers one request at a time, on CPUs that are named one by one.
    if serving.max_concurrent != 1:
        yield "serving.maxConcurrent above 1"
    if serving.threads:
        yield "serving.threads (use serving.cpus)"
    if generation == "G1":  # Its parameters have no place for these. Source: rkllm.h of release 1.1.4.
        if serving.embed_flash:
            yield "serving.embedFlash"
        if serving.cpus:
            yield "serving.cpus"
        if serving.keep_tokens and serving.context_overflow == "Shift":
            yield "serving.keepTokens"


def _of_others(replica: AssignedReplica) -> Iterator[str]:
    serving = replica.serving
    yield from _of_all(serving)
    if serving.prompt_cache_bytes:
        yield "serving.promptCache"
    if serving.embed_flash:
        yield "serving.embedFlash"
    if serving.cpus:
        yield "serving.cpus"
    if serving.iommu_domain != _DEFAULTS.iommu_domain:
        yield "serving.iommuDomain"
    for role in ("adapter", "encoder"):
        if any(file.role == role for file in replica.files):
            yield f"the {role} of the variant"


def _of_all(serving: ServingParameters) -> Iterator[str]:
    if serving.keep_tokens and serving.context_overflow != "Shift":
        yield "serving.keepTokens without contextOverflow Shift"
