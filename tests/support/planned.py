"""Objects as planners take them: short ways to Boards, Models, deployments and Replicas in a given state."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from rkfleet.clock import format_time
from rkfleet.kinds import Board, Model, ModelDeployment, ModelRevision, Replica
from rkfleet.kinds.base import Object

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LONG_AGO = "2026-01-01T00:00:00Z"

Json = dict[str, Any]


def make(kind: type[Any], name: str, *, spec: Json, status: Json | None = None, namespace: str = "default", **metadata: Any) -> Any:
    """Return an object of a kind; its uid is `uid-<name>`."""
    meta = {"name": name, "uid": f"uid-{name}", "resourceVersion": "1", "generation": 1, "creationTimestamp": LONG_AGO, **metadata}
    if kind.resource.namespaced:
        meta["namespace"] = namespace
    assert issubclass(kind, Object)
    return msgspec.convert({"metadata": meta, "spec": spec, "status": status or {}}, kind)


def said(type: str, status: str = "True", reason: str = "Because", message: str = "", since: str = LONG_AGO) -> Json:
    """Return a condition as JSON."""
    return {"type": type, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}


def board(name: str, *, memory: str = "4Gi", spec: Json | None = None, ready: bool = True, **more: Any) -> Board:
    """Return a Board in session that runs llama.cpp 1.2 on a CPU; `more` are metadata (labels) and status fields."""
    metadata = {key: more.pop(key) for key in ("labels", "deletionTimestamp") if key in more}
    status = {
        "soc": "cpu",
        "allocatable": {"memory": memory, "storage": "10Gi"},
        "runtimes": [{"name": "llamacpp", "version": "1.2", "backend": "llamacpp"}],
        "session": {"controller": "c", "number": 1},
        "conditions": [said("Ready", "True" if ready else "False", "SessionOpen" if ready else "BoardLost")],
    }
    return make(Board, name, spec=spec or {}, status={**status, **more}, **metadata)  # type: ignore[no-any-return]


def variant(name: str = "q4", *, soc: str = "any", runtime: str = "llamacpp", memory: str = "1Gi", digest: str = "a", **more: Any) -> Json:
    """Return a variant as JSON; `more` are its other fields and, of `requires`, those that are given."""
    requires = {"memory": memory, **{key: more.pop(key) for key in ("runtimeVersion", "driverVersion", "npuCores") if key in more}}
    files = [{"path": "m", "digest": f"sha256:{digest * 64}", "sizeBytes": 1000}]
    return {"name": name, "soc": soc, "dtype": "w8a8", "runtime": runtime, "artifact": {"files": files}, "requires": requires, **more}


def model(name: str = "qwen", *variants: Json, **metadata: Any) -> Model:
    """Return a Model with these variants, by default one that any board runs."""
    return make(Model, name, spec={"variants": list(variants or (variant(),))}, **metadata)  # type: ignore[no-any-return]


def deployment(name: str = "chat", *, replicas: int = 2, model: str = "qwen", status: Json | None = None, **spec: Any) -> ModelDeployment:
    """Return a deployment; `spec` may hold metadata fields too."""
    metadata = {key: spec.pop(key) for key in ("creationTimestamp", "deletionTimestamp", "namespace", "generation") if key in spec}
    template = {"model": model, **spec.pop("template", {})}
    full = {"replicas": replicas, "template": template, **spec}
    return make(ModelDeployment, name, spec=full, status=status, **metadata)  # type: ignore[no-any-return]


def revision(name: str, owner: ModelDeployment, *, number: int = 1, model: str = "qwen", **template: Any) -> ModelRevision:
    """Return a revision of a deployment."""
    spec = {"revision": number, "modelUID": f"uid-{model}", "deploymentName": owner.metadata.name, "template": {"model": model, **template}}
    return make(ModelRevision, name, spec=spec, ownerReferences=[_owned(owner)])  # type: ignore[no-any-return]


def replica(
    name: str, owner: ModelDeployment, revision: str, *, slot: int = 0, board: str = "", conditions: list[Json] | None = None, **more: Any
) -> Replica:
    """Return a Replica; with a board it is placed, reported about, and, unless `conditions` say otherwise, Ready since long."""
    if conditions is None:
        conditions = [said("Scheduled"), said("ArtifactAvailable"), said("Loaded"), said("Ready")] if board else []
    metadata = {key: more.pop(key) for key in ("deletionTimestamp", "finalizers") if key in more}
    place = {"boardName": board, "variantName": more.pop("variant", "q4")} if board else {}
    spec = {"deploymentName": owner.metadata.name, "revisionName": revision, "slot": str(slot), **place, **more}
    status = {"conditions": conditions, "observedGeneration": 1 if board else 0}
    return make(Replica, name, spec=spec, status=status, ownerReferences=[_owned(owner)], **metadata)  # type: ignore[no-any-return]


def seconds_ago(seconds: float) -> str:
    """Return a time before `NOW`."""
    return format_time(datetime.fromtimestamp(NOW.timestamp() - seconds, tz=UTC))


def _owned(owner: ModelDeployment) -> Json:
    meta = owner.metadata
    return {"apiVersion": "rkfleet.dev/v1alpha1", "kind": "ModelDeployment", "name": meta.name, "uid": meta.uid, "controller": True,
            "blockOwnerDeletion": True}  # fmt: skip
