"""Rows of the tables, from items and back: the one place that knows the columns of both."""

from __future__ import annotations

from typing import Any

from controller.store.base import Item
from controller.store.broadcaster import Entry
from controller.store.writes import item_of
from rkfleet.meta import Ref, ResourceName

__all__ = ["entry_of", "event_row", "item_from", "object_row"]


def item_from(row: Any) -> Item:
    """Return the item of a row of `objects` or `events`.

    Raises:
        msgspec.MsgspecError: Its body is not an object with metadata.
    """
    return item_of(Ref(ResourceName(row.resource), row.namespace, row.name), row.uid, row.store_revision, row.body)


def entry_of(row: Any) -> Entry:
    """Return the entry of a row of `events`; what was there before it is not in the log.

    Raises:
        msgspec.MsgspecError: As `item_from`.
    """
    return Entry(row.store_revision, row.type, item_from(row), None)


def object_row(item: Item) -> dict[str, Any]:
    """Return the row of `objects`."""
    ref = item.ref
    return {
        "resource": ref.resource,
        "namespace": ref.namespace,
        "name": ref.name,
        "uid": item.uid,
        "store_revision": int(item.resource_version),
        "body": item.body,
    }


def event_row(entry: Entry) -> dict[str, Any]:
    """Return the row of `events`."""
    return {**object_row(entry.item), "type": entry.type}
