"""The built-in kinds of Kubernetes that kubectl needs beside ours: Namespace and Event, both in core `v1`.

Source: Kubernetes `api/core/v1/types.go`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from msgspec import Meta

from rkfleet.kinds.base import Column, Object, Resource, StatusOwner
from rkfleet.meta import Struct

__all__ = ["CONTENTS_FINALIZER", "Event", "EventSource", "Namespace", "NamespaceSpec", "NamespaceStatus", "ObjectReference"]


CONTENTS_FINALIZER: Final = "rkfleet.dev/contents"
"""Keeps a namespace that is being deleted until everything in it is gone; set by the API when a namespace is made."""


class NamespaceSpec(Struct, frozen=True, kw_only=True):
    """What a namespace is."""

    finalizers: Annotated[tuple[str, ...], Meta(description="Work that must be done before the namespace is removed.")] = ()


class NamespaceStatus(Struct, frozen=True, kw_only=True):
    """What is known about a namespace."""

    phase: Annotated[str, Meta(description="Active or Terminating; kubectl prints it.")] = "Active"


class Namespace(Object, frozen=True, kw_only=True):
    """A scope for names."""

    resource: ClassVar[Resource] = Resource(
        kind="Namespace", plural="namespaces", singular="namespace", namespaced=False, group="", version="v1", short_names=("ns",),
        name_length_max=63,
        columns=(
            Column("Status", ".status.phase", "Active or Terminating."),
            Column("Age", ".metadata.creationTimestamp", "Time since creation.", "date"),
        ),
        owners={"namespace": StatusOwner(fields=("phase",))},
    )  # fmt: skip

    spec: Annotated[NamespaceSpec, Meta(description="What the namespace is.")] = NamespaceSpec()
    status: Annotated[NamespaceStatus, Meta(description="What is known about the namespace.")] = NamespaceStatus()


class ObjectReference(Struct, frozen=True, kw_only=True):
    """Names the object that an event is about."""

    api_version: Annotated[str, Meta(description="Group and version of the object.")] = ""
    kind: Annotated[str, Meta(description="Kind of the object.")] = ""
    namespace: Annotated[str, Meta(description="Namespace of the object; empty for cluster-scoped kinds.")] = ""
    name: Annotated[str, Meta(description="Name of the object.")] = ""
    uid: Annotated[str, Meta(description="Uid of the object.")] = ""
    resource_version: Annotated[str, Meta(description="Version of the object that was seen.")] = ""
    field_path: Annotated[str, Meta(description="Part of the object that the event is about.")] = ""


class EventSource(Struct, frozen=True, kw_only=True):
    """Who reports."""

    component: Annotated[str, Meta(description="Part of the system that reports.")] = ""
    host: Annotated[str, Meta(description="Machine that it runs on.")] = ""


class Event(Object, frozen=True, kw_only=True):
    """Something that happened to an object; kept for an hour by default, oldest first to go."""

    resource: ClassVar[Resource] = Resource(
        kind="Event", plural="events", singular="event", group="", version="v1", short_names=("ev",), status=False,
        columns=(
            Column("Last Seen", ".lastTimestamp", "Time since it last happened.", "date"),
            Column("Type", ".type", "Normal or Warning."),
            Column("Reason", ".reason", "CamelCase constant for programs."),
            Column("Object", ".involvedObject.name", "Object that the event is about."),
            Column("Message", ".message", "Sentence for people."),
        ),
    )  # fmt: skip

    involved_object: Annotated[ObjectReference, Meta(description="Object that the event is about.")] = ObjectReference()
    reason: Annotated[str, Meta(description="CamelCase constant that says what happened.")] = ""
    message: Annotated[str, Meta(description="Sentence that says what happened.")] = ""
    type: Annotated[str, Meta(description="Normal or Warning.")] = "Normal"
    source: Annotated[EventSource, Meta(description="Who reports.")] = EventSource()
    first_timestamp: Annotated[str, Meta(description="When it first happened.")] = ""
    last_timestamp: Annotated[str, Meta(description="When it last happened.")] = ""
    event_time: Annotated[str | None, Meta(description="When it happened, with microseconds.")] = None
    count: Annotated[int, Meta(description="How often it happened.")] = 1
    action: Annotated[str, Meta(description="What was done.")] = ""
    reporting_component: Annotated[str, Meta(description="Controller that reports.")] = ""
    reporting_instance: Annotated[str, Meta(description="Instance of that controller.")] = ""
