"""Stored items in the form that a client asked for: objects, tables, or metadata only; single, as a list, or as a line of a watch.

In: items of the store. Out: encoded JSON. Objects are never decoded here: lists join stored bytes, a watch line wraps them. Tables and
metadata cost a decode per item. Lists are made in slices, with other requests served in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from controller.api import table
from controller.api.negotiation import Form
from controller.store.base import Change, Item, Page
from rkfleet.clock import Clock, give_way
from rkfleet.kinds.base import Object

__all__ = ["View"]

Json = dict[str, Any]

SLICE_ITEMS: Final = 50  # Rows made without a pause: about 2 ms.

_PARTIAL: Final = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}


class _Metadata(msgspec.Struct):
    """The part of an object that metadata views carry, still encoded."""

    metadata: msgspec.Raw


class View(msgspec.Struct, frozen=True):
    """One form of one kind.

    Attributes:
        kind: Kind of the items.
        form: What each becomes.
        include_object: For tables: None, Metadata or Object in each row.
        clock: Tells the age column the time.
    """

    kind: type[Object]
    form: Form
    include_object: str
    clock: Clock

    def item(self, item: Item) -> bytes:
        """Return one item by itself."""
        match self.form:
            case "object":
                return item.body
            case "metadata":
                return _partial(item)
            case "table":
                return msgspec.json.encode(self._table([item], {"resourceVersion": item.resource_version}))

    async def page(self, page: Page) -> list[bytes]:
        """Return a list, in pieces."""
        metadata: Json = {"resourceVersion": page.resource_version}
        if page.continue_token:
            metadata["continue"] = page.continue_token
            if page.remaining is not None:
                metadata["remainingItemCount"] = page.remaining
        match self.form:
            case "object":
                head = {"kind": f"{self.kind.resource.kind}List", "apiVersion": self.kind.resource.api_version, "metadata": metadata}
                return await _pieces(head, "items", page.items, _bodies)
            case "metadata":
                head = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
                return await _pieces(head, "items", page.items, _partials)
            case "table":
                head = self._table((), metadata)
                del head["rows"]
                return await _pieces(head, "rows", page.items, self._rows)

    def change(self, change: Change, *, first: bool) -> bytes:
        """Return one line of a watch; in a watch of tables only the first line names the columns."""
        assert change.item is not None
        if self.form == "table":
            made = self._table([change.item], {"resourceVersion": change.resource_version})
            body = msgspec.json.encode(made if first else {**made, "columnDefinitions": None})
        else:
            body = self.item(change.item)
        return b"".join((b'{"type":"', change.type.encode(), b'","object":', body, b"}\n"))

    def bookmark(self, resource_version: str, *, initial_events_end: bool = False) -> bytes:
        """Return the line that says where a watch stands."""
        metadata: Json = {"resourceVersion": resource_version, "creationTimestamp": None}
        if initial_events_end:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        if self.form == "table":
            row = {"cells": [], "object": {**_PARTIAL, "metadata": metadata}}
            obj: Json = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": None, "rows": [row]}
        elif self.form == "metadata":
            obj = {**_PARTIAL, "metadata": metadata}
        else:
            resource = self.kind.resource
            obj = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
        return msgspec.json.encode({"type": "BOOKMARK", "object": obj}) + b"\n"

    def _table(self, items: Sequence[Item], metadata: Json) -> Json:
        made = table.table(self.kind, items, self.clock.now(), self.include_object)
        return {**made, "metadata": metadata}

    def _rows(self, items: Sequence[Item]) -> bytes:
        """Return encoded rows without the brackets around them."""
        return msgspec.json.encode(self._table(items, {})["rows"])[1:-1]


async def _pieces(head: Json, field: str, items: Sequence[Item], encoded: Callable[[Sequence[Item]], bytes]) -> list[bytes]:
    """Return the JSON object `head` with one more field, the list of all items as `encoded` makes them; other tasks run in between."""
    pieces = [b"".join((msgspec.json.encode(head)[:-1], b',"', field.encode(), b'":['))]
    for start in range(0, len(items), SLICE_ITEMS):
        piece = encoded(items[start : start + SLICE_ITEMS])
        pieces.append(b"," + piece if start else piece)
        await give_way()
    return [*pieces, b"]}"]


def _bodies(items: Sequence[Item]) -> bytes:
    return b",".join([item.body for item in items])


def _partials(items: Sequence[Item]) -> bytes:
    return b",".join(map(_partial, items))


def _partial(item: Item) -> bytes:
    metadata = msgspec.json.decode(item.body, type=_Metadata).metadata
    return msgspec.json.encode({**_PARTIAL, "metadata": metadata})
