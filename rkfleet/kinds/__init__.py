"""The kinds of rkfleet, and the registry of all that the controller serves."""

from rkfleet.kinds.base import GROUP, VERSION, Column, Condition, Object, Registry, Resource, Rule, StatusOwner, decode
from rkfleet.kinds.board import Board
from rkfleet.kinds.core import Event, Namespace
from rkfleet.kinds.deployment import ModelDeployment
from rkfleet.kinds.lease import Lease
from rkfleet.kinds.model import Model
from rkfleet.kinds.replica import Replica
from rkfleet.kinds.revision import ModelRevision

__all__ = [
    "GROUP", "KINDS", "VERSION", "Board", "Column", "Condition", "Event", "Lease", "Model", "ModelDeployment", "ModelRevision", "Namespace",
    "Object", "Registry", "Replica", "Resource", "Rule", "StatusOwner", "decode",
]  # fmt: skip

KINDS = Registry((Board, Model, ModelDeployment, ModelRevision, Replica, Namespace, Event, Lease))
