"""Whether a Model can be used, and when it may go.

In: a Model, the digests of its files that the registry does not have, and who uses it. Out: its `Ready` condition, and the finalizer
that keeps it while a Replica runs it: boards load what the Model says, so a Model that went would take down what serves.
`reconcilers/model.py` observes and calls.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from controller.planning.actions import Action, EditMetadata, Plan, WriteStatus
from rkfleet import conditions
from rkfleet.conditions import Condition, condition, explain
from rkfleet.kinds.model import Model

__all__ = ["IN_USE", "plan_model"]

IN_USE: Final = "rkfleet.dev/in-use"
MISSING_RETRY_SECONDS: Final = 5.0  # Nobody tells when a push ends; a person who waits for it looks about this often.
RECHECK_SECONDS: Final = 300.0  # Blobs may be lost with a disk; asking costs one request for each file.
FILES_NAMED_MAX: Final = 8  # In the message; the first of them are enough to know which push is missing.


def plan_model(model: Model, missing: Collection[str] | None, why_unknown: str, users: Sequence[str]) -> Plan:
    """Return what to write for a Model now.

    Args:
        model: The Model.
        missing: Digests that the registry does not have; None if it could not be asked.
        why_unknown: Why it could not be asked.
        users: Names of Replicas that run this Model.
    """
    actions: list[Action] = list(_finalize(model, users))
    said = _ready(model, missing, why_unknown)
    before = conditions.find(model.status.conditions, conditions.READY)
    old = (before.status, before.reason, before.message, before.observed_generation) if before else None
    if not _leaves(actions) and (
        old != (said.status, said.reason, said.message, said.observed_generation)
        or model.status.observed_generation != model.metadata.generation
    ):
        fields = {"observedGeneration": model.metadata.generation}
        actions.append(WriteStatus(ref=model.ref, uid=model.metadata.uid, owner="model", fields=fields, conditions=(said,)))
    waiting = f"Replicas {', '.join(users)} to go" if model.metadata.deletion_timestamp and users else ""
    again = RECHECK_SECONDS if said.status == "True" else MISSING_RETRY_SECONDS
    return Plan(actions=tuple(actions), waiting=waiting, again_after_seconds=again)


def _finalize(model: Model, users: Sequence[str]) -> Sequence[EditMetadata]:
    meta = model.metadata
    if meta.deletion_timestamp and not users and IN_USE in meta.finalizers:
        left = tuple(one for one in meta.finalizers if one != IN_USE)
    elif not meta.deletion_timestamp and users and IN_USE not in meta.finalizers:
        left = (*meta.finalizers, IN_USE)
    else:
        return ()
    return (EditMetadata(ref=model.ref, uid=meta.uid, resource_version=meta.resource_version, finalizers=left),)


def _leaves(actions: Sequence[Action]) -> bool:
    return any(isinstance(one, EditMetadata) and IN_USE not in (one.finalizers or ()) for one in actions)


def _ready(model: Model, missing: Collection[str] | None, why_unknown: str) -> Condition:
    generation = model.metadata.generation
    if missing is None:
        message = explain(f"The registry cannot be asked: {why_unknown}", "curl -k https://REGISTRY/v2/ (401 says that it answers)")
        return condition(conditions.READY, "Unknown", conditions.REGISTRY_UNAVAILABLE, message, generation)
    names = [
        f"{one.path} of variant {variant.name} ({one.digest[:19]})"
        for variant in model.spec.variants
        for one in variant.artifact.files
        if one.digest in missing
    ]
    if names:
        more = f" and {len(names) - FILES_NAMED_MAX} more" if len(names) > FILES_NAMED_MAX else ""
        count = sum(len(variant.artifact.files) for variant in model.spec.variants)
        why = f"{len(names)} of {count} files are not in the registry: {', '.join(names[:FILES_NAMED_MAX])}{more}"
        command = f"rkfleet model push FILE --name {model.metadata.name} --variant name={model.spec.variants[0].name},..."
        return condition(conditions.READY, "False", conditions.ARTIFACT_MISSING, explain(why, command), generation)
    count = len(model.spec.variants)
    return condition(
        conditions.READY, "True", conditions.ARTIFACTS_PRESENT, f"All files of {count} variants are in the registry.", generation
    )
