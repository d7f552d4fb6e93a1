"""Server-side apply: what an object becomes when a manager applies its part of it, and who owns what then.

In: the stored object, what is applied, who applies. Out: the object and its managers, or a conflict with every field of it. `writes.py`
hands the result to admission, as it does with every other write.

Two courtesies make the way from `kubectl apply` to `kubectl apply --server-side` passable, as on a real cluster: fields that kubectl itself
applied on the client's side, and that are as it applied them, are no conflict for it; and where the annotation of client-side apply is, it
follows what kubectl applies.

Source: https://kubernetes.io/docs/reference/using-api/server-side-apply/, Kubernetes
`apimachinery/pkg/util/managedfields/internal/{fieldmanager,conflict,lastappliedmanager,lastappliedupdater}.go`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final, NamedTuple

import msgspec

from controller.api.apply import managers as managing
from controller.api.apply.fields import Difference, Path, Paths, difference, flat, owned, text_of
from controller.api.apply.managers import Managed, Manager, Managers
from controller.api.apply.merging import merged, without
from controller.api.apply.shape import Shape
from rkfleet.errors import Cause, Conflict

__all__ = ["Applied", "ApplyConflict", "Scopes", "apply"]

Json = dict[str, Any]

KUBECTL: Final = "kubectl"
LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
ANNOTATIONS_BYTES_MAX: Final = 256 << 10  # Kubernetes' limit of all annotations of an object.


class ApplyConflict(Conflict):
    """What is applied would change fields of other managers."""

    causes: tuple[Cause, ...]
    retryable: ClassVar[bool] = False

    def __init__(self, conflicts: Sequence[tuple[Manager, Path]]) -> None:
        self.causes = tuple(Cause(text_of(path), f"conflict with {manager}", "FieldManagerConflict") for manager, path in conflicts)
        super().__init__(_message(conflicts))


class Applied(NamedTuple):
    """What an apply comes to.

    Attributes:
        obj: The object; its `managedFields` are those of before.
        managers: Who owns what, after it.
    """

    obj: Json
    managers: dict[Manager, Managed]


class Scopes(NamedTuple):
    """What of a kind an apply is about.

    Attributes:
        main: Shape of what is written through the object itself.
        written: Of what this write may change; the rest of what is applied is not looked at.
    """

    main: Shape
    written: Shape


def apply(live: Json, config: Json, manager: Manager, managers: Managers, *, scopes: Scopes, force: bool, now: str) -> Applied:
    """Return what `live` becomes.

    Who applies first to an object that nobody owns a part of shares it with `before-first-apply`, which owns all of it but its status: that
    is written by controllers, who are named nowhere and are no conflict for anybody.

    Args:
        live: The object as it is stored.
        config: What is applied, without nulls.
        manager: Who applies.
        managers: Who owns what, before.
        scopes: What it is about.
        force: Take over what others own.
        now: Wall time, RFC 3339.

    Raises:
        ApplyConflict: Others own what would change, and `force` is not given.
        BadRequest: A list of `config` cannot be merged.
    """
    scope, paths = scopes.written, owned(config, scopes.written)
    if not managers and (existing := frozenset(flat(live, scopes.main))):
        first = Manager(managing.BEFORE_FIRST_APPLY, "Update", manager.api_version)
        managers = {first: Managed(existing, now)}
    last = managers.get(manager)
    everybody = {**managers, manager: Managed(paths, now if last is None or last.paths != paths else last.time)}
    obj = merged(live, config, scope)
    if last is not None:
        others = frozenset().union(*(managed.paths for managed in everybody.values()))
        obj = without(obj, last.paths - others, others, frozenset(flat(config, scope)), scope)
    changes = difference(live, obj, scope)
    if not force and (conflicts := _not_own(managing.conflicts_of(everybody, manager, changes.changed), live, manager, scope)):
        raise ApplyConflict(conflicts)
    if manager.name == KUBECTL and _annotations(obj).get(LAST_APPLIED):
        obj = _annotated(obj, config)
    return Applied(obj, _taken(everybody, manager, changes))


def _taken(managers: Managers, manager: Manager, changes: Difference) -> dict[Manager, Managed]:
    """Take what `manager` changed from the others, and what is gone from everybody."""
    left: dict[Manager, Managed] = {}
    for one, managed in managers.items():
        gone: Paths = changes.removed if one == manager else changes.changed | changes.removed
        paths = managed.paths - gone
        if paths:
            left[one] = managed if len(paths) == len(managed.paths) else Managed(paths, managed.time)
    return left


def _not_own(conflicts: Sequence[tuple[Manager, Path]], live: Json, manager: Manager, scope: Shape) -> Sequence[tuple[Manager, Path]]:
    """Return the conflicts but those about fields that kubectl itself applied on the client's side, and that are as it applied them."""
    text = _annotations(live).get(LAST_APPLIED)
    if not conflicts or manager.name != KUBECTL or not isinstance(text, str):
        return conflicts
    try:
        before = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return conflicts
    then, now = flat(before, scope), flat(live, scope)
    return [(other, path) for other, path in conflicts if path not in then or then[path] != now.get(path)]


def _annotations(obj: Json) -> Json:
    annotations = obj["metadata"].get("annotations")
    return annotations if isinstance(annotations, dict) else {}


def _annotated(obj: Json, config: Json) -> Json:
    """Return the object with the annotation of client-side apply as kubectl would have written it, or without it where it has no room."""
    metadata = dict(config["metadata"])
    if "annotations" in metadata:
        metadata["annotations"] = {name: text for name, text in _annotations(config).items() if name != LAST_APPLIED}
    text = msgspec.json.encode({**config, "metadata": metadata}, order="sorted").decode() + "\n"
    annotations = {**_annotations(obj), LAST_APPLIED: text}
    if sum(len(name) + len(value) for name, value in annotations.items() if isinstance(value, str)) > ANNOTATIONS_BYTES_MAX:
        del annotations[LAST_APPLIED]
    return {**obj, "metadata": {**obj["metadata"], "annotations": annotations}}


def _message(conflicts: Sequence[tuple[Manager, Path]]) -> str:
    if len(conflicts) == 1:
        manager, path = conflicts[0]
        return f"Apply failed with 1 conflict: conflict with {manager}: {text_of(path)}"
    lines: list[str] = []
    for name in sorted({str(manager) for manager, _ in conflicts}):
        lines.append(f"conflicts with {name}:")
        lines.extend(f"- {text_of(path)}" for manager, path in conflicts if str(manager) == name)
    return f"Apply failed with {len(conflicts)} conflicts: " + "\n".join(lines)
