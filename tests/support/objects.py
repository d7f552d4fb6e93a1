"""Objects as people write them, for tests of the API."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

GROUP_PATH = "/apis/rkfleet.dev/v1alpha1"
DEPLOYMENTS = f"{GROUP_PATH}/namespaces/default/modeldeployments"
BOARDS = f"{GROUP_PATH}/boards"


def deployment(name: str = "qwen", *, namespace: str = "default", labels: Json | None = None, **spec: Any) -> Json:
    """Return a ModelDeployment."""
    metadata: Json = {"name": name, "namespace": namespace, **({"labels": labels} if labels else {})}
    return {
        "apiVersion": "rkfleet.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": metadata,
        "spec": {"template": {"model": "qwen2"}, **spec},
    }


def board(name: str, labels: Json | None = None) -> Json:
    """Return a Board."""
    metadata: Json = {"name": name, **({"labels": labels} if labels else {})}
    return {"apiVersion": "rkfleet.dev/v1alpha1", "kind": "Board", "metadata": metadata, "spec": {}}


def namespace(name: str) -> Json:
    """Return a Namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def event(about: Json, name: str, message: str, *, type: str = "Normal", reason: str = "Created") -> Json:
    """Return an Event about a stored object."""
    metadata = about["metadata"]
    reference = {"apiVersion": about["apiVersion"], "kind": about["kind"], "name": metadata["name"], "uid": metadata["uid"]}
    if "namespace" in metadata:
        reference["namespace"] = metadata["namespace"]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": metadata.get("namespace", "default")},
        "involvedObject": reference,
        "type": type,
        "reason": reason,
        "message": message,
        "source": {"component": "deployment"},
        "firstTimestamp": metadata["creationTimestamp"],
        "lastTimestamp": metadata["creationTimestamp"],
        "count": 1,
    }
