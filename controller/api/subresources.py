"""The scale of an object: `autoscaling/v1 Scale` read from it, and a changed Scale written back into its spec.

Pure. In: an object as stored, a patch or a whole Scale. Out: a Scale, or the object with other replicas. `resources.py` calls these around
the ordinary write path, so that admission and conflicts are those of the object itself. The status subresource needs no module: it is a
target whose changes the write path confines to `status`.

Source: Kubernetes `api/autoscaling/v1/types.go`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from rkfleet.errors import BadRequest, Cause, Invalid
from rkfleet.kinds.base import Resource

__all__ = ["part_of_scale", "scale_of", "with_scale"]

Json = dict[str, Any]

_IDENTITY: Final = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")


class _ScaleSpec(msgspec.Struct):
    replicas: int = 0


class _ScaleMeta(msgspec.Struct, rename="camel"):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""


class _Scale(msgspec.Struct, rename="camel"):
    api_version: str = "autoscaling/v1"
    kind: str = "Scale"
    metadata: _ScaleMeta = msgspec.field(default_factory=_ScaleMeta)
    spec: _ScaleSpec = msgspec.field(default_factory=_ScaleSpec)


def scale_of(obj: Json) -> Json:
    """Return the Scale of an object."""
    metadata, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: metadata[key] for key in _IDENTITY if key in metadata},
        "spec": {"replicas": spec.get("replicas", 0)},
        "status": {"replicas": status.get("replicas", 0), "selector": status.get("selector", "")},
    }


def with_scale(obj: Json, scale: Any) -> Json:
    """Return the object with the replicas of a Scale, and with its uid and resourceVersion as preconditions.

    Raises:
        BadRequest: It is not a Scale of this object.
        Invalid: Its replicas are negative.
    """
    wanted, before = _read(scale), obj["metadata"]
    for field, given in (("name", wanted.metadata.name), ("namespace", wanted.metadata.namespace)):
        if given not in ("", before.get(field, "")):
            raise BadRequest(f"the {field} of the Scale ({given}) does not match the {field} on the URL ({before.get(field, '')})")
    expected = {"uid": wanted.metadata.uid, "resourceVersion": wanted.metadata.resource_version}
    metadata = {**before, **{key: value for key, value in expected.items() if value}}
    return {**obj, "metadata": metadata, "spec": {**(obj.get("spec") or {}), "replicas": wanted.spec.replicas}}


def part_of_scale(resource: Resource, scale: Json) -> Json:
    """Return the part of an object that somebody applies who applies this Scale.

    Raises:
        BadRequest: It is not a Scale.
        Invalid: Its replicas are negative.
    """
    wanted = _read(scale)
    named = {"name": wanted.metadata.name, "uid": wanted.metadata.uid, "resourceVersion": wanted.metadata.resource_version}
    metadata = {key: value for key, value in named.items() if value}
    said = isinstance(scale.get("spec"), dict) and scale["spec"].get("replicas") is not None
    spec = {"replicas": wanted.spec.replicas} if said else {}
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, "spec": spec}


def _read(scale: Any) -> _Scale:
    try:
        wanted = msgspec.convert(scale, _Scale)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the body must be an autoscaling/v1 Scale: {error}") from error
    if (wanted.api_version, wanted.kind) != ("autoscaling/v1", "Scale"):
        raise BadRequest(f"the body must be an autoscaling/v1 Scale, not {wanted.api_version} {wanted.kind}")
    if wanted.spec.replicas < 0:
        message = f"Invalid value: {wanted.spec.replicas}: must be greater than or equal to 0"
        raise Invalid(f"spec.replicas: {message}", (Cause("spec.replicas", message),))
    return wanted
