"""A replica of the assignment as the serving side knows it.

In: what the planner says is served. Out: `Route`, one for each. Called by `agent/app.py` for each pass of the loop that publishes.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from pathlib import PurePosixPath

from agent.planning.values import Served
from agent.serving.routes import Route
from rkfleet.assignment import AssignedReplica

__all__ = ["route_of"]


def route_of(served: Served, board: str, simulated: AbstractSet[str] = frozenset()) -> Route:
    """Return a replica as the serving side knows it.

    Args:
        served: The replica.
        board: Name of the board.
        simulated: Names of the runtimes that are simulated here.
    """
    replica = served.replica
    return Route(
        uid=replica.uid,
        namespace=replica.namespace,
        name=replica.name,
        served_model_name=replica.served_model_name,
        model=replica.model,
        variant=replica.variant,
        board=board,
        endpoint=served.endpoint,
        api_key=served.api_key,
        max_concurrent=served.max_concurrent,
        max_queued=replica.serving.max_queued,
        max_output_tokens=replica.serving.max_output_tokens,
        context_tokens=replica.serving.context_tokens,
        draining=served.draining,
        waiting_reason=served.waiting,
        on_demand=served.on_demand,
        shifts=replica.serving.context_overflow == "Shift",
        adapters=_adapters(replica),
        runtime=replica.runtime,
        dtype=replica.dtype,
        size_bytes=sum(file.size_bytes for file in replica.files),
        digest=next((file.digest for file in replica.files_of("weight")), "").removeprefix("sha256:"),
        memory_bytes=replica.memory_bytes,
        images=bool(replica.files_of("encoder")),
        soc=replica.soc,
        reference_model=replica.reference_model,
        reference_sdk_version=replica.reference_sdk_version,
        simulated=replica.runtime in simulated,
    )


def _adapters(replica: AssignedReplica) -> tuple[str, ...]:
    """Return the LoRAs that requests may name. llama.cpp would need them at load, and would ignore the name without a word."""
    if replica.runtime != "rkllm":
        return ()
    return tuple(sorted(PurePosixPath(file.path).stem for file in replica.files_of("adapter")))
