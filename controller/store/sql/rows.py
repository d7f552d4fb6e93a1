"""Rows of the tables, from items and back: the one place that knows the columns of both."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from controller.store.base import Item
from controller.store.broadcaster import Entry
from controller.store.writes import item_of
from rkfleet.meta import Ref, ResourceName

__all__ = ["entry_of", "event_row", "item_from", "object_row", "ref_from"]

_NOTHING: Final[Mapping[Ref, Item]] = MappingProxyType({})


def item_from(row: Any) -> Item:
    """Return the item of a row of `objects` or `events`.

    Raises:
        msgspec.MsgspecError: Its body is not an object with metadata.
    """
    return item_of(ref_from(row), row.uid, row.store_revision, row.body)


def ref_from(row: Any) -> Ref:
    """Return the name of a row of `objects` or `events`; what many names share is in memory once."""
    return Ref(ResourceName(sys.intern(row.resource)), sys.intern(row.namespace), row.name)


def entry_of(row: Any, stored: Mapping[Ref, Item] = _NOTHING) -> Entry:
    """Return the entry of a row of `events`; what was there before it is not in the log.

    Args:
        row: With the columns of the table as attributes.
        stored: What is stored now; an entry about the very state of an object shares its item.

    Raises:
        msgspec.MsgspecError: As `item_from`.
    """
    now = stored.get(ref_from(row))
    same = now is not None and now.resource_version == str(row.store_revision) and now.body == row.body
    return Entry(row.store_revision, row.type, now if now is not None and same else item_from(row), None)


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
