"""Collection by owner, and deletions that wait."""

from __future__ import annotations

import msgspec

from controller.planning.actions import Delete, EditMetadata
from controller.planning.garbage import Owner, plan_dependent, plan_owner
from rkfleet.kinds import Replica
from rkfleet.meta import OwnerReference
from tests.support import planned

CHAT = planned.deployment()
OWNED = planned.replica("r-1-0", CHAT, "r-1")
REFERENCE = OWNED.metadata.owner_references[0]
OTHER = OwnerReference(api_version="v1", kind="Namespace", name="other", uid="uid-other")


def owned_by(*references: OwnerReference, **metadata: object) -> Replica:
    spec = {"deploymentName": "chat", "revisionName": "r-1", "slot": "0"}
    owners = [msgspec.to_builtins(one) for one in references]
    return planned.make(Replica, "r-1-0", spec=spec, ownerReferences=owners, **metadata)  # type: ignore[no-any-return]


def test_an_object_goes_with_the_last_of_its_owners() -> None:
    assert plan_dependent(OWNED, [Owner(reference=REFERENCE, exists=True)]).actions == ()
    (action,) = plan_dependent(OWNED, [Owner(reference=REFERENCE, exists=False)]).actions
    assert action == Delete(ref=OWNED.ref, uid=OWNED.metadata.uid)


def test_a_reference_to_an_owner_that_is_gone_is_taken_off_while_another_stays() -> None:
    both = owned_by(REFERENCE, OTHER)
    (action,) = plan_dependent(both, [Owner(reference=REFERENCE, exists=False), Owner(reference=OTHER, exists=True)]).actions
    assert isinstance(action, EditMetadata)
    assert action.owner_references == (OTHER,)


def test_an_object_without_owners_or_under_deletion_is_left_alone() -> None:
    assert plan_dependent(owned_by(), []).actions == ()
    dying = owned_by(REFERENCE, deletionTimestamp="2026-01-01T00:00:00Z")
    assert plan_dependent(dying, [Owner(reference=REFERENCE, exists=False)]).actions == ()


def dying(finalizer: str) -> Replica:
    return owned_by(deletionTimestamp="2026-01-01T00:00:00Z", finalizers=["mine", finalizer])


def test_foreground_deletes_what_blocks_first_and_then_lets_go() -> None:
    owner = dying("foregroundDeletion")
    blocking = owned_by(OwnerReference(api_version="v1", kind="X", name="x", uid=owner.metadata.uid, block_owner_deletion=True))
    free = owned_by(OwnerReference(api_version="v1", kind="X", name="x", uid=owner.metadata.uid))
    assert plan_owner(owner, [blocking, free]).actions == (Delete(ref=blocking.ref, uid=blocking.metadata.uid),)
    (release,) = plan_owner(owner, [free]).actions
    assert isinstance(release, EditMetadata)
    assert release.finalizers == ("mine",)


def test_foreground_waits_for_what_is_being_deleted() -> None:
    owner = dying("foregroundDeletion")
    reference = OwnerReference(api_version="v1", kind="X", name="x", uid=owner.metadata.uid, block_owner_deletion=True)
    plan = plan_owner(owner, [owned_by(reference, deletionTimestamp="2026-01-01T00:00:00Z")])
    assert (plan.actions, plan.waiting) == ((), "its dependents to be gone")


def test_orphan_takes_the_reference_off_and_then_lets_go() -> None:
    owner = dying("orphan")
    child = owned_by(OwnerReference(api_version="v1", kind="X", name="x", uid=owner.metadata.uid), OTHER)
    (action,) = plan_owner(owner, [child]).actions
    assert isinstance(action, EditMetadata)
    assert action.owner_references == (OTHER,)
    (release,) = plan_owner(owner, []).actions
    assert isinstance(release, EditMetadata)
    assert release.finalizers == ("mine",)


def test_nothing_is_done_for_objects_that_stay_or_whose_finalizers_are_others_business() -> None:
    assert plan_owner(owned_by(finalizers=["orphan"]), []).actions == ()
    assert plan_owner(owned_by(deletionTimestamp="2026-01-01T00:00:00Z", finalizers=["mine"]), []).actions == ()
