"""What a plan is made of: a closed union of actions, each one write that needs no more choices.

Planners return them, `reconcilers/act.py` carries them out in order and nothing else does. An action names its object by `Ref` and,
where the object exists already, by the uid and the resourceVersion that the planner saw: if the object is another one or has moved on,
the write fails with Conflict and the key is planned again. So a plan that was made from an old view writes nothing over a newer world.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from rkfleet.conditions import Condition
from rkfleet.kinds.replica import Activation, ReplicaSpec
from rkfleet.kinds.revision import ModelRevisionSpec
from rkfleet.meta import OwnerReference, Ref

__all__ = [
    "Action",
    "Activate",
    "Bind",
    "CreateReplica",
    "CreateRevision",
    "Delete",
    "EditMetadata",
    "Plan",
    "Record",
    "RenumberRevision",
    "WriteStatus",
]


class Value(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Base of everything that planners take and return."""


class CreateRevision(Value, frozen=True, kw_only=True):
    """Store a template as a ModelRevision."""

    ref: Ref
    owner: OwnerReference
    labels: Mapping[str, str]
    spec: ModelRevisionSpec


class RenumberRevision(Value, frozen=True, kw_only=True):
    """Make an earlier revision the newest one again (rollback)."""

    ref: Ref
    uid: str
    resource_version: str
    number: int


class CreateReplica(Value, frozen=True, kw_only=True):
    """Create a Replica that no board has yet."""

    ref: Ref
    owner: OwnerReference
    labels: Mapping[str, str]
    spec: ReplicaSpec


class Activate(Value, frozen=True, kw_only=True):
    """Move a Replica to another activation: Staged -> Serving or Serving -> Draining."""

    ref: Ref
    uid: str
    resource_version: str
    activation: Activation


class Bind(Value, frozen=True, kw_only=True):
    """Place a Replica: board and variant are set once and together."""

    ref: Ref
    uid: str
    resource_version: str
    board: str
    variant: str


class Delete(Value, frozen=True, kw_only=True):
    """Delete an object; an empty `resource_version` means that only its identity matters."""

    ref: Ref
    uid: str
    resource_version: str = ""


class EditMetadata(Value, frozen=True, kw_only=True):
    """Replace finalizers or owner references; None leaves them as they are."""

    ref: Ref
    uid: str
    resource_version: str
    finalizers: tuple[str, ...] | None = None
    owner_references: tuple[OwnerReference, ...] | None = None


class WriteStatus(Value, frozen=True, kw_only=True):
    """Replace what `owner` owns of an object's status.

    Attributes:
        fields: camelCase fields directly below `status`, JSON values.
        when: Expected values by dotted path; the write is refused with Conflict where they differ.
    """

    ref: Ref
    uid: str
    owner: str
    fields: Mapping[str, Any] = {}
    conditions: tuple[Condition, ...] = ()
    when: Mapping[str, Any] = {}


class Record(Value, frozen=True, kw_only=True):
    """Tell people what happened to an object."""

    ref: Ref
    uid: str
    kind: str
    api_version: str
    type: Literal["Normal", "Warning"]
    reason: str
    message: str


Action = CreateRevision | RenumberRevision | CreateReplica | Activate | Bind | Delete | EditMetadata | WriteStatus | Record


class Plan(Value, frozen=True, kw_only=True):
    """What to do now, in order, and what is being waited for.

    Attributes:
        actions: Empty when the world is as declared, as far as it can be brought by writing.
        waiting: Sentence that says what must happen elsewhere before the next step; empty when nothing must.
        again_after_seconds: When to plan again although nothing changed; None for never.
    """

    actions: tuple[Action, ...] = ()
    waiting: str = ""
    again_after_seconds: float | None = None

    @property
    def structural(self) -> bool:
        """Whether anything but status and events is written, so that the view behind the plan must be current."""
        return any(not isinstance(action, WriteStatus | Record) for action in self.actions)
