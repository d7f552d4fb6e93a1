"""Objects whose owners are gone, and owners whose deletion waits for their dependents.

In: one object, its owners as they certainly are (`Owner`), and, for an object under deletion, its dependents. Out: a `Plan`.
`reconcilers/garbage.py` observes; it asks the store itself about owners, because a cache that lags behind would make an owner look gone.

- An object with owner references of which none exists any more (same uid) is deleted.
- Finalizer `foregroundDeletion` on a deleted object: its dependents that block are deleted first, then the finalizer is taken off.
- Finalizer `orphan`: the reference to it is taken off its dependents, then the finalizer.

Source: Kubernetes `pkg/controller/garbagecollector/garbagecollector.go`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from controller.planning.actions import Action, Delete, EditMetadata, Plan, Value
from rkfleet.kinds.base import Object
from rkfleet.meta import OwnerReference

__all__ = ["FOREGROUND", "ORPHAN", "Owner", "plan_dependent", "plan_owner"]

FOREGROUND: Final = "foregroundDeletion"
ORPHAN: Final = "orphan"


class Owner(Value, frozen=True, kw_only=True):
    """An owner reference and whether that very object exists."""

    reference: OwnerReference
    exists: bool


def plan_dependent(obj: Object, owners: Sequence[Owner]) -> Plan:
    """Return how to collect an object by its owners: it goes with the last of them; references to others that are gone are taken off."""
    if not owners or obj.metadata.deletion_timestamp:
        return Plan()
    staying = tuple(owner.reference for owner in owners if owner.exists)
    if len(staying) == len(owners):
        return Plan()
    meta = obj.metadata
    if not staying:
        return Plan(actions=(Delete(ref=obj.ref, uid=meta.uid),))
    return Plan(actions=(EditMetadata(ref=obj.ref, uid=meta.uid, resource_version=meta.resource_version, owner_references=staying),))


def plan_owner(obj: Object, dependents: Sequence[Object]) -> Plan:
    """Return how to go on with the deletion of an object that one of the two finalizers holds."""
    meta = obj.metadata
    if not meta.deletion_timestamp:
        return Plan()
    if ORPHAN in meta.finalizers:
        return _then_release(obj, ORPHAN, tuple(_orphan(obj, dependents)), "its dependents to let go of it")
    if FOREGROUND in meta.finalizers:
        blocking = [one for one in dependents if any(ref.uid == meta.uid and ref.block_owner_deletion for ref in _references(one))]
        deletions = (Delete(ref=one.ref, uid=one.metadata.uid) for one in blocking if not one.metadata.deletion_timestamp)
        return _then_release(obj, FOREGROUND, tuple(deletions), "its dependents to be gone", waiting=bool(blocking))
    return Plan()


def _references(obj: Object) -> tuple[OwnerReference, ...]:
    return obj.metadata.owner_references


def _orphan(obj: Object, dependents: Sequence[Object]) -> Iterator[Action]:
    for one in dependents:
        meta = one.metadata
        staying = tuple(ref for ref in meta.owner_references if ref.uid != obj.metadata.uid)
        if len(staying) != len(meta.owner_references):
            yield EditMetadata(ref=one.ref, uid=meta.uid, resource_version=meta.resource_version, owner_references=staying)


def _then_release(obj: Object, finalizer: str, actions: tuple[Action, ...], why: str, *, waiting: bool = False) -> Plan:
    """Return these actions; when there is nothing more to do or to wait for, take the finalizer off."""
    if actions or waiting:
        return Plan(actions=actions, waiting=why)
    meta = obj.metadata
    left = tuple(one for one in meta.finalizers if one != finalizer)
    return Plan(actions=(EditMetadata(ref=obj.ref, uid=meta.uid, resource_version=meta.resource_version, finalizers=left),))
