"""What planners tell people: the reasons of events, and a `Record` about an object.

Every planner uses it; `machinery/events.py` writes what comes of it. A reason is a word for programs that filter, so all stand here.
Where an event repeats a condition (BoardLost, ModelNotFound), its reason is that of the condition.
"""

from __future__ import annotations

from typing import Final

from controller.planning.actions import Record
from rkfleet.kinds.base import Object

__all__ = ["record"]

# About a deployment.
REVISION_CREATED: Final = "RevisionCreated"
ROLLED_BACK: Final = "RolledBack"
REPLICA_CREATED: Final = "ReplicaCreated"
REPLICA_ACTIVATED: Final = "ReplicaActivated"
REPLICA_DRAINING: Final = "ReplicaDraining"
REPLICA_DELETED: Final = "ReplicaDeleted"

# About a Replica; the words of Kubernetes' scheduler.
SCHEDULED: Final = "Scheduled"
FAILED_SCHEDULING: Final = "FailedScheduling"

# About a Board.
ASSIGNMENT_REWOUND: Final = "AssignmentRewound"


def record(obj: Object, reason: str, message: str, *, warning: bool = False) -> Record:
    """Return something that happened to the object."""
    return Record(
        ref=obj.ref,
        uid=obj.metadata.uid,
        kind=obj.resource.kind,
        api_version=obj.resource.api_version,
        type="Warning" if warning else "Normal",
        reason=reason,
        message=message,
    )
