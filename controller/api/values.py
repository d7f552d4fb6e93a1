"""Secrets and ConfigMaps as Kubernetes treats them beyond what a schema says.

In: the object that a client wants, and the stored one. Out: the object with `stringData` taken into `data`, and the reasons why not.
Admission calls both for every kind; for others they do nothing. A reason never shows a value.

Source: Kubernetes `pkg/apis/core/validation/validation.go` (ValidateSecret, ValidateConfigMap and their updates),
`pkg/apis/core/v1/conversion.go`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from rkfleet.errors import Cause
from rkfleet.kinds.base import Object
from rkfleet.kinds.secret import ConfigMap, Secret

__all__ = ["prepared", "value_faults"]

Json = dict[str, Any]

KEY_LENGTH_MAX: Final = 253  # As Kubernetes: keys become file names.
VALUES_BYTES_MAX: Final = 1 << 20  # As Kubernetes: of all values of one object.

_KEYS_OF_TYPES: Final[Mapping[str, tuple[str, ...]]] = {
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
}
_JSON_TYPES: Final = ("kubernetes.io/dockercfg", "kubernetes.io/dockerconfigjson")
_BASIC_AUTH: Final = "kubernetes.io/basic-auth"

_KEY: Final = re.compile(r"[-._a-zA-Z0-9]+")
_FORBIDDEN: Final = "FieldValueForbidden"
_IMMUTABLE: Final = "field is immutable when `immutable` is set"


def prepared(kind: type[Object], obj: Json) -> Json:
    """Return the object as it is stored: text values of a Secret in base64 among the others."""
    if kind is not Secret or not isinstance(obj.get("stringData"), dict):
        return obj
    texts = {key: _encoded(value) for key, value in obj["stringData"].items()}
    data = obj.get("data") if isinstance(obj.get("data"), dict) else {}
    return {**{name: value for name, value in obj.items() if name != "stringData"}, "data": {**(data or {}), **texts}}


def _encoded(value: Any) -> Any:
    return base64.b64encode(value.encode()).decode() if isinstance(value, str) else value


def value_faults(kind: type[Object], obj: Json, stored: Json | None) -> Iterator[Cause]:
    """Yield what is wrong with the values of a Secret or ConfigMap."""
    if kind is Secret:
        yield from _values(obj, "data", encoded=True)
        yield from _of_type(obj)
        yield from _total(obj, "data")
        if stored is not None and obj.get("type") != stored.get("type"):
            yield Cause("type", "field is immutable")
        yield from _immutable(obj, stored, "data")
    elif kind is ConfigMap:
        yield from _values(obj, "data", encoded=False)
        yield from _values(obj, "binaryData", encoded=True)
        for key in sorted(_map(obj, "data").keys() & _map(obj, "binaryData").keys()):
            yield Cause(f"data[{key}]", "duplicate of key present in binaryData")
        yield from _total(obj, "data", "binaryData")
        yield from _immutable(obj, stored, "data", "binaryData")


def _map(obj: Json, field: str) -> Json:
    found = obj.get(field)
    return found if isinstance(found, dict) else {}


def _values(obj: Json, field: str, *, encoded: bool) -> Iterator[Cause]:
    for key, value in _map(obj, field).items():
        if len(key) > KEY_LENGTH_MAX or not _KEY.fullmatch(key) or key in (".", "..") or key.startswith(".."):
            yield Cause(f"{field}[{key[:80]}]", f"a key has letters, digits, '-', '_' or '.', and at most {KEY_LENGTH_MAX} of them")
        if encoded and isinstance(value, str) and not _is_base64(value):
            yield Cause(f"{field}[{key[:80]}]", "is not base64; put plain text into stringData" if field == "data" else "is not base64")


def _of_type(obj: Json) -> Iterator[Cause]:
    """Yield what a Secret lacks that programs rely on because of its type."""
    data, type = _map(obj, "data"), obj.get("type")
    for key in _KEYS_OF_TYPES.get(str(type), ()):
        if key not in data:
            yield Cause(f"data[{key}]", f"must be set in a Secret of type {type}", "FieldValueRequired")
        elif type in _JSON_TYPES and not _is_json(data[key]):
            yield Cause(f"data[{key}]", f"is not JSON, which a Secret of type {type} has there")
    if type == _BASIC_AUTH and not {"username", "password"} & data.keys():
        yield Cause("data", f"must have username or password in a Secret of type {type}", "FieldValueRequired")


def _is_json(value: Any) -> bool:
    try:
        msgspec.json.decode(base64.b64decode(value), type=msgspec.Raw)
    except (msgspec.MsgspecError, binascii.Error, TypeError, ValueError):
        return False
    return True


def _is_base64(value: str) -> bool:
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _total(obj: Json, *fields: str) -> Iterator[Cause]:
    size_bytes = sum(len(value) for field in fields for value in _map(obj, field).values() if isinstance(value, str))
    if size_bytes > VALUES_BYTES_MAX:
        yield Cause(fields[0], f"the values have {size_bytes} bytes, at most {VALUES_BYTES_MAX} are allowed", "FieldValueTooLong")


def _immutable(obj: Json, stored: Json | None, *fields: str) -> Iterator[Cause]:
    if stored is None or stored.get("immutable") is not True:
        return
    if obj.get("immutable") is not True:
        yield Cause("immutable", _IMMUTABLE, _FORBIDDEN)
    for field in fields:
        if _map(obj, field) != _map(stored, field):
            yield Cause(field, _IMMUTABLE, _FORBIDDEN)
