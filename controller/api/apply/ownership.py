"""Who owns which field, for every write of the API: the one place that reads and writes `metadata.managedFields`.

In: a kind, the object before and after a write, who writes. Out: the object with its `managedFields`. `writes.py` calls it after admission,
for creates, updates and patches of every form, and for server-side apply before admission too. Loops and sessions write through the store
without it: what they own is declared with each kind (`Resource.owners`), and nobody else may write it.

A write that changes nothing leaves the entries as they were, times included, so that it is no write.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from controller.api.apply import managers as managing
from controller.api.apply.applying import Scopes, apply
from controller.api.apply.fields import difference, flat, owned
from controller.api.apply.managers import Managed, Manager
from controller.api.apply.shape import Shape, shape_of
from rkfleet.errors import BadRequest
from rkfleet.kinds.base import Object, Registry

__all__ = ["Ownership", "Pending", "Writer"]

Json = dict[str, Any]


class Writer(NamedTuple):
    """Who writes, and through which subresource."""

    manager: str
    subresource: str = ""


class Pending(NamedTuple):
    """What an apply comes to before admission: the object, and the managers that go with it."""

    obj: Json
    managers: dict[Manager, Managed]


class Ownership:
    """Ownership of the fields of every kind of a registry."""

    def __init__(self, registry: Registry) -> None:
        self._shapes: Final = {kind: _shapes(kind) for kind in registry}

    def created(self, kind: type[Object], obj: Json, writer: Writer, now: str) -> Json:
        """Return a new object with its first manager."""
        paths = frozenset(flat(obj, self._scope(kind, "")))
        return _with(obj, {self._manager(kind, writer, "Update"): Managed(paths, now)} if paths else {})

    def updated(self, kind: type[Object], old: Json, new: Json, *, sent: Any, writer: Writer, now: str) -> Json:
        """Return a changed object with the managers it has then.

        An object that has no managers gets none, as on a real cluster: it was made by a controller, or a client asked to forget them, and
        its first apply finds all of it owned by `before-first-apply`.

        Args:
            kind: Its kind.
            old: As it is stored.
            new: As it will be, but for `managedFields`.
            sent: `managedFields` as the client sent them; None or empty leaves those that are stored.
            writer: Who changes it.
            now: Wall time, RFC 3339.

        Raises:
            Invalid: What was sent cannot be read.
        """
        stored = old["metadata"].get("managedFields") or []
        replaced = bool(sent) and sent != stored
        changes = difference(old, new, self._scope(kind, writer.subresource))
        if not replaced and not any(changes):
            return _with_entries(new, stored)
        base = managing.encode(managing.decode(sent)) if replaced and not managing.is_reset(sent) else stored
        if not base or managing.is_reset(sent):
            return _with_entries(new, [])
        return _with_entries(new, managing.after_update(base, self._manager(kind, writer, "Update"), changes, now))

    def applied(self, kind: type[Object], old: Json | None, config: Json, *, writer: Writer, now: str, force: bool) -> Pending:
        """Return what an apply makes of the stored object, or of none.

        Raises:
            ApplyConflict: Others own what would change.
            BadRequest: `config` has managedFields, or a list that cannot be merged.
        """
        if config["metadata"].get("managedFields") is not None:
            raise BadRequest("metadata.managedFields must be nil")
        manager, scope = self._manager(kind, writer, "Apply"), self._scope(kind, writer.subresource)
        config = _without_nulls(config)
        if old is None:
            return Pending(config, {manager: Managed(owned(config, scope), now)})
        live = {**old, "metadata": {name: value for name, value in old["metadata"].items() if name != "managedFields"}}
        before = managing.decode(old["metadata"].get("managedFields") or [])
        scopes = Scopes(self._shapes[kind][""], scope)
        result = apply(live, config, manager, before, scopes=scopes, force=force, now=now)
        return Pending(result.obj, result.managers)

    def settled(self, kind: type[Object], old: Json | None, admitted: Json, *, pending: Pending, writer: Writer) -> Json:
        """Return the admitted object of an apply with its managers; what admission left out is not owned."""
        manager = self._manager(kind, writer, "Apply")
        stored = [] if old is None else old["metadata"].get("managedFields") or []
        before = managing.decode(stored)
        managers = dict(pending.managers)
        if (own := managers.pop(manager, None)) is not None:
            paths = frozenset(own.paths & flat(admitted, self._scope(kind, writer.subresource)).keys())
            last = before.get(manager)
            if paths:
                managers[manager] = last if last is not None and last.paths == paths else Managed(paths, own.time)
        if stored and before == managers:
            return _with_entries(admitted, stored)
        return _with(admitted, managing.capped(managers))

    def _manager(self, kind: type[Object], writer: Writer, operation: managing.Operation) -> Manager:
        return Manager(writer.manager, operation, kind.resource.api_version, writer.subresource)

    def _scope(self, kind: type[Object], subresource: str) -> Shape:
        return self._shapes[kind][subresource]


def _shapes(kind: type[Object]) -> dict[str, Shape]:
    """Return the shapes of what is written by subresource; the empty name is the object itself."""
    whole = shape_of(kind)
    if not kind.resource.status:
        return {"": whole}
    shapes = {"": whole.hiding(("status",)), "status": whole.hiding(whole.fields.keys() - {"status"})}
    if kind.resource.scale:
        spec = whole.fields["spec"]
        only = msgspec.structs.replace(whole, fields={**whole.fields, "spec": spec.hiding(spec.fields.keys() - {"replicas"})})
        shapes["scale"] = only.hiding(whole.fields.keys() - {"spec"})
    return shapes


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(below) for name, below in value.items() if below is not None}
    return [_without_nulls(below) for below in value] if isinstance(value, list) else value


def _with(obj: Json, managers: Mapping[Manager, Managed]) -> Json:
    return _with_entries(obj, managing.encode(managers))


def _with_entries(obj: Json, entries: list[Json]) -> Json:
    metadata = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
    return {**obj, "metadata": {**metadata, "managedFields": entries} if entries else metadata}
