"""Objects as people write them: valid, with the fewest fields; a test changes what it is about."""

from __future__ import annotations

from typing import Any

from rkfleet.kinds.base import GROUP, VERSION

Json = dict[str, Any]
API_VERSION = f"{GROUP}/{VERSION}"


def deployment(name: str = "smollm2", **spec: Any) -> Json:
    """A ModelDeployment."""
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"template": {"model": "smollm2-135m"}, **spec},
    }


def variant(name: str = "any-q4-1", **fields: Any) -> Json:
    """A variant of a Model, for CPUs."""
    file = {"path": "model.gguf", "digest": f"sha256:{'0' * 64}", "sizeBytes": 98362432}
    return {"name": name, "soc": "any", "dtype": "q4_1", "runtime": "llamacpp", "artifact": {"files": [file]}, **fields}


def model(name: str = "smollm2-135m", *variants: Json) -> Json:
    """A Model with one variant, or with those given."""
    return {
        "apiVersion": API_VERSION,
        "kind": "Model",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"variants": list(variants) or [variant()]},
    }


def replica(name: str = "smollm2-abc-0", **spec: Any) -> Json:
    """A Replica that is placed nowhere."""
    return {
        "apiVersion": API_VERSION,
        "kind": "Replica",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"deploymentName": "smollm2", "revisionName": "smollm2-abc", "slot": "0", **spec},
    }


def board(name: str = "cpu-1", **spec: Any) -> Json:
    """A Board, which is cluster-scoped."""
    return {"apiVersion": API_VERSION, "kind": "Board", "metadata": {"name": name}, "spec": spec}


def stored(obj: Json, **metadata: Any) -> Json:
    """The object as the store would have it."""
    owned = {"uid": "11111111-1111-4111-8111-111111111111", "resourceVersion": "7", "generation": 1}
    return {**obj, "metadata": {**obj["metadata"], **owned, "creationTimestamp": "2026-11-23T08:00:00Z", **metadata}}
