"""Bodies in Kubernetes' protobuf: what typed clients of kubectl 1.32 and newer send for built-in kinds.

In: the bytes of a body. Out: the object as JSON would have it, with its apiVersion and kind. `bodies.py` calls it. Answers are JSON, which
those clients accept. The envelope is four bytes and a `runtime.Unknown`; what is in it is described by the table below. Clients of Go
write zero values explicitly; they are left out, as JSON's `omitempty` does.

It is a reader of our own, because a library makes a million values of three megabytes of empty messages before anybody can count them.

Source: https://protobuf.dev/programming-guides/encoding/,
https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding, the `generated.proto` files of `k8s.io/api` and
`k8s.io/apimachinery`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec

from controller.api.errors import UnsupportedMediaType
from rkfleet.clock import format_micro_time, format_time
from rkfleet.errors import BadRequest

__all__ = ["MAGIC", "MEDIA_TYPE", "decode_protobuf"]

Json = dict[str, Any]

MEDIA_TYPE: Final = "application/vnd.kubernetes.protobuf"
MAGIC: Final = b"k8s\0"

FIELDS_MAX: Final = 5_000  # Of one body, about 15 ms; the largest Secret that people write has some hundreds.

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_MAX: Final = 253_402_300_799  # The last second of the year 9999, behind which no date can be written.

_VARINT, _LENGTH = 0, 2  # Wire types.
_FIXED_BYTES: Final[Mapping[int, int]] = {1: 8, 5: 4}  # Those of a fixed length; no field here has one.
_VARINT_BYTES_MAX: Final = 10
_UINT64: Final = (1 << 64) - 1

# Message: its fields as `name:number:type`; `*` is repeated, `map<…>` has text for keys, `?` is a pointer in Go, whose zero is a value.
# `bytes` become base64.
_MESSAGES: Final[Mapping[str, str]] = {
    "Unknown": "typeMeta:1:TypeMeta raw:2:bytes contentEncoding:3:string contentType:4:string",
    "TypeMeta": "apiVersion:1:string kind:2:string",
    "Time": "seconds:1:int64 nanos:2:int32",
    "MicroTime": "seconds:1:int64 nanos:2:int32",
    "FieldsV1": "raw:1:bytes",
    "ObjectMeta": (
        "name:1:string generateName:2:string namespace:3:string selfLink:4:string uid:5:string resourceVersion:6:string generation:7:int64"
        " creationTimestamp:8:Time deletionTimestamp:9:Time deletionGracePeriodSeconds:10:?int64 labels:11:map<string>"
        " annotations:12:map<string> ownerReferences:13:*OwnerReference finalizers:14:*string managedFields:17:*ManagedFieldsEntry"
    ),
    "OwnerReference": "kind:1:string name:3:string uid:4:string apiVersion:5:string controller:6:?bool blockOwnerDeletion:7:?bool",
    "ManagedFieldsEntry": (
        "manager:1:string operation:2:string apiVersion:3:string time:4:Time fieldsType:6:string fieldsV1:7:FieldsV1 subresource:8:string"
    ),
    "Preconditions": "uid:1:?string resourceVersion:2:?string",
    "DeleteOptions": (
        "gracePeriodSeconds:1:?int64 preconditions:2:Preconditions orphanDependents:3:?bool propagationPolicy:4:?string dryRun:5:*string"
    ),
    "Namespace": "metadata:1:ObjectMeta spec:2:NamespaceSpec status:3:NamespaceStatus",
    "NamespaceSpec": "finalizers:1:*string",
    "NamespaceStatus": "phase:1:string",
    "Secret": "metadata:1:ObjectMeta data:2:map<bytes> type:3:string stringData:4:map<string> immutable:5:?bool",
    "ConfigMap": "metadata:1:ObjectMeta data:2:map<string> binaryData:3:map<bytes> immutable:4:?bool",
    "Lease": "metadata:1:ObjectMeta spec:2:LeaseSpec",
    "LeaseSpec": (
        "holderIdentity:1:?string leaseDurationSeconds:2:?int32 acquireTime:3:MicroTime renewTime:4:MicroTime leaseTransitions:5:?int32"
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


class _Field(NamedTuple):
    """One field of a message: its name in JSON, its type, and how often and how it stands there."""

    name: str
    type: str
    is_repeated: bool
    is_map: bool
    keeps_zero: bool


def _parsed(text: str) -> tuple[int, _Field]:
    name, number, type = text.split(":")
    bare = type.lstrip("*?").removeprefix("map<").removesuffix(">")
    return int(number), _Field(name, bare, type.startswith("*"), type.startswith("map<"), type.startswith("?"))


_FIELDS: Final = {message: dict(_parsed(text) for text in fields.split()) for message, fields in _MESSAGES.items()}
_WIRE_TYPES: Final = {"string": _LENGTH, "bytes": _LENGTH, "int32": _VARINT, "int64": _VARINT, "bool": _VARINT}  # Of others: _LENGTH.


def decode_protobuf(body: bytes) -> Json:
    """Return the object in a body.

    Raises:
        BadRequest: It is damaged, or has more than `FIELDS_MAX` fields.
        UnsupportedMediaType: It is of a kind that is not read in this form.
    """
    if not body.startswith(MAGIC):
        raise BadRequest("the body is not Kubernetes' protobuf: it does not begin with k8s\\0")
    decoder = _Decoder()
    envelope = decoder.message("Unknown", body[len(MAGIC) :])
    head = envelope.get("typeMeta", {})
    api_version, kind = head.get("apiVersion", ""), head.get("kind", "")
    name = _KINDS.get((api_version, kind)) or ("DeleteOptions" if kind == "DeleteOptions" else "")
    if not name:
        raise UnsupportedMediaType(
            f"the body of the request was in an unsupported format: {MEDIA_TYPE} of {api_version[:80]} {kind[:80]} is not read; send JSON"
        )
    if encoding := envelope.get("contentEncoding"):
        raise BadRequest(f"the encoding {encoding[:40]!r} of the body is not read; leave it out")
    return {"apiVersion": api_version, "kind": kind, **decoder.message(name, envelope.get("raw", b""))}


class _Decoder:
    """Reads the messages of one body; all their fields together are counted, because each takes time and memory."""

    def __init__(self) -> None:
        self._left = FIELDS_MAX

    def message(self, name: str, raw: bytes) -> Json:
        """Return what is set in a message and is not empty; of a field that stands there twice, the last."""
        fields = _FIELDS[name]
        found: Json = {}
        for number, wire_type, value in self._fields(name, raw):
            if (field := fields.get(number)) is None:
                continue  # Of a newer version.
            if wire_type != _WIRE_TYPES.get(field.type, _LENGTH):
                raise _damaged(name, f"{field.name} has the wire type {wire_type}")
            if field.is_map:
                key, member = self._entry(name, field, value)
                found.setdefault(field.name, {})[key] = member
            elif field.is_repeated:
                found.setdefault(field.name, []).append(self._value(name, field, value))
            elif (one := self._value(name, field, value)) or (field.keeps_zero and one is not None):
                found[field.name] = one
            else:
                found.pop(field.name, None)
        return found

    def _fields(self, name: str, raw: bytes) -> Iterator[tuple[int, int, Any]]:
        """Yield number, wire type and value of each field: a number, or bytes."""
        at = 0
        while at < len(raw):
            self._left -= 1
            if self._left < 0:
                raise BadRequest(f"the body has more than {FIELDS_MAX} fields; send JSON")
            tag, at = _varint(name, raw, at)
            number, wire_type = tag >> 3, tag & 7
            if number == 0:
                raise _damaged(name, "a field has the number 0")
            if wire_type == _VARINT:
                value, at = _varint(name, raw, at)
                yield number, wire_type, value
                continue
            if wire_type == _LENGTH:
                length, at = _varint(name, raw, at)
            elif wire_type in _FIXED_BYTES:
                length = _FIXED_BYTES[wire_type]
            else:
                raise _damaged(name, f"field {number} has the wire type {wire_type}")
            if length > len(raw) - at:
                raise _damaged(name, f"field {number} ends behind its end")
            yield number, wire_type, raw[at : at + length]
            at += length

    def _entry(self, name: str, field: _Field, raw: bytes) -> tuple[str, Any]:
        key, member = b"", b""
        for number, wire_type, value in self._fields(name, raw):
            if number in (1, 2) and wire_type != _LENGTH:
                raise _damaged(name, f"an entry of {field.name} has the wire type {wire_type}")
            key, member = (value if number == 1 else key), (value if number == 2 else member)
        return _text(name, field, key), self._value(name, field, member)

    def _value(self, name: str, field: _Field, value: Any) -> Any:
        match field.type:
            case "string":
                return _text(name, field, value)
            case "bytes":
                return value if name in ("Unknown", "FieldsV1") else base64.b64encode(value).decode()
            case "bool":
                return value != 0
            case "int32":
                return _signed(value, 32)
            case "int64":
                return _signed(value, 64)
            case "Time":
                return _time(self.message("Time", value), format_time)
            case "MicroTime":
                return _time(self.message("MicroTime", value), format_micro_time)
            case "FieldsV1":
                return _owned(self.message("FieldsV1", value))
            case message:
                return self.message(message, value)


def _varint(name: str, raw: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at `at`, below 2^64, and where it ends."""
    number = 0
    for index, byte in enumerate(raw[at : at + _VARINT_BYTES_MAX]):
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return number & _UINT64, at + index + 1
    raise _damaged(name, "a number has no end")


def _signed(number: int, bits: int) -> int:
    number &= (1 << bits) - 1
    return number - (1 << bits) if number >> (bits - 1) else number


def _text(name: str, field: _Field, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise _damaged(name, f"{field.name} is not UTF-8") from error


def _time(moment: Json, written: Callable[[datetime], str]) -> str | None:
    seconds, nanos = moment.get("seconds", 0), moment.get("nanos", 0)
    if not 0 < seconds <= _SECONDS_MAX:
        return None  # Go's zero time lies before our era; nothing here is older than 1970.
    return written(_EPOCH + timedelta(seconds=seconds, microseconds=min(max(nanos, 0), 999_999_999) // 1_000))


def _owned(message: Json) -> Any:
    try:
        return msgspec.json.decode(message.get("raw", b""))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest("fieldsV1 of managedFields in the body is not JSON") from error


def _damaged(name: str, why: str) -> BadRequest:
    return BadRequest(f"the body is not a valid protobuf message of {name}: {why}")
