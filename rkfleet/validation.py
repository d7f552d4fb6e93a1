"""What is wrong with an object, in sentences, and what it becomes once it is accepted.

In: JSON values as people or programs wrote them. Out: the settled object (defaults filled in, nulls and unknown fields gone) and every
`Cause` against it. `rkfleet/manifest.py` uses it before anything is sent, `controller/api/admission.py` before anything is stored, so
both say the same about the same object. Apart from `schema.py` because that one only describes and needs no validator library.

Two passes, both driven by the schema and nothing else:

- `settle` walks the object once: unknown fields, defaults, and the two faults that JSON schema has no word for (the same key twice in
  a list-map, integers over 64 bits);
- `faults` asks the struct decoder and a compiled JSON schema whether all is well, and only when it is not lists every error with its
  path. A sentence is made from the schema node, so it always tells the whole expectation: `"three": must be an integer 0..1000`.

Source of the order prune nulls, then default: Kubernetes `apiextensions-apiserver/pkg/apiserver/schema/defaulting`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Final

import jsonschema_rs
import msgspec

from rkfleet import meta, schema
from rkfleet.errors import Cause
from rkfleet.kinds.base import Object
from rkfleet.schema import Schema

__all__ = ["MISSING", "KindValidator", "Path", "Settled", "format_path", "list_map_key", "metadata_faults", "parse_path", "value_at"]

Json = dict[str, Any]
Path = tuple[str | int, ...]
MISSING: Final = object()
"""What `value_at` returns for a path that leads nowhere; null is a value."""

INT64_MAX: Final = 2**63 - 1
SHOWN_CHARACTERS_MAX: Final = 80  # A value in a message reminds of what was written; it need not be whole.
ANNOTATIONS_BYTES_MAX: Final = 256 * 1024  # Kubernetes' `TotalAnnotationSizeLimitB`.
NAMESPACE_LENGTH_MAX: Final = 63
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")
_PATH_PART: Final = re.compile(r"\.?([^.\[\]]+)|\[([^\]]*)\]")
_REASONS: Final[Mapping[type, str]] = {
    jsonschema_rs.ValidationErrorKind.Enum: "FieldValueNotSupported",
    jsonschema_rs.ValidationErrorKind.MaxItems: "FieldValueTooMany",
    jsonschema_rs.ValidationErrorKind.MaxLength: "FieldValueTooLong",
    jsonschema_rs.ValidationErrorKind.Required: "FieldValueRequired",
    jsonschema_rs.ValidationErrorKind.Type: "FieldValueTypeInvalid",
}
_TYPE_NAMES: Final = {
    "boolean": "true or false",
    "integer": "an integer",
    "number": "a number",
    "string": "a string",
    "array": "a list",
    "object": "a mapping",
}


class Settled(msgspec.Struct, frozen=True):
    """An object after one walk along its schema.

    Attributes:
        obj: A copy without nulls and unknown fields, with defaults.
        unknown: Paths of the unknown fields that were left out.
        causes: Faults that the walk met: duplicate list-map keys, integers over 64 bits.
    """

    obj: Json
    unknown: tuple[str, ...]
    causes: tuple[Cause, ...]


class KindValidator:
    """The compiled schema of one kind. Made once per program and kind; it has no state."""

    def __init__(self, kind: type[Object]) -> None:
        self.kind: Final = kind
        self.schema: Final = schema.schema_of(kind)
        self._compiled: Final = jsonschema_rs.Draft4Validator(self.schema)

    def settle(self, obj: Json, stored: Json | None = None) -> Settled:
        """Return `obj` with defaults and without nulls and unknown fields; `obj` is not changed.

        A field that this schema does not know and that `stored` has with the same value stays: it belongs to a newer controller.
        """
        walk = _Walk(self._shown)
        settled = walk.node(self.schema, obj, stored if stored is not None else MISSING, ())
        return Settled(obj=settled, unknown=tuple(walk.unknown), causes=tuple(walk.causes))

    def faults(self, obj: Json) -> tuple[Cause, ...]:
        """Return every way in which a settled object breaks the schema, in the order of the object; empty when it is valid."""
        try:
            msgspec.convert(obj, self.kind)
            decoded = ""
        except msgspec.ValidationError as error:
            decoded = str(error)
        if not decoded and self._compiled.is_valid(obj):
            return ()
        found: dict[Path, Cause] = {}
        for refusal in self._compiled.iter_errors(obj):
            path, cause = self._cause(refusal)
            found.setdefault(path, cause)
        # The struct and the schema come from one source; should the decoder alone refuse, its word is still a cause.
        return tuple(found.values()) or (Cause(field="", message=decoded),)

    def _cause(self, refusal: jsonschema_rs.ValidationError) -> tuple[Path, Cause]:
        path: Path = tuple(refusal.instance_path)
        why = refusal.kind
        reason = _REASONS.get(type(why), "FieldValueInvalid")
        if isinstance(why, jsonschema_rs.ValidationErrorKind.Required):
            path = (*path, why.property)
            return path, Cause(field=format_path(path), message=f"must be set: {_description(self.schema, path)}", reason=reason)
        node = _node_at(self.schema, path)
        shown = self._shown(path, refusal.instance)
        return path, Cause(field=format_path(path), message=f"{shown}: must be {_expectation(node)}", reason=reason)

    def _shown(self, path: Path, value: Any) -> str:
        """Return a value as messages show it; not that of a confidential field, nor of what holds one."""
        text = format_path(path)
        for field in self.kind.resource.confidential:
            if text == field or text.startswith((f"{field}.", f"{field}[")) or field.startswith(f"{text}.") or not text:
                return "a value that is not shown"
        return _shown(value)


class _Walk:
    """One walk of an object along its schema, collecting what it meets."""

    def __init__(self, shown: Callable[[Path, Any], str]) -> None:
        self._shown: Final = shown
        self.unknown: Final[list[str]] = []
        self.causes: Final[list[Cause]] = []

    def node(self, node: Schema, value: Any, stored: Any, path: Path) -> Any:
        if isinstance(value, str):  # Most of what there is.
            return value
        match value:
            case dict() if "properties" in node:
                return self._object(node, value, stored if isinstance(stored, dict) else {}, path)
            case dict() if "additionalProperties" in node:
                below = node["additionalProperties"]
                old = stored if isinstance(stored, dict) else {}
                return {key: self.node(below, member, old.get(key, MISSING), (*path, key)) for key, member in value.items()}
            case list() if "items" in node:
                return self._list(node, value, stored if isinstance(stored, list) else [], path)
            case bool():
                return value
            case int() if "maximum" not in node and not -INT64_MAX - 1 <= value <= INT64_MAX:
                message = f"{self._shown(path, value)}: must be an integer of at most 64 bits"
                self.causes.append(Cause(field=format_path(path), message=message))
                return value
            case _:
                return deepcopy(value)

    def _object(self, node: Schema, value: Json, stored: Json, path: Path) -> Json:
        properties = node["properties"]
        settled: Json = {}
        for key, member in value.items():
            if key in properties:
                if member is not None:
                    settled[key] = self.node(properties[key], member, stored.get(key, MISSING), (*path, key))
            elif key in stored and stored[key] == member:
                settled[key] = member
            else:
                self.unknown.append(format_path((*path, key)))
        for key, below in properties.items():
            if key not in settled and "default" in below:
                settled[key] = self.node(below, below["default"], MISSING, (*path, key))
        return settled

    def _list(self, node: Schema, value: Sequence[Any], stored: Sequence[Any], path: Path) -> list[Any]:
        items = node["items"]
        keys = node.get("x-kubernetes-list-map-keys", ())
        if not keys:
            before = [*stored, *[MISSING] * (len(value) - len(stored))]
            return [self.node(items, member, before[index], (*path, index)) for index, member in enumerate(value)]
        by_key = {list_map_key(member, keys): member for member in stored}
        seen: set[tuple[str, ...]] = set()
        for index, member in enumerate(value):
            identity = list_map_key(member, keys)
            if identity in seen:
                message = f"{_shown(dict(zip(keys, identity, strict=True)))}: must be unique in {format_path(path)}"
                self.causes.append(Cause(field=format_path((*path, index)), message=message, reason="FieldValueDuplicate"))
            seen.add(identity)
        return [
            self.node(items, member, by_key.get(list_map_key(member, keys), MISSING), (*path, index)) for index, member in enumerate(value)
        ]


def metadata_faults(kind: type[Object], metadata: Mapping[str, Any]) -> tuple[Cause, ...]:
    """Return every fault of a name, namespace, label, annotation, finalizer or owner.

    Parts of a wrong type are left to the schema. `generateName` does not stand in for a name: apply needs one, and admission makes one.
    """
    resource = kind.resource
    causes: list[Cause] = []

    def add(message: str, *below: str | int) -> None:
        if message:
            causes.append(Cause(field=format_path(("metadata", *below)), message=message))

    name = metadata.get("name", "")
    if isinstance(name, str):
        add(meta.check_name(name, length_max=resource.name_length_max), "name")
    namespace = metadata.get("namespace", "")
    if isinstance(namespace, str) and namespace:
        add(meta.check_name(namespace, length_max=NAMESPACE_LENGTH_MAX) if resource.namespaced else _cluster(kind, namespace), "namespace")
    for key, value in _mapping(metadata, "labels"):
        add(meta.check_label_key(key) or (meta.check_label_value(value) if isinstance(value, str) else ""), "labels", key)
    annotation_bytes = 0
    for key, value in _mapping(metadata, "annotations"):
        add(meta.check_label_key(key.lower()), "annotations", key)
        annotation_bytes += len(key.encode()) + (len(value.encode()) if isinstance(value, str) else 0)
    if annotation_bytes > ANNOTATIONS_BYTES_MAX:
        add(f"have {annotation_bytes} bytes, at most {ANNOTATIONS_BYTES_MAX} are allowed", "annotations")
    for index, finalizer in enumerate(_list(metadata, "finalizers")):
        if isinstance(finalizer, str):
            add(meta.check_label_key(finalizer), "finalizers", index)
    managers = [owner for owner in _list(metadata, "ownerReferences") if isinstance(owner, dict) and owner.get("controller") is True]
    if len(managers) > 1:
        add(f"{len(managers)} owners have controller true, at most 1 may", "ownerReferences")
    return tuple(causes)


def format_path(path: Iterable[str | int]) -> str:
    """Return a path as people write it: `spec.variants[0].dtype`, `metadata.labels[rkfleet.dev/soc]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{part}]"
    return text


def list_map_key(member: Any, keys: Sequence[str]) -> tuple[str, ...]:
    """Return what tells an item of a list-map from the others, as text; an item that is no mapping has an empty one."""
    return tuple(str(member.get(key, "")) for key in keys) if isinstance(member, dict) else ("",) * len(keys)


def parse_path(text: str) -> Path:
    """Read what `format_path` wrote. A key of digits in brackets is read as an index."""
    parts: list[str | int] = []
    for name, key in _PATH_PART.findall(text):
        parts.append(name or (int(key) if key.isdecimal() else key))
    return tuple(parts)


def value_at(value: Any, path: Path) -> Any:
    """Return what stands at `path`, or MISSING."""
    for part in path:
        if isinstance(value, dict) and str(part) in value:
            value = value[str(part)]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return MISSING
    return value


def _cluster(kind: type[Object], namespace: str) -> str:
    return f"{_shown(namespace)}: must not be set, {kind.resource.kind} is cluster-scoped"


def _mapping(metadata: Mapping[str, Any], field: str) -> Iterable[tuple[str, Any]]:
    value = metadata.get(field)
    return value.items() if isinstance(value, dict) else ()


def _list(metadata: Mapping[str, Any], field: str) -> Sequence[Any]:
    value = metadata.get(field)
    return value if isinstance(value, list) else ()


def _node_at(node: Schema, path: Path) -> Schema:
    for part in path:
        if isinstance(part, int):
            node = node.get("items", {})
        else:
            node = node.get("properties", {}).get(part) or node.get("additionalProperties", {})
    return node


def _description(root: Schema, path: Path) -> str:
    text: str = _node_at(root, path).get("description", "")
    return text[:1].lower() + text[1:].rstrip(".")


def _expectation(node: Schema) -> str:
    """Return what a schema node wants, to follow "must be"."""
    if "enum" in node:
        return "one of " + ", ".join(value or '""' for value in node["enum"])
    if node.get("x-kubernetes-int-or-string"):
        words = f"an integer{_bounds(node, 'minimum', 'maximum', '')}"
        return f"{words} or a percentage 0%..100%" if node.get("pattern") == schema.PERCENT_PATTERN else f"{words} or a string"
    if node.get("pattern") == schema.QUANTITY_PATTERN:
        return "a quantity such as 512Mi or 4Gi"
    words = _TYPE_NAMES.get(node.get("type", ""), "something else")
    match node.get("type"):
        case "integer" | "number":
            return words + _bounds(node, "minimum", "maximum", "")
        case "string":
            words += _bounds(node, "minLength", "maxLength", " characters")
            return f"{words} that matches {node['pattern']}" if "pattern" in node else words
        case "array":
            return words + _bounds(node, "minItems", "maxItems", " items")
        case _:
            return words


def _bounds(node: Schema, least: str, most: str, unit: str) -> str:
    low, high = node.get(least), node.get(most)
    if low is None and high is None:
        return ""
    if low is None:
        return f" of at most {high}{unit}"
    if high is None:
        return f" of at least {low}{unit}"
    return f" of {low}..{high}{unit}" if unit else f" {low}..{high}"


def _shown(value: Any) -> str:
    if isinstance(value, list) and len(value) > SHOWN_CHARACTERS_MAX // 8:
        return f"{len(value)} items"
    text = msgspec.json.encode(value).decode() if not isinstance(value, int) or abs(value) <= INT64_MAX else str(value)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[:SHOWN_CHARACTERS_MAX]}…"
