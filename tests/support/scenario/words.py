"""What a stored change means, in the words of a transcript."""

from __future__ import annotations

from typing import Any

from rkfleet.kinds import ModelDeployment, ModelRevision, Replica
from rkfleet.kinds.base import Object


def sentence_of(old: Object | None, new: Object | None) -> str:
    """Return what a reader of a transcript wants to know of a change; empty for nothing."""
    subject = new or old
    assert subject is not None
    said = [f"{subject.resource.kind} {subject.metadata.name}"]
    match old, new:
        case None, _:
            said.append("is created" + _spec_of(new))
        case _, None:
            said.append("is deleted")
        case _:
            if isinstance(new, Replica) and isinstance(old, Replica):
                said += _changes_of_replica(old, new)
            elif old.metadata.generation != new.metadata.generation:
                said.append("is edited")
            said += _transitions(getattr(old, "status", None), getattr(new, "status", None))
            if isinstance(new, ModelDeployment) and len(said) > 1:
                status = new.status
                said.append(f"({status.updated_replicas} updated, {status.available_replicas} available of {new.spec.replicas})")
    return " ".join(said) if len(said) > 1 else ""


def _spec_of(obj: Any) -> str:
    match obj:
        case Replica(spec=spec):
            return f" {spec.activation}" + (f", replaces {spec.replaces}" if spec.replaces else "")
        case ModelDeployment(spec=spec):
            return f", {spec.replicas} of {spec.template.model}"
        case ModelRevision(spec=spec):
            return f", number {spec.revision}"
        case _:
            return ""


def _changes_of_replica(old: Replica, new: Replica) -> list[str]:
    said = []
    if old.spec.board_name != new.spec.board_name:
        said.append(f"is placed on {new.spec.board_name}")
    if old.spec.activation != new.spec.activation:
        said.append(f"is {new.spec.activation}")
    return said


def _transitions(old: Any, new: Any) -> list[str]:
    if new is None or not hasattr(new, "conditions"):
        return []
    before = {one.type: (one.status, one.reason) for one in old.conditions}
    return [f"{one.type}={one.status}/{one.reason}" for one in new.conditions if before.get(one.type) != (one.status, one.reason)]
