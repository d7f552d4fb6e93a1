"""Managers of an object: who set which of its fields, as `metadata.managedFields` keeps it.

In: `managedFields` as stored, the object before and after a write, who wrote. Out: `managedFields` after it. A manager is known by its
name, by whether it applies or updates, and by the subresource that it writes; times only tell when its set changed last.

Source: Kubernetes `apimachinery/pkg/util/managedfields/internal/{managedfields,capmanagers,structuredmerge}.go`,
`sigs.k8s.io/structured-merge-diff/v4/merge/update.go`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from controller.api.apply.fields import Difference, Path, Paths, from_fields, to_fields
from controller.api.apply.trees import minus, plus
from rkfleet.clock import format_time, parse_time
from rkfleet.errors import Cause, Invalid

__all__ = ["BEFORE_FIRST_APPLY", "Managed", "Manager", "Managers", "after_update", "capped", "decode", "encode", "is_reset"]

Json = dict[str, Any]
Operation = Literal["Apply", "Update"]

UPDATERS_MAX: Final = 10  # As kube-apiserver: beyond, the oldest become one entry, or every controller's new name would stay for ever.
NAME_LENGTH_MAX: Final = 128  # As Kubernetes.
ENTRIES_MAX: Final = 1_000  # Of one object; each may be merged with every other.
ANCIENT: Final = "ancient-changes"
BEFORE_FIRST_APPLY: Final = "before-first-apply"


class Manager(NamedTuple):
    """Who a manager is."""

    name: str
    operation: Operation
    api_version: str
    subresource: str = ""

    def __str__(self) -> str:
        """Return the manager as messages of conflicts name it."""
        text = f'"{self.name}"'
        if self.subresource:
            text += f' with subresource "{self.subresource}"'
        return f"{text} using {self.api_version}" if self.operation == "Update" else text


class Managed(NamedTuple):
    """What a manager owns, and since when this very set."""

    paths: Paths
    time: str


Managers: TypeAlias = Mapping[Manager, Managed]


def decode(entries: Any) -> dict[Manager, Managed]:
    """Return the managers of `managedFields`.

    Raises:
        Invalid: An entry cannot be read; the cause names its field.
    """
    if not isinstance(entries, list) or len(entries) > ENTRIES_MAX:
        raise _invalid("metadata.managedFields", f"must be a list of at most {ENTRIES_MAX} entries")
    managers: dict[Manager, Managed] = {}
    for index, entry in enumerate(entries):
        manager, managed = _decode_entry(entry, f"metadata.managedFields[{index}]")
        before = managers.get(manager)
        managers[manager] = managed if before is None else Managed(before.paths | managed.paths, max(before.time, managed.time))
    return managers


def _decode_entry(entry: Any, field: str) -> tuple[Manager, Managed]:
    if not isinstance(entry, dict):
        raise _invalid(field, "must be a map")
    operation = entry.get("operation")
    if operation not in ("Apply", "Update"):
        raise _invalid(f"{field}.operation", f"is {str(operation)[:40]!r}, it must be Apply or Update")
    if entry.get("fieldsType", "FieldsV1") != "FieldsV1":
        raise _invalid(f"{field}.fieldsType", f"is {str(entry['fieldsType'])[:40]!r}, it must be FieldsV1")
    texts = {name: entry.get(name) or "" for name in ("manager", "apiVersion", "subresource", "time")}
    for name, text in texts.items():
        if not isinstance(text, str) or len(text) > NAME_LENGTH_MAX or not text.isprintable():
            raise _invalid(f"{field}.{name}", f"must be at most {NAME_LENGTH_MAX} printable characters")
    if texts["time"]:
        try:
            texts["time"] = format_time(parse_time(texts["time"]))
        except (ValueError, OverflowError):
            raise _invalid(f"{field}.time", f"is {texts['time'][:40]!r}, it must be a time like 2026-01-31T12:00:00Z") from None
    try:
        paths = from_fields(entry.get("fieldsV1") or {})
    except ValueError as error:
        raise _invalid(f"{field}.fieldsV1", str(error)) from error
    return Manager(texts["manager"], operation, texts["apiVersion"], texts["subresource"]), Managed(paths, texts["time"])


def _invalid(field: str, message: str) -> Invalid:
    return Invalid(f"{field}: {message}", (Cause(field, message),))


def encode(managers: Managers) -> list[Json]:
    """Return `managedFields`, in Kubernetes' order: who applies before who updates, oldest first."""
    return _ordered([_entry(manager, to_fields(managed.paths), managed.time) for manager, managed in managers.items()])


def _entry(manager: Manager, fields: Json, time: str) -> Json:
    entry: Json = {
        "manager": manager.name,
        "operation": manager.operation,
        "apiVersion": manager.api_version,
        "time": time,
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
        "subresource": manager.subresource,
    }
    return {name: value for name, value in entry.items() if value not in ("", None)}


def _manager(entry: Json) -> Manager:
    return Manager(entry.get("manager", ""), entry["operation"], entry.get("apiVersion", ""), entry.get("subresource", ""))


def _ordered(entries: list[Json]) -> list[Json]:
    return sorted(entries, key=lambda entry: (entry["operation"], entry.get("time", ""), _manager(entry)))


def is_reset(entries: Any) -> bool:
    """Return whether a client asks to forget all managers: by one empty entry, because an empty list only says that it knows none."""
    return isinstance(entries, list) and len(entries) == 1 and entries[0] in ({}, None)


def after_update(entries: list[Json], manager: Manager, difference: Difference, now: str) -> list[Json]:
    """Return `managedFields`, as `encode` wrote them, after `manager` changed an object.

    It owns what it changed, nobody else does, and nobody owns what is gone. Where nothing is another the very list is returned.
    """
    changed, removed = to_fields(difference.changed), to_fields(difference.removed)
    gone = plus(changed, removed)
    left: list[Json] = []
    known = False
    for entry in entries:
        fields = entry["fieldsV1"]
        if _manager(entry) == manager:
            known = True
            own = plus(minus(fields, removed), changed)
            if own:
                left.append(entry if own is fields else {**entry, "fieldsV1": own, "time": now})
        elif others := minus(fields, gone):
            left.append(entry if others is fields else {**entry, "fieldsV1": others})
    if changed and not known:
        left.append(_entry(manager, changed, now))
    if len(left) == len(entries) and all(one is other for one, other in zip(left, entries, strict=True)):
        return entries
    if sum(entry["operation"] == "Update" for entry in left) > UPDATERS_MAX:
        return encode(capped(decode(left)))
    return _ordered(left)


def capped(managers: dict[Manager, Managed]) -> dict[Manager, Managed]:
    """Return the managers with the oldest of too many that update merged into one for each version of the API."""
    updaters = sorted((managed.time, manager) for manager, managed in managers.items() if manager.operation == "Update")
    excess = len(updaters) - UPDATERS_MAX
    if excess <= 0:
        return managers
    left = dict(managers)
    for time, manager in updaters[: excess + 1]:
        managed = left.pop(manager)
        ancient = Manager(ANCIENT, "Update", manager.api_version)
        before = left.get(ancient, Managed(frozenset(), ""))
        left[ancient] = Managed(before.paths | managed.paths, max(before.time, time))
    return left


def conflicts_of(managers: Managers, manager: Manager, changed: Paths) -> Sequence[tuple[Manager, Path]]:
    """Return who else owns what `manager` would change, in order."""
    return sorted((one, path) for one, managed in managers.items() if one != manager for path in managed.paths & changed)
