"""Admission: from what a client sent to what the store may keep, or every reason why not.

In: a kind, the object as it would be after the request (a new one, or the stored one with a patch applied), and how unknown fields are
to be treated. Out: `Admitted`, with defaults filled in, unknown fields gone and the server's metadata in place, or one error that names
every cause. `writes.py` calls it before every write that comes over HTTPS; it is synchronous, costs 0.1 to 0.5 ms (ModelDeployment, 2
noisy cores, 2026-11) and keeps nothing between calls.

It does nothing that the CRD could not do on a real kube-apiserver: schema, static defaults, CEL rules, metadata checks. In this order:

1. what the URL says and what the object says must agree (BadRequest); name, namespace, uid and kind never change;
2. system fields of metadata: ignored on create, those of the stored object on update; likewise status, or everything but status;
3. settle: defaults in, nulls out, unknown fields reported by `mode` (Strict: BadRequest, Warn: warnings, Ignore: silence) and left out;
   an unknown field that is stored with that value stays, it belongs to a newer controller;
4. metadata syntax, schema, and CEL rules where the schema holds; a fault in a part that this write does not change is no reason to
   refuse it, so a rule that became stricter does not keep a stored object from being labelled or deleted (Kubernetes' ratcheting).

What stays with the caller: uid, creationTimestamp and generation of new objects; resourceVersion of changed ones, which is an expectation
for the store.

Source: Kubernetes `apiserver/pkg/registry/rest/{create,update,meta}.go`, `apimachinery/pkg/api/validation/objectmeta.go`,
`apiextensions-apiserver/pkg/registry/customresource/strategy.go`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from controller.api.rules import RuleSet
from controller.api.values import prepared, value_faults
from controller.store.base import OBJECT_BYTES_MAX
from rkfleet.errors import BadRequest, Cause, Conflict, Invalid
from rkfleet.kinds.base import Object, Registry, Resource
from rkfleet.validation import MISSING, KindValidator, metadata_faults, parse_path, value_at

__all__ = ["Admission", "Admitted", "FieldValidation", "Subresource"]

Json = dict[str, Any]
FieldValidation = Literal["Strict", "Warn", "Ignore"]
Subresource = Literal["", "status"]

GENERATED_NAME_LENGTH_MAX: Final = 63  # Kubernetes' `names.maxNameLength`: a generated name also fits into a label value.
_FORBIDDEN: Final = "FieldValueForbidden"
_SERVER_OWNED: Final = frozenset(
    {"uid", "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "selfLink"}
)


class Admitted(msgspec.Struct, frozen=True):
    """An object that the store may keep.

    Attributes:
        obj: The object, a copy; the caller may change it.
        warnings: Sentences for `Warning: 299` headers.
    """

    obj: Json
    warnings: tuple[str, ...] = ()


class Admission:
    """Admission of every kind of a registry. Schemas and rules are compiled once, here; a program makes one."""

    def __init__(self, registry: Registry) -> None:
        self._validators: Final = {kind: KindValidator(kind) for kind in registry}
        self._rules: Final = {kind: RuleSet(validator.schema) for kind, validator in self._validators.items()}

    def admit_create(
        self,
        kind: type[Object],
        obj: Json,
        *,
        mode: FieldValidation = "Warn",
        namespace: str = "",
        name: str = "",
        name_suffix: str = "",
    ) -> Admitted:
        """Admit a new object.

        Args:
            kind: Its kind.
            obj: The object; apiVersion, kind and metadata may be absent. It is not changed.
            mode: What to do about unknown fields.
            namespace: Namespace of the URL; empty for cluster-scoped kinds.
            name: Name of the URL, where it has one.
            name_suffix: Random lower-case letters and digits that complete `metadata.generateName`.

        Raises:
            BadRequest: The object contradicts the URL, sets resourceVersion, or has unknown fields in mode Strict.
            Invalid: Something else is wrong; `causes` name every field.
        """
        resource, sent = kind.resource, _metadata(obj)
        if sent.get("resourceVersion"):
            raise BadRequest("resourceVersion should not be set on objects to be created")
        metadata = {key: value for key, value in sent.items() if key not in _SERVER_OWNED}
        prefix = metadata.get("generateName")
        if not metadata.get("name") and isinstance(prefix, str) and prefix and name_suffix:
            length_max = min(GENERATED_NAME_LENGTH_MAX, resource.name_length_max)
            metadata["name"] = prefix[: length_max - len(name_suffix)] + name_suffix
        created = {**_of_kind(resource, obj), "metadata": _at_url(metadata, namespace, name)}
        if resource.status:
            created.pop("status", None)
        return self._admit(kind, created, None, mode)

    def admit_update(
        self, kind: type[Object], old: Json, new: Json, *, mode: FieldValidation = "Warn", subresource: Subresource = ""
    ) -> Admitted:
        """Admit a change of a stored object.

        Args:
            kind: Its kind.
            old: The object as it is stored.
            new: The object as it would be; a resourceVersion in it is left as it is. It is not changed.
            mode: What to do about unknown fields that are not stored already.
            subresource: "" writes everything but status (of kinds that have the status subresource), "status" nothing but status.

        Raises:
            BadRequest: Name, namespace, apiVersion or kind differ from the stored object's, or unknown fields in mode Strict.
            Conflict: The object carries the uid of another one.
            Invalid: Something else is wrong; `causes` name every field.
        """
        resource, before, sent = kind.resource, old["metadata"], _metadata(new)
        if sent.get("uid") and sent["uid"] != before.get("uid"):
            message = f"the object sent has uid {sent['uid']}, the stored one {before.get('uid')}"
            raise Conflict(f"{_title(resource, str(before.get('name', '')))}: {message}: it was deleted and created anew")
        metadata = _at_url(sent, before.get("namespace", ""), before.get("name", ""))
        changed = _of_kind(resource, new)
        if subresource == "status":
            version = {key: value for key, value in metadata.items() if key == "resourceVersion"}
            changed = {**old, "metadata": {**before, **version}, "status": changed.get("status")}
        else:
            changed["metadata"] = {key: value for key, value in metadata.items() if key not in _SERVER_OWNED} | {
                key: value for key, value in before.items() if key in _SERVER_OWNED
            }
            if resource.status:
                changed["status"] = old.get("status")
        return self._admit(kind, changed, old, mode)

    def _admit(self, kind: type[Object], obj: Json, old: Json | None, mode: FieldValidation) -> Admitted:
        validator = self._validators[kind]
        settled = validator.settle(prepared(kind, obj), old)
        stored = validator.settle(old, old).obj if old is not None else None
        unknown = tuple(f'unknown field "{field}"' for field in settled.unknown)
        broken = _new_faults(validator.faults(settled.obj), stored, settled.obj)
        causes = [*settled.causes, *_metadata_faults(kind, settled.obj["metadata"], stored)]
        causes = [*_new_faults(causes, stored, settled.obj), *broken, *value_faults(kind, settled.obj, stored)]
        # A rule is written for objects that the schema allows; on others it would only repeat the fault in worse words.
        if not broken:
            causes += self._rules[kind].faults(settled.obj, MISSING if stored is None else stored)
        if unknown and mode == "Strict":
            raise BadRequest("; ".join((f"strict decoding error: {', '.join(unknown)}", *map(_line, causes))))
        if not causes:
            causes = _size_faults(settled.obj)
        if causes:
            raise _invalid(kind.resource, str(settled.obj["metadata"].get("name", "")), tuple(causes))
        return Admitted(obj=settled.obj, warnings=unknown if mode == "Warn" else ())


def _metadata(obj: Json) -> Json:
    metadata = obj.get("metadata")
    if not isinstance(metadata, dict | None):
        raise BadRequest(f"metadata must be a mapping, not {type(metadata).__name__}")
    return {key: value for key, value in (metadata or {}).items() if value is not None}


def _of_kind(resource: Resource, obj: Json) -> Json:
    """Return a shallow copy that says its kind; one that says another is refused."""
    said = (obj.get("apiVersion") or resource.api_version, obj.get("kind") or resource.kind)
    if said != (resource.api_version, resource.kind):
        raise BadRequest(
            f"the apiVersion and kind of the object ({said[0]}, {said[1]}) do not match those of the URL"
            f" ({resource.api_version}, {resource.kind})"
        )
    return {"apiVersion": resource.api_version, "kind": resource.kind} | {
        key: value for key, value in obj.items() if key not in ("apiVersion", "kind")
    }


def _at_url(metadata: Json, namespace: str, name: str) -> Json:
    """Return metadata with the name and namespace of the URL; a contradiction is refused."""
    said = metadata.get("namespace") or namespace
    # Clients fill in their default namespace also for cluster-scoped kinds.
    if said != namespace and not (said == "default" and not namespace):
        raise BadRequest(f"the namespace of the object ({said}) does not match the namespace on the URL ({namespace or 'none'})")
    placed = {key: value for key, value in metadata.items() if key != "namespace"}
    if namespace:
        placed["namespace"] = namespace
    if name and (placed.get("name") or name) != name:
        raise BadRequest(f"the name of the object ({placed['name']}) does not match the name on the URL ({name})")
    return {**placed, "name": name} if name else placed


def _metadata_faults(kind: type[Object], metadata: Json, stored: Json | None) -> list[Cause]:
    causes = list(metadata_faults(kind, metadata))
    if stored is None or not stored["metadata"].get("deletionTimestamp"):
        return causes
    finalizers, before = metadata.get("finalizers"), stored["metadata"].get("finalizers", [])
    if added := [one for one in finalizers if one not in before] if isinstance(finalizers, list) else []:
        message = f"{', '.join(map(str, added))}: no finalizer can be added to an object that is being deleted"
        causes.append(Cause(field="metadata.finalizers", message=message, reason=_FORBIDDEN))
    return causes


def _new_faults(causes: Iterable[Cause], stored: Json | None, obj: Json) -> list[Cause]:
    return [cause for cause in causes if stored is None or not _was_so(cause, stored, obj)]


def _was_so(cause: Cause, old: Json, new: Json) -> bool:
    """Return whether the part that a cause is about was stored exactly so already.

    What is forbidden or a duplicate is so because of other parts, and stays a fault.
    """
    path = parse_path(cause.field)
    if not path or cause.reason in (_FORBIDDEN, "FieldValueDuplicate"):
        return False
    if value_at(new, path) is MISSING:
        path = path[:-1]
    before = value_at(old, path)
    return before is not MISSING and before == value_at(new, path)


def _size_faults(obj: Json) -> list[Cause]:
    size_bytes = len(msgspec.json.encode(obj))
    if size_bytes <= OBJECT_BYTES_MAX:
        return []
    message = f"the object has {size_bytes} bytes, at most {OBJECT_BYTES_MAX} are allowed"
    return [Cause(field="", message=message, reason="FieldValueTooLong")]


def _invalid(resource: Resource, name: str, causes: tuple[Cause, ...]) -> Invalid:
    """Return the error in the words of Kubernetes' `NewInvalid`."""
    lines = ", ".join(map(_line, causes))
    return Invalid(f"{_title(resource, name)} is invalid: {lines if len(causes) == 1 else f'[{lines}]'}", causes, name=name)


def _title(resource: Resource, name: str) -> str:
    return f'{resource.kind}{f".{resource.group}" if resource.group else ""} "{name}"'


def _line(cause: Cause) -> str:
    return f"{cause.field}: {cause.message}" if cause.field else cause.message
