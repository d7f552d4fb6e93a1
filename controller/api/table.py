"""Tables: stored items as the rows that `kubectl get` prints.

In: a kind, items of the store, the time, and how much of each object a row carries. Out: a `meta.k8s.io/v1` Table as JSON values;
`views.py` puts list metadata on it and encodes it. Columns come from `Resource.columns`, after the name; ages are worked out here, because
kubectl prints cells as they are.

A field that is not stored has the default of its struct: writers leave defaults out, and `0` replicas is not an empty cell. A row that
carries the whole object holds its stored bytes as `msgspec.Raw`, so a table must be encoded with msgspec.

Source: Kubernetes `apimachinery/pkg/apis/meta/v1/types.go` (Table),
`apiextensions-apiserver/pkg/registry/customresource/tableconvertor`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec.structs import fields

from controller.store.base import Item
from rkfleet.clock import human_duration, parse_time
from rkfleet.errors import BadRequest
from rkfleet.kinds.base import Column, Object

__all__ = ["table"]

Json = dict[str, Any]

_STEP: Final = re.compile(r"""\.(?P<name>\w+)|\[(?P<star>\*)\]|\[\?\(@\.(?P<key>\w+)\s*==\s*["'](?P<value>[^"']*)["']\)\]""")


class _Step(msgspec.Struct, frozen=True):
    """One step of a JSON path: a member by name, every item, or the items whose member `key` has a value."""

    name: str = ""
    key: str = ""
    value: str = ""


class _Cell(msgspec.Struct, frozen=True):
    """How one column's cell is found: by the first of its paths where there is something."""

    paths: tuple[tuple[_Step, ...], ...]
    type: str
    default: Any


def table(kind: type[Object], items: Iterable[Item], now: datetime, include_object: str = "Metadata") -> Json:
    """Return items as a Table without list metadata.

    Args:
        kind: Kind of the items.
        items: Rows, in this order.
        now: Wall time, for ages.
        include_object: What each row carries: None, Metadata or Object; empty means Metadata.

    Raises:
        BadRequest: `include_object` is none of these.
    """
    if include_object not in ("", "None", "Metadata", "Object"):
        raise BadRequest(f"includeObject {include_object!r} must be None, Metadata or Object")
    definitions, cells = _columns(kind)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": [dict(definition) for definition in definitions],
        "rows": [_row(item, cells, now, include_object) for item in items],
    }


@functools.cache
def _columns(kind: type[Object]) -> tuple[tuple[Json, ...], tuple[_Cell, ...]]:
    """Return the column definitions of a kind and how its cells are found; worked out once per kind."""
    name: Json = {"name": "Name", "type": "string", "format": "name", "description": "Name of the object.", "priority": 0}
    definitions = [name, *(_definition(column) for column in kind.resource.columns)]
    cells = [_cell(kind, ".metadata.name", "string"), *(_cell(kind, column.json_path, column.type) for column in kind.resource.columns)]
    return tuple(definitions), tuple(cells)


def _definition(column: Column) -> Json:
    # Ages are sent as text, as Kubernetes does; the type says what stands in the cell.
    kind = "string" if column.type in ("date", "reference") else column.type
    return {"name": column.name, "type": kind, "format": "", "description": column.description, "priority": column.priority}


def _cell(kind: type[Object], json_path: str, type: str) -> _Cell:
    paths = tuple(_path(kind, path) for path in json_path.split("|"))
    return _Cell(paths=paths, type=type, default=_default(kind, paths[-1]))


def _path(kind: type[Object], json_path: str) -> tuple[_Step, ...]:
    steps: list[_Step] = []
    end = 0
    for match in _STEP.finditer(json_path):
        if match.start() != end:
            break
        end = match.end()
        steps.append(_Step(name=match["name"] or "", key=match["key"] or "", value=match["value"] or ""))
    if end != len(json_path):
        raise ValueError(f"{kind.resource.kind}: column path {json_path!r} is not understood from {json_path[end:]!r} on")
    return tuple(steps)


def _default(kind: type[Object], steps: Iterable[_Step]) -> Any:
    """Return what the struct has where nothing is stored, or None."""
    holder: Any = kind
    for step in steps:
        is_struct = isinstance(holder, msgspec.Struct) or (isinstance(holder, type) and issubclass(holder, msgspec.Struct))
        field = next((one for one in fields(holder) if one.encode_name == step.name), None) if is_struct else None
        if field is None:
            return None
        if isinstance(holder, msgspec.Struct):
            holder = getattr(holder, field.name)
        elif field.required:
            holder = getattr(field.type, "__origin__", field.type)  # Annotated[SpecStruct, ...]
        else:
            holder = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return holder if isinstance(holder, bool | int | float | str) else None


def _row(item: Item, cells: Iterable[_Cell], now: datetime, include_object: str) -> Json:
    obj: Json = msgspec.json.decode(item.body)
    row: Json = {"cells": [_value(cell, obj, now) for cell in cells]}
    if include_object == "Object":
        row["object"] = msgspec.Raw(item.body)
    elif include_object != "None":
        row["object"] = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}
    return row


def _value(cell: _Cell, obj: Json, now: datetime) -> Any:
    found: list[Any] = next(filter(None, (_found(obj, steps) for steps in cell.paths)), [])
    if cell.type == "date":
        return _age(found[0] if found else None, now)
    if cell.type == "reference":
        return _reference(found[0] if found else None)
    if not found:
        return cell.default if cell.default is not None or cell.type != "integer" else 0
    if len(found) > 1 or cell.type == "string":
        return ",".join(_text(value) for value in found)
    return len(found[0]) if isinstance(found[0], dict) else found[0]  # A number about a map is how much is in it.


def _found(obj: Json, steps: Iterable[_Step]) -> list[Any]:
    values: list[Any] = [obj]
    for step in steps:
        if step.name:
            values = [value[step.name] for value in values if isinstance(value, dict) and value.get(step.name) is not None]
            continue
        members = [member for value in values if isinstance(value, list) for member in value]
        values = [member for member in members if not step.key or (isinstance(member, dict) and member.get(step.key) == step.value)]
    return values


def _age(value: Any, now: datetime) -> str:
    try:
        return human_duration((now - parse_time(value)).total_seconds()) if value else "<unknown>"
    except (TypeError, ValueError):
        return "<invalid>"


def _reference(value: Any) -> str:
    """Return `modeldeployment/qwen` of what names an object."""
    names = value if isinstance(value, dict) else {}
    return "/".join(part for part in (_text(names.get("kind") or "").lower(), _text(names.get("name") or "")) if part)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
