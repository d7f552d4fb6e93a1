"""How a namespace goes: everything in it first, then itself.

Pure. In: the namespace and what is stored in it. Out: a plan. `reconcilers/namespaces.py` calls it. Objects in the namespace go their own
way (finalizers, garbage collection of what they own); the finalizer of the namespace falls when the last one is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from controller.planning.actions import Delete, EditMetadata, Plan, WriteStatus
from controller.planning.garbage import FOREGROUND, ORPHAN
from rkfleet.kinds.namespace import CONTENTS_FINALIZER, Namespace
from rkfleet.meta import Ref

__all__ = ["Content", "plan_namespace"]

LOOK_AGAIN_SECONDS: Final = 1.0  # Objects leave without waking the namespace; a person is waiting at `kubectl delete`.


_OURS: Final = (CONTENTS_FINALIZER, FOREGROUND, ORPHAN)
"""A namespace owns nothing by reference, so the two finalizers of garbage collection fall together with its own."""


class Content(msgspec.Struct, frozen=True, gc=False):
    """One object in a namespace; `going` when its deletion was asked for."""

    ref: Ref
    uid: str
    going: bool


def plan_namespace(namespace: Namespace, contents: Sequence[Content]) -> Plan:
    """Return what to do for a namespace; nothing unless its deletion was asked for."""
    metadata = namespace.metadata
    if not metadata.deletion_timestamp or CONTENTS_FINALIZER not in metadata.finalizers:
        return Plan()
    if not contents:
        left = tuple(one for one in metadata.finalizers if one not in _OURS)
        done = EditMetadata(ref=namespace.ref, uid=metadata.uid, resource_version=metadata.resource_version, finalizers=left)
        return Plan(actions=(done,))
    phase = WriteStatus(ref=namespace.ref, uid=metadata.uid, owner="namespace", fields={"phase": "Terminating"})
    deletions = tuple(Delete(ref=one.ref, uid=one.uid) for one in contents if not one.going)
    return Plan(
        actions=(phase, *deletions) if namespace.status.phase != "Terminating" else deletions,
        waiting=f"{len(contents)} objects in namespace {metadata.name} must go first, {contents[0].ref} among them",
        again_after_seconds=LOOK_AGAIN_SECONDS,
    )
