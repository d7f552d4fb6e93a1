"""What each write does to one object: pure functions over JSON, shared by every store that keeps its own objects.

In: a write, the stored item or None, the kind's `Resource` and the revision that a change would get. Out: an `Outcome`, or the error
that the caller must see. Here and nowhere else stand the rules of Kubernetes' object life: who owns which part of `metadata`, when
`generation` rises, how spec and status are kept apart, what finalizers hold, and that a write which changes nothing is no write.

Bodies are encoded with sorted keys, as kube-apiserver encodes custom resources, so that equal objects are equal bytes.

Sources: Kubernetes `apiserver/pkg/registry/rest/{create,update,delete}.go`, `registry/generic/registry/store.go`; RFC 7396.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias, assert_never

import msgspec

from controller.store.base import OBJECT_BYTES_MAX, Item, Propagation
from rkfleet import conditions
from rkfleet.clock import format_time
from rkfleet.errors import AlreadyExists, Cause, Conflict, FleetError, Invalid, NotFound
from rkfleet.kinds.base import Resource
from rkfleet.meta import Ref

__all__ = [
    "Create", "Delete", "Json", "Outcome", "Patch", "PatchStatus", "Update", "Write", "encode", "evaluate", "item_of", "merge_patch",
]  # fmt: skip

Json: TypeAlias = dict[str, Any]
Subresource = Literal["", "status"]

# Finalizers by which a deletion asks garbage collection for something before the object goes.
FOREGROUND: Final = "foregroundDeletion"
ORPHAN: Final = "orphan"

# Of `metadata`, what only the store sets; whatever a caller sends in these fields is replaced by what is stored.
SERVER_FIELDS: Final = (
    "name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds",
)  # fmt: skip

# Of `metadata`, what is not there when it is empty: `omitempty` of ObjectMeta (apimachinery/pkg/apis/meta/v1/types.go).
OMITTED_EMPTY: Final = frozenset({"labels", "annotations", "finalizers", "ownerReferences", "managedFields"})


class Create(msgspec.Struct, frozen=True):
    """See `Store.create`."""

    ref: Ref
    obj: Json
    keep_status: bool


class Update(msgspec.Struct, frozen=True):
    """See `Store.update`."""

    ref: Ref
    obj: Json
    resource_version: str
    uid: str
    subresource: Subresource
    now: datetime


class Patch(msgspec.Struct, frozen=True):
    """See `Store.patch`."""

    ref: Ref
    patch: Json
    resource_version: str
    uid: str
    when: Mapping[str, Any]
    subresource: Subresource
    now: datetime


class PatchStatus(msgspec.Struct, frozen=True):
    """See `Store.patch_status`."""

    ref: Ref
    uid: str
    owner: str
    fields: Mapping[str, Any]
    conditions: Sequence[Json]
    when: Mapping[str, Any]
    now: datetime


class Delete(msgspec.Struct, frozen=True):
    """See `Store.delete`."""

    ref: Ref
    uid: str
    resource_version: str
    propagation: Propagation
    now: datetime


Write: TypeAlias = Create | Update | Patch | PatchStatus | Delete


class Outcome(msgspec.Struct, frozen=True):
    """What a write comes to.

    Attributes:
        type: What a watch sees; empty when nothing changed.
        item: The answer: the object after the write, or its last state.
    """

    type: Literal["", "ADDED", "MODIFIED", "DELETED"]
    item: Item


def evaluate(write: Write, stored: Item | None, resource: Resource, revision: int) -> Outcome:
    """Return what `write` does to `stored`; a change gets `revision`.

    Raises:
        NotFound, AlreadyExists, Conflict, Invalid: As `Store` says.
    """
    if isinstance(write, Create):
        if stored is not None:
            raise AlreadyExists(f'{resource.name} "{write.ref.name}" already exists', name=write.ref.name, resource=resource.name)
        return _create(write, resource, revision)
    if stored is None:
        raise _not_found(write.ref)
    match write:
        case Update() | Patch():
            _expect(write.ref, stored, write.uid, write.resource_version)
            return _replace(write, stored, resource, revision)
        case PatchStatus():
            return _patch_status(write, stored, resource, revision)
        case Delete():
            _expect(write.ref, stored, write.uid, write.resource_version)
            return _delete(write, stored, revision)
        case _:
            assert_never(write)


def item_of(ref: Ref, uid: str, revision: int, body: bytes) -> Item:
    """Return the item of an encoded object, as read back from a disk.

    Raises:
        msgspec.MsgspecError: `body` is not an object with metadata.
    """
    return Item(ref, uid, str(revision), msgspec.json.decode(body, type=_Labelled).metadata.labels, body)


def merge_patch(target: Any, patch: Any) -> Any:
    """Return `target` with a JSON merge patch (RFC 7396) applied; neither is changed, unchanged parts are shared."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def encode(value: Any) -> bytes:
    """Return JSON with sorted keys.

    Raises:
        Invalid: It holds something that JSON cannot say, or is nested too deeply.
    """
    try:
        return msgspec.json.encode(value, order="deterministic")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Invalid(f"the object cannot be written as JSON: {error}") from error


class _Metadata(msgspec.Struct, gc=False):
    labels: dict[str, str] = {}


class _Labelled(msgspec.Struct, gc=False):
    metadata: _Metadata


def _create(write: Create, resource: Resource, revision: int) -> Outcome:
    ref = write.ref
    obj = {**write.obj, "apiVersion": resource.api_version, "kind": resource.kind}
    metadata = _metadata_of(ref, obj)
    _check_names(ref, metadata, resource)
    for field in ("resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "namespace"):
        metadata.pop(field, None)
    metadata |= {"name": ref.name, "generation": 1}
    if ref.namespace:
        metadata["namespace"] = ref.namespace
    if not isinstance(metadata.get("uid"), str) or not isinstance(metadata.get("creationTimestamp"), str):
        raise Invalid(f"{ref}: metadata.uid and metadata.creationTimestamp must be set by the caller of create")
    obj["metadata"] = metadata
    if resource.status and not write.keep_status:
        obj.pop("status", None)
    return Outcome("ADDED", _encoded(ref, obj, revision))


def _replace(write: Update | Patch, stored: Item, resource: Resource, revision: int) -> Outcome:
    old = _decode(stored)
    if isinstance(write, Patch):
        _expect_when(write.ref, old, write.when)
        new = merge_patch(old, write.patch)
    else:
        new = write.obj
    if resource.status:
        new = _split(old, new, write.subresource, write.now)
    new = {**new, "apiVersion": resource.api_version, "kind": resource.kind, "metadata": _kept_metadata(stored.ref, old, new)}
    return _stored(old, new, stored, revision)


def _stored(old: Json, new: Json, stored: Item, revision: int) -> Outcome:
    """Give `new` its generation and version, or find that nothing changed or that nothing holds the object any more."""
    body = encode(new)
    if body == stored.body:
        return Outcome("", stored)
    metadata = new["metadata"]
    if encode(_declared(old)) != encode(_declared(new)):
        metadata["generation"] = metadata.get("generation", 0) + 1
    gone = "deletionTimestamp" in metadata and not metadata.get("finalizers")
    return Outcome("DELETED" if gone else "MODIFIED", _encoded(stored.ref, new, revision, stored))


def _patch_status(write: PatchStatus, stored: Item, resource: Resource, revision: int) -> Outcome:
    if stored.uid != write.uid:
        raise _not_found(write.ref, f" with uid {write.uid}")
    owner = resource.owners.get(write.owner)
    types = [condition.get("type", "") for condition in write.conditions]
    foreign = [] if owner is None else [*(set(write.fields) - set(owner.fields)), *(set(types) - set(owner.conditions))]
    if owner is None or foreign:
        raise Invalid(f"status of {resource.name}: {write.owner!r} does not own {', '.join(sorted(foreign)) or 'anything'}")
    old = _decode(stored)
    _expect_when(write.ref, old, write.when)
    before = old.get("status", {})
    after = {field: value for field, value in before.items() if field not in owner.fields and field != "conditions"}
    after |= {field: value for field, value in write.fields.items() if value is not None}
    if merged := conditions.merge(before.get("conditions", []), list(write.conditions), owner.conditions, write.now):
        after["conditions"] = merged
    new = {**old, "metadata": dict(old["metadata"]), "status": after}
    if not after:
        del new["status"]
    return _stored(old, new, stored, revision)


def _delete(write: Delete, stored: Item, revision: int) -> Outcome:
    obj = _decode(stored)
    metadata = dict(obj["metadata"])
    finalizers = [one for one in metadata.get("finalizers", []) if one not in (FOREGROUND, ORPHAN)]
    match write.propagation:
        case "Foreground":
            finalizers.append(FOREGROUND)
        case "Orphan":
            finalizers.append(ORPHAN)
        case "Background":
            pass
    if not finalizers:
        metadata.pop("finalizers", None)
        return Outcome("DELETED", _encoded(stored.ref, {**obj, "metadata": metadata}, revision, stored))
    metadata["finalizers"] = finalizers
    metadata.setdefault("deletionTimestamp", format_time(write.now))
    metadata.setdefault("deletionGracePeriodSeconds", 0)
    return _stored(obj, {**obj, "metadata": metadata}, stored, revision)


def _split(old: Json, new: Json, subresource: Subresource, now: datetime) -> Json:
    """Return `new` with the half that this write may not touch taken from `old`."""
    if subresource == "status":
        status = new.get("status")
        split = {key: value for key, value in old.items() if key != "status"}
        split["metadata"] = _with_managers(old["metadata"], new.get("metadata"))
        return split if status is None else {**split, "status": _timed(old.get("status", {}), status, now)}
    split = {key: value for key, value in new.items() if key != "status"}
    return {**split, "status": old["status"]} if "status" in old else split


def _with_managers(stored: Json, metadata: Any) -> Json:
    """Return metadata with the managers that a write of the status has: they say who set which part of it."""
    if not isinstance(metadata, dict) or "managedFields" not in metadata:
        return stored
    return {**stored, "managedFields": metadata["managedFields"]}


def _timed(before: Any, after: Any, now: datetime) -> Any:
    """Give conditions without a transition time the one they had, or `now` where their status moved."""
    if not isinstance(after, dict) or not isinstance(after.get("conditions"), list):
        return after
    known = {one.get("type"): one for one in before.get("conditions", [])} if isinstance(before, dict) else {}
    timed = []
    for one in after["conditions"]:
        if isinstance(one, dict) and not one.get("lastTransitionTime"):
            same = known.get(one.get("type"), {})
            time = same.get("lastTransitionTime") if same.get("status") == one.get("status") else None
            timed.append({**one, "lastTransitionTime": time or format_time(now)})
        else:
            timed.append(one)
    return {**after, "conditions": timed}


def _kept_metadata(ref: Ref, old: Json, new: Json) -> Json:
    stored = old["metadata"]
    metadata = _metadata_of(ref, new)
    for field in SERVER_FIELDS:
        if field in stored:
            metadata[field] = stored[field]
        else:
            metadata.pop(field, None)
    if "deletionTimestamp" in stored:
        added = set(metadata.get("finalizers") or ()) - set(stored.get("finalizers") or ())
        if added:
            message = f"no new finalizers can be added while the object is being deleted: {', '.join(sorted(added))}"
            raise Invalid(f"{ref}: {message}", (Cause("metadata.finalizers", message, "FieldValueForbidden"),))
    return metadata


def _metadata_of(ref: Ref, obj: Json) -> Json:
    metadata = obj.get("metadata")
    if not isinstance(metadata, dict):
        raise Invalid(f"{ref}: metadata must be an object", (Cause("metadata", "must be an object", "FieldValueTypeInvalid"),))
    labels, finalizers = metadata.get("labels"), metadata.get("finalizers")
    if labels is not None and not (isinstance(labels, dict) and all(isinstance(text, str) for pair in labels.items() for text in pair)):
        raise Invalid(f"{ref}: metadata.labels must map strings to strings", (Cause("metadata.labels", "must map strings to strings"),))
    if finalizers is not None and not (isinstance(finalizers, list) and all(isinstance(one, str) for one in finalizers)):
        raise Invalid(f"{ref}: metadata.finalizers must be a list of strings", (Cause("metadata.finalizers", "must be a list of strings"),))
    return {field: value for field, value in metadata.items() if value is not None and (value or field not in OMITTED_EMPTY)}


def _check_names(ref: Ref, metadata: Json, resource: Resource) -> None:
    if bool(ref.namespace) != resource.namespaced:
        rule = "must have a namespace" if resource.namespaced else f"is cluster-scoped and cannot be in namespace {ref.namespace!r}"
        raise Invalid(f"{ref}: {resource.kind} {rule}", (Cause("metadata.namespace", rule, "FieldValueRequired"),))
    if not ref.name:
        raise Invalid(
            f"{resource.kind}: metadata.name must not be empty", (Cause("metadata.name", "must not be empty", "FieldValueRequired"),)
        )
    for field, wanted in (("name", ref.name), ("namespace", ref.namespace)):
        given = metadata.get(field) or wanted
        if given != wanted:
            message = f"{given!r} is not {wanted!r} of the request"
            raise Invalid(f"{ref}: metadata.{field}: {message}", (Cause(f"metadata.{field}", message),))


def _encoded(ref: Ref, obj: Json, revision: int, before: Item | None = None) -> Item:
    """Return the item; it shares with the one before it what they have in common, because the log keeps both."""
    metadata = obj["metadata"]
    metadata["resourceVersion"] = str(revision)
    body = encode(obj)
    if len(body) > OBJECT_BYTES_MAX:
        raise Invalid(f"{ref} has {len(body)} bytes as JSON, at most {OBJECT_BYTES_MAX} are allowed")
    uid, labels = metadata["uid"], metadata.get("labels") or {}
    if before is not None:
        uid = before.uid if before.uid == uid else uid
        labels = before.labels if before.labels == labels else labels
    return Item(ref, uid, str(revision), labels, body)


def _decode(stored: Item) -> Json:
    obj: Json = msgspec.json.decode(stored.body)
    return obj


def _declared(obj: Json) -> Json:
    return {key: value for key, value in obj.items() if key not in ("metadata", "status")}


def _expect(ref: Ref, stored: Item, uid: str, resource_version: str) -> None:
    if uid and uid != stored.uid:
        raise Conflict(f"{ref}: uid is {stored.uid}, expected {uid}: the object was deleted and made again")
    if resource_version and resource_version != stored.resource_version:
        raise Conflict(
            f'operation cannot be fulfilled on {ref.resource} "{ref.name}": the object has been modified (resourceVersion'
            f" {stored.resource_version}, expected {resource_version}); apply your changes to the latest version and try again"
        )


def _expect_when(ref: Ref, obj: Json, when: Mapping[str, Any]) -> None:
    for path, wanted in when.items():
        found: Any = obj
        for part in path.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if encode(found) != encode(wanted):
            raise Conflict(f"{ref}: {path} is {encode(found).decode()}, expected {encode(wanted).decode()}")


def _not_found(ref: Ref, which: str = "") -> FleetError:
    return NotFound(f'{ref.resource} "{ref.name}" not found{which}', name=ref.name, resource=ref.resource, namespace=ref.namespace)
