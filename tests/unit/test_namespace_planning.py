"""A namespace goes after everything in it."""

from __future__ import annotations

from controller.planning.actions import Delete, EditMetadata, Plan, WriteStatus
from controller.planning.namespaces import Content, plan_namespace
from rkfleet.kinds.namespace import CONTENTS_FINALIZER, Namespace, NamespaceStatus
from rkfleet.meta import ObjectMeta, Ref, ResourceName

MODEL = Content(Ref(ResourceName("models.rkfleet.dev"), "lab", "m"), "1", going=False)
GOING = Content(Ref(ResourceName("replicas.rkfleet.dev"), "lab", "r"), "2", going=True)


def _namespace(*, deleted: bool = True, finalizers: tuple[str, ...] = (CONTENTS_FINALIZER, "x.dev/y"), phase: str = "Active") -> Namespace:
    moment = "2026-01-01T00:00:00Z" if deleted else ""
    metadata = ObjectMeta(name="lab", uid="n", resource_version="7", deletion_timestamp=moment, finalizers=finalizers)
    return Namespace(metadata=metadata, status=NamespaceStatus(phase=phase))


def test_a_namespace_that_stays_is_left_alone() -> None:
    assert plan_namespace(_namespace(deleted=False), [MODEL]) == Plan()
    assert plan_namespace(_namespace(finalizers=("x.dev/y",)), [MODEL]) == Plan()


def test_contents_are_deleted_once_and_waited_for() -> None:
    plan = plan_namespace(_namespace(), [GOING, MODEL])
    assert [type(action) for action in plan.actions] == [WriteStatus, Delete]
    assert plan.actions[1] == Delete(ref=MODEL.ref, uid="1")
    assert plan.again_after_seconds == 1.0
    assert plan.waiting == "2 objects in namespace lab must go first, replicas.rkfleet.dev/lab/r among them"
    assert plan_namespace(_namespace(phase="Terminating"), [GOING]).actions == ()


def test_the_finalizer_falls_when_nothing_is_left() -> None:
    (action,) = plan_namespace(_namespace(), []).actions
    assert isinstance(action, EditMetadata)
    assert (action.finalizers, action.resource_version) == (("x.dev/y",), "7")
