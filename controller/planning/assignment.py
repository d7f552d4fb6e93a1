"""Replicas bound to a board -> the board's whole desired state, and its number.

In: the Replicas with this board's name and what their deployments, revisions and Models say. Out: the `Assignment`, and which number it
gets (`next_number`). `reconcilers/assignment.py` mints with it. The number rises only when the bytes differ, so that nothing on the board
moves when nothing changed.

A replica whose revision or Model does not exist is left out, because nobody knows its bytes any more; a Model is kept from going while
revisions name it (planning/model.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from controller.planning.actions import Value
from controller.planning.claims import served_name
from controller.planning.placement import find_variant
from rkfleet.assignment import AssignedFile, AssignedReplica, Assignment, ServingParameters
from rkfleet.kinds.board import Tuning
from rkfleet.kinds.deployment import ModelDeployment
from rkfleet.kinds.model import Model, Variant
from rkfleet.kinds.replica import Replica
from rkfleet.kinds.revision import ModelRevision
from rkfleet.quantity import parse_bytes

__all__ = ["Offer", "next_number", "plan_assignment"]


class Offer(Value, frozen=True, kw_only=True):
    """A numbered assignment: the exact bytes and their hash."""

    number: int
    body: bytes
    sha256: str


def plan_assignment(
    replicas: Iterable[Replica],
    deployments: Mapping[tuple[str, str], ModelDeployment],
    revisions: Mapping[tuple[str, str], ModelRevision],
    models: Mapping[tuple[str, str], Model],
    tuning: Tuning = Tuning(),
) -> Assignment:
    """Return everything that a board must run and be; mappings are by (namespace, name)."""
    assigned = []
    for replica in sorted(replicas, key=lambda one: (one.metadata.namespace, one.metadata.name)):
        namespace = replica.metadata.namespace
        revision = revisions.get((namespace, replica.spec.revision_name))
        variant = find_variant(replica, revision, models)
        if revision is None or variant is None or replica.metadata.deletion_timestamp:
            continue
        deployment = deployments.get((namespace, replica.spec.deployment_name))
        name = served_name(deployment) if deployment else replica.spec.deployment_name
        assigned.append(_assigned(replica, revision, variant, name))
    return Assignment(replicas=tuple(assigned), clocks=tuning.clocks)


def _assigned(replica: Replica, revision: ModelRevision, variant: Variant, name: str) -> AssignedReplica:
    serving = revision.spec.template.serving
    reference = variant.reference
    return AssignedReplica(
        namespace=replica.metadata.namespace,
        name=replica.metadata.name,
        uid=replica.metadata.uid,
        generation=replica.metadata.generation,
        model=revision.spec.template.model,
        served_model_name=name,
        variant=variant.name,
        soc=variant.soc,
        dtype=variant.dtype,
        runtime=variant.runtime,
        files=tuple(
            AssignedFile(path=one.path, digest=one.digest, size_bytes=one.size_bytes, role=one.role, scale_percent=one.scale_percent)
            for one in variant.artifact.files
        ),
        memory_bytes=parse_bytes(variant.requires.memory),
        runtime_version=variant.requires.runtime_version,
        reference_model=reference.model if reference else "",
        reference_sdk_version=reference.sdk_version if reference else "",
        activation=replica.spec.activation,
        replaces=replica.spec.replaces,
        serving=ServingParameters(
            context_tokens=serving.context_tokens,
            max_concurrent=serving.max_concurrent,
            max_queued=serving.max_queued,
            max_output_tokens=serving.max_output_tokens,
            threads=serving.threads,
            drain_seconds=serving.drain_seconds,
            load=serving.load,
            idle_unload_seconds=serving.idle_unload_seconds,
            context_overflow=serving.context_overflow,
            keep_tokens=serving.keep_tokens,
            prompt_cache_bytes=parse_bytes(serving.prompt_cache),
            runtime_version=serving.runtime_version,
            embed_flash=serving.embed_flash,
            cpus=serving.cpus,
            iommu_domain=serving.iommu_domain,
        ),
    )


def next_number(sha256: str, minted: int, minted_sha256: str, held: int = 0, held_sha256: str = "") -> int:
    """Return the number under which a board can take bytes with this hash.

    The board refuses a lower number than it holds, and the number that it holds with other bytes. It holds more than was ever minted
    here when this store is a restored, older one.

    Args:
        sha256: Of what is to be offered.
        minted: Latest number in `Board.status.assignment`.
        minted_sha256: Its hash.
        held: Number in the board's ledger; 0 if it told none.
        held_sha256: Its hash.
    """
    if held > minted:
        return held + 1
    if minted == 0 or sha256 != minted_sha256 or (held == minted and held_sha256 != sha256):
        return minted + 1
    return minted
