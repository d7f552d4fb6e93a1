"""Shapes: what of a kind is merged field by field, and what is one value that only changes as a whole.

In: the schema of a kind. Out: a tree of `Shape`. Objects of the schema are granular, as are maps; arrays are what their
`x-kubernetes-list-type` says, and atomic without it. What the schema does not know has the shape that its value has: maps are granular,
lists atomic. Of `metadata` only what managers can own is here; the rest belongs to the server.

Source: Kubernetes API reference, server-side apply, "Merge strategy"
(https://kubernetes.io/docs/reference/using-api/server-side-apply/#merge-strategy).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from rkfleet.kinds.base import Object
from rkfleet.schema import schema_of

__all__ = ["ATOMIC", "UNKNOWN", "Shape", "shape_of"]

Json = dict[str, Any]


class Shape(msgspec.Struct, frozen=True):
    """How one value is merged.

    Attributes:
        merge: `value` as a whole; `fields` by name; `items` by key, `set` by value.
        fields: Shapes of the fields that are known.
        each: Shape of every other field, and of the items of a list.
        keys: Fields that name an item.
        hidden: Fields that nobody owns, because the server sets them or they are written elsewhere.
    """

    merge: Literal["value", "fields", "items", "set"]
    fields: Mapping[str, Shape] = {}
    each: Shape | None = None
    keys: tuple[str, ...] = ()
    hidden: frozenset[str] = frozenset()

    def below(self, field: str) -> Shape:
        """Return the shape of a field."""
        return self.fields.get(field) or self.each or UNKNOWN

    @property
    def is_unknown(self) -> bool:
        """Whether this is a map of which the schema says nothing."""
        return self.merge == "fields" and not self.fields and self.each is None

    def hiding(self, fields: Iterable[str]) -> Shape:
        """Return this shape without some of its fields, which nobody owns then."""
        return msgspec.structs.replace(self, hidden=self.hidden.union(fields))


ATOMIC: Final = Shape("value")
UNKNOWN: Final = Shape("fields")
"""Shape of what no schema describes."""

_TEXTS: Final = Shape("fields", each=ATOMIC)
_METADATA: Final = Shape(
    "fields",
    fields={
        "labels": _TEXTS,
        "annotations": _TEXTS,
        "finalizers": Shape("set", each=ATOMIC),
        "ownerReferences": Shape("items", each=Shape("fields"), keys=("uid",)),
        "generateName": ATOMIC,
    },
    hidden=frozenset(
        (
            "name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp",
            "deletionGracePeriodSeconds", "managedFields", "selfLink",
        )
    ),
)  # fmt: skip


def shape_of(kind: type[Object]) -> Shape:
    """Return the shape of a kind: what its managers can own."""
    properties = schema_of(kind)["properties"]
    fields = {name: _shape(node) for name, node in properties.items() if name not in ("apiVersion", "kind", "metadata")}
    return Shape("fields", fields={**fields, "metadata": _METADATA}, hidden=frozenset(("apiVersion", "kind")))


def _shape(node: Json) -> Shape:
    match node.get("type"):
        case "object" if node.get("x-kubernetes-map-type") == "atomic":
            return ATOMIC
        case "object":
            each = node.get("additionalProperties")
            fields = {name: _shape(below) for name, below in node.get("properties", {}).items()}
            return Shape("fields", fields=fields, each=_shape(each) if isinstance(each, dict) else None)
        case "array":
            return _list(node)
        case _:
            return ATOMIC


def _list(node: Json) -> Shape:
    match node.get("x-kubernetes-list-type"):
        case "map":
            return Shape("items", each=_shape(node["items"]), keys=tuple(node["x-kubernetes-list-map-keys"]))
        case "set":
            return Shape("set", each=ATOMIC)
        case _:
            return ATOMIC
