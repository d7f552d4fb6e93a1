"""The kinds of rkfleet, and the registry of all that the controller serves."""

from rkfleet.kinds.base import GROUP, VERSION, Column, Condition, Object, Registry, Resource, Rule, StatusOwner, decode
from rkfleet.kinds.board import Board
from rkfleet.kinds.deployment import ModelDeployment
from rkfleet.kinds.event import Event, RegardedEvent
from rkfleet.kinds.lease import Lease
from rkfleet.kinds.model import Model
from rkfleet.kinds.namespace import Namespace
from rkfleet.kinds.replica import Replica
from rkfleet.kinds.revision import ModelRevision
from rkfleet.kinds.secret import ConfigMap, Secret
from rkfleet.kinds.service import Service

__all__ = [
    "GROUP", "KINDS", "VERSION", "Board", "Column", "Condition", "ConfigMap", "Event", "Lease", "Model", "ModelDeployment",
    "ModelRevision", "Namespace", "Object", "RegardedEvent", "Registry", "Replica", "Resource", "Rule", "Secret", "Service",
    "StatusOwner", "decode",
]  # fmt: skip

KINDS = Registry(
    (
        Board, Model, ModelDeployment, ModelRevision, Replica, Namespace, Event, Secret, ConfigMap, Service, Lease, RegardedEvent,
    )
)  # fmt: skip
