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


def without_effect(replica: AssignedReplica, *, on_npu: bool) -> str:
    """Return the sentence, or an empty one when every field acts."""
    fields = sorted(_fields(replica, on_npu=on_npu))
    if not fields:
        return ""
    what = "a simulated NPU" if replica.runtime == "rkllm" and not on_npu else f"runtime {replica.runtime}"
    return f"{', '.join(fields)} {'has' if len(fields) == 1 else 'have'} no effect with {what}"


def _fields(replica: AssignedReplica, *, on_npu: bool) -> Iterator[str]:
    serving = replica.serving
    if serving.keep_tokens and serving.context_overflow != "Shift":
        yield "serving.keepTokens without contextOverflow Shift"
    if on_npu:
        # The library answers one request at a time on CPUs that are named one by one.
        if serving.max_concurrent != 1:
            yield "serving.maxConcurrent above 1"
        if serving.threads:
            yield "serving.threads (use serving.cpus)"
        return
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
