"""The built-in kind Event, in both groups that Kubernetes serves it in: core, where it is stored, and events.k8s.io.

Source: Kubernetes `k8s.io/api/core/v1/types.go`, `k8s.io/api/events/v1/types.go`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from rkfleet.kinds.base import Column, Object, Resource
from rkfleet.meta import MicroTime, Struct

__all__ = ["Event", "EventSeries", "EventSource", "ObjectReference", "RegardedEvent"]


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


class EventSeries(Struct, frozen=True, kw_only=True):
    """How an event that happens again and again went on."""

    count: Annotated[int, Meta(description="How often it happened.")] = 0
    last_observed_time: Annotated[MicroTime | None, Meta(description="When it last happened, with microseconds.")] = None


class Event(Object, frozen=True, kw_only=True):
    """Something that happened to an object; kept for an hour by default, oldest first to go."""

    resource: ClassVar[Resource] = Resource(
        kind="Event", plural="events", singular="event", group="", version="v1", short_names=("ev",), status=False,
        columns=(
            Column("Last Seen", ".series.lastObservedTime|.lastTimestamp|.eventTime", "Time since it last happened.", "date"),
            Column("Type", ".type", "Normal or Warning."),
            Column("Reason", ".reason", "CamelCase constant for programs."),
            Column("Object", ".involvedObject", "Object that the event is about.", "reference"),
            Column("Source", ".source.component|.reportingComponent", "Who reports.", priority=1),
            Column("Message", ".message", "Sentence for people."),
            Column("First Seen", ".firstTimestamp|.eventTime", "Time since it first happened.", "date", priority=1),
            Column("Count", ".series.count|.count", "How often it happened.", "integer", priority=1),
        ),
    )  # fmt: skip

    involved_object: Annotated[ObjectReference, Meta(description="Object that the event is about.")] = ObjectReference()
    reason: Annotated[str, Meta(description="CamelCase constant that says what happened.")] = ""
    message: Annotated[str, Meta(description="Sentence that says what happened.")] = ""
    type: Annotated[str, Meta(description="Normal or Warning.")] = "Normal"
    source: Annotated[EventSource, Meta(description="Who reports.")] = EventSource()
    first_timestamp: Annotated[str, Meta(description="When it first happened.")] = ""
    last_timestamp: Annotated[str, Meta(description="When it last happened.")] = ""
    event_time: Annotated[MicroTime | None, Meta(description="When it happened, with microseconds.")] = None
    count: Annotated[int, Meta(description="How often it happened.")] = 1
    action: Annotated[str, Meta(description="What was done.")] = ""
    series: Annotated[EventSeries | None, Meta(description="How it went on, of an event that happens again and again.")] = None
    related: Annotated[ObjectReference | None, Meta(description="A second object that the event is about.")] = None
    reporting_component: Annotated[str, Meta(description="Controller that reports.")] = ""
    reporting_instance: Annotated[str, Meta(description="Instance of that controller.")] = ""


class RegardedEvent(Object, frozen=True, kw_only=True):
    """An Event in the words of the group events.k8s.io; the same object as the Event of the core group."""

    resource: ClassVar[Resource] = Resource(
        kind="Event", plural="events", singular="event", group="events.k8s.io", version="v1", status=False,
        columns=(
            Column("Last Seen", ".series.lastObservedTime|.deprecatedLastTimestamp|.eventTime", "Time since it last happened.", "date"),
            Column("Type", ".type", "Normal or Warning."),
            Column("Reason", ".reason", "CamelCase constant for programs."),
            Column("Object", ".regarding", "Object that the event is about.", "reference"),
            Column("Source", ".deprecatedSource.component|.reportingController", "Who reports.", priority=1),
            Column("Message", ".note", "Sentence for people."),
            Column("First Seen", ".deprecatedFirstTimestamp|.eventTime", "Time since it first happened.", "date", priority=1),
            Column("Count", ".series.count|.deprecatedCount", "How often it happened.", "integer", priority=1),
        ),
    )  # fmt: skip

    event_time: Annotated[MicroTime | None, Meta(description="When it happened, with microseconds.")] = None
    series: Annotated[EventSeries | None, Meta(description="How it went on, of an event that happens again and again.")] = None
    reporting_controller: Annotated[str, Meta(description="Controller that reports.")] = ""
    reporting_instance: Annotated[str, Meta(description="Instance of that controller.")] = ""
    action: Annotated[str, Meta(description="What was done.")] = ""
    reason: Annotated[str, Meta(description="CamelCase constant that says what happened.")] = ""
    regarding: Annotated[ObjectReference, Meta(description="Object that the event is about.")] = ObjectReference()
    related: Annotated[ObjectReference | None, Meta(description="A second object that the event is about.")] = None
    note: Annotated[str, Meta(description="Sentence that says what happened.")] = ""
    type: Annotated[str, Meta(description="Normal or Warning.")] = "Normal"
    deprecated_source: Annotated[EventSource, Meta(description="Who reports, in the words of the core group.")] = EventSource()
    deprecated_first_timestamp: Annotated[str, Meta(description="When it first happened, in the words of the core group.")] = ""
    deprecated_last_timestamp: Annotated[str, Meta(description="When it last happened, in the words of the core group.")] = ""
    deprecated_count: Annotated[int, Meta(description="How often it happened, in the words of the core group.")] = 1
