"""Bodies in Kubernetes' protobuf: what typed clients of kubectl 1.32 and newer send for built-in kinds.

In: the bytes of a body. Out: the object as JSON would have it, with its apiVersion and kind. `bodies.py` calls it. Answers are JSON, which
those clients accept. The envelope is four bytes and a `runtime.Unknown`; what is in it is described by the table below, built into message
types of the protobuf library once. Clients of Go write zero values explicitly; they are left out, as JSON's `omitempty` does.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding, the `generated.proto` files of `k8s.io/api` and
`k8s.io/apimachinery`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from controller.api.errors import UnsupportedMediaType
from rkfleet.clock import format_micro_time, format_time
from rkfleet.errors import BadRequest

__all__ = ["MAGIC", "MEDIA_TYPE", "decode_protobuf"]

Json = dict[str, Any]

MEDIA_TYPE: Final = "application/vnd.kubernetes.protobuf"
MAGIC: Final = b"k8s\0"

_PACKAGE: Final = "rkfleet.kubernetes"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_MAX: Final = 253_402_300_799  # The last second of the year 9999, behind which no date can be written.

# Message: its fields as `name:number:type`; `*` is repeated, `map<…>` has text for keys. `bytes` become base64.
_MESSAGES: Final[Mapping[str, str]] = {
    "Unknown": "typeMeta:1:TypeMeta raw:2:bytes contentEncoding:3:string contentType:4:string",
    "TypeMeta": "apiVersion:1:string kind:2:string",
    "Time": "seconds:1:int64 nanos:2:int32",
    "MicroTime": "seconds:1:int64 nanos:2:int32",
    "FieldsV1": "raw:1:bytes",
    "ObjectMeta": (
        "name:1:string generateName:2:string namespace:3:string selfLink:4:string uid:5:string resourceVersion:6:string generation:7:int64"
        " creationTimestamp:8:Time deletionTimestamp:9:Time deletionGracePeriodSeconds:10:int64 labels:11:map<string>"
        " annotations:12:map<string> ownerReferences:13:*OwnerReference finalizers:14:*string managedFields:17:*ManagedFieldsEntry"
    ),
    "OwnerReference": "kind:1:string name:3:string uid:4:string apiVersion:5:string controller:6:bool blockOwnerDeletion:7:bool",
    "ManagedFieldsEntry": (
        "manager:1:string operation:2:string apiVersion:3:string time:4:Time fieldsType:6:string fieldsV1:7:FieldsV1 subresource:8:string"
    ),
    "Preconditions": "uid:1:string resourceVersion:2:string",
    "DeleteOptions": (
        "gracePeriodSeconds:1:int64 preconditions:2:Preconditions orphanDependents:3:bool propagationPolicy:4:string dryRun:5:*string"
    ),
    "Namespace": "metadata:1:ObjectMeta spec:2:NamespaceSpec status:3:NamespaceStatus",
    "NamespaceSpec": "finalizers:1:*string",
    "NamespaceStatus": "phase:1:string",
    "Secret": "metadata:1:ObjectMeta data:2:map<bytes> type:3:string stringData:4:map<string> immutable:5:bool",
    "ConfigMap": "metadata:1:ObjectMeta data:2:map<string> binaryData:3:map<bytes> immutable:4:bool",
    "Lease": "metadata:1:ObjectMeta spec:2:LeaseSpec",
    "LeaseSpec": (
        "holderIdentity:1:string leaseDurationSeconds:2:int32 acquireTime:3:MicroTime renewTime:4:MicroTime leaseTransitions:5:int32"
    ),
    "ObjectReference": (
        "kind:1:string namespace:2:string name:3:string uid:4:string apiVersion:5:string resourceVersion:6:string fieldPath:7:string"
    ),
    "EventSource": "component:1:string host:2:string",
    "EventSeries": "count:1:int32 lastObservedTime:2:MicroTime",
    "Event": (
        "metadata:1:ObjectMeta involvedObject:2:ObjectReference reason:3:string message:4:string source:5:EventSource firstTimestamp:6:Time"
        " lastTimestamp:7:Time count:8:int32 type:9:string eventTime:10:MicroTime series:11:EventSeries action:12:string"
        " related:13:ObjectReference reportingComponent:14:string reportingInstance:15:string"
    ),
    "RegardedEvent": (
        "metadata:1:ObjectMeta eventTime:2:MicroTime series:3:EventSeries reportingController:4:string reportingInstance:5:string"
        " action:6:string reason:7:string regarding:8:ObjectReference related:9:ObjectReference note:10:string type:11:string"
        " deprecatedSource:12:EventSource deprecatedFirstTimestamp:13:Time deprecatedLastTimestamp:14:Time deprecatedCount:15:int32"
    ),
    "Scale": "metadata:1:ObjectMeta spec:2:ScaleSpec status:3:ScaleStatus",
    "ScaleSpec": "replicas:1:int32",
    "ScaleStatus": "replicas:1:int32 selector:2:string",
    "ResourceAttributes": (
        "namespace:1:string verb:2:string group:3:string version:4:string resource:5:string subresource:6:string name:7:string"
    ),
    "NonResourceAttributes": "path:1:string verb:2:string",
    "SelfSubjectAccessReview": "metadata:1:ObjectMeta spec:2:SelfSubjectAccessReviewSpec",
    "SelfSubjectAccessReviewSpec": "resourceAttributes:1:ResourceAttributes nonResourceAttributes:2:NonResourceAttributes",
    "SelfSubjectRulesReview": "metadata:1:ObjectMeta spec:2:SelfSubjectRulesReviewSpec",
    "SelfSubjectRulesReviewSpec": "namespace:1:string",
    "SelfSubjectReview": "metadata:1:ObjectMeta",
}

_KINDS: Final[Mapping[tuple[str, str], str]] = {
    **{("v1", kind): kind for kind in ("Namespace", "Secret", "ConfigMap", "Event", "DeleteOptions")},
    ("meta.k8s.io/v1", "DeleteOptions"): "DeleteOptions",
    ("coordination.k8s.io/v1", "Lease"): "Lease",
    ("events.k8s.io/v1", "Event"): "RegardedEvent",
    ("autoscaling/v1", "Scale"): "Scale",
    ("authorization.k8s.io/v1", "SelfSubjectAccessReview"): "SelfSubjectAccessReview",
    ("authorization.k8s.io/v1", "SelfSubjectRulesReview"): "SelfSubjectRulesReview",
    ("authentication.k8s.io/v1", "SelfSubjectReview"): "SelfSubjectReview",
}
"""Message of each (apiVersion, kind) that is read. Every group names its DeleteOptions by its own version; those are found by kind."""

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "bool": _Field.TYPE_BOOL,
}


def decode_protobuf(body: bytes) -> Json:
    """Return the object in a body.

    Raises:
        BadRequest: It is damaged.
        UnsupportedMediaType: It is of a kind that is not read in this form.
    """
    if not body.startswith(MAGIC):
        raise BadRequest("the body is not Kubernetes' protobuf: it does not begin with k8s\\0")
    envelope: Any = _parsed("Unknown", body[len(MAGIC) :])
    api_version, kind = envelope.typeMeta.apiVersion, envelope.typeMeta.kind
    name = _KINDS.get((api_version, kind)) or ("DeleteOptions" if kind == "DeleteOptions" else "")
    if not name:
        raise UnsupportedMediaType(
            f"the body of the request was in an unsupported format: {MEDIA_TYPE} of {api_version[:80]} {kind[:80]} is not read; send JSON"
        )
    if envelope.contentEncoding:
        raise BadRequest(f"the encoding {envelope.contentEncoding[:40]!r} of the body is not read; leave it out")
    return {"apiVersion": api_version, "kind": kind, **_json(_parsed(name, envelope.raw))}


def _parsed(name: str, raw: bytes) -> Message:
    message = _CLASSES[name]()
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        raise BadRequest(f"the body is not a valid protobuf message of {name}") from error
    return message


def _json(message: Message) -> Json:
    """Return what is set in a message and is not empty."""
    found: Json = {}
    for field, value in message.ListFields():
        if field.is_repeated:
            found[field.name] = _mapped(value) if _is_map(field) else [_value(one) for one in value]
        elif (one := _value(value)) not in ({}, None):
            found[field.name] = one
    return found


def _is_map(field: Any) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def _mapped(value: Mapping[str, Any]) -> Json:
    return {key: _value(one) for key, one in value.items()}


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if not isinstance(value, Message):
        return value
    match value.DESCRIPTOR.name:
        case "Time":
            return _time(value, format_time)
        case "MicroTime":
            return _time(value, format_micro_time)
        case "FieldsV1":
            return _fields(value)
        case _:
            return _json(value)


def _time(value: Any, written: Callable[[datetime], str]) -> str | None:
    if not 0 < value.seconds <= _SECONDS_MAX:
        return None  # Go's zero time lies before our era; nothing here is older than 1970.
    return written(_EPOCH + timedelta(seconds=value.seconds, microseconds=min(max(value.nanos, 0), 999_999_999) // 1_000))


def _fields(value: Any) -> Any:
    try:
        return msgspec.json.decode(value.raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadRequest("fieldsV1 of managedFields in the body is not JSON") from error


def _classes() -> Mapping[str, type[Message]]:
    """Build the message types of the table."""
    file = descriptor_pb2.FileDescriptorProto(name="rkfleet/kubernetes.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields.split():
            _add_field(message, *field.split(":"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES}


def _add_field(message: descriptor_pb2.DescriptorProto, name: str, number: str, type: str) -> None:
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if type.startswith("*"):
        field.label, type = _Field.LABEL_REPEATED, type[1:]
    if type.startswith("map<"):
        entry = message.nested_type.add(name=f"{name[0].upper()}{name[1:]}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
        entry.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL, type=_SCALARS[type[4:-1]])
        field.label, field.type = _Field.LABEL_REPEATED, _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{message.name}.{entry.name}"
    elif type in _SCALARS:
        field.type = _SCALARS[type]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{type}"


_CLASSES: Final = _classes()
