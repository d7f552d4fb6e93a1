"""What is stored now, in memory: items by name, in the order of namespace and name, now and at the moment of a page.

The store puts every committed item here, in commit order and before it acknowledges the write, so that reads see what was acknowledged.
One event loop uses it; nothing here waits. A page of an older moment is made from what is stored now and from what was there before
each change since.

A question for one name looks it up, and a question for one value of an indexed field (`INDEXED_FIELDS`) looks at the items that have it:
the assignments of five thousand boards are each planned from the few Replicas of one board, not from all.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from controller.store.base import Item
from controller.store.selecting import Selector, text_at
from rkfleet.kinds.replica import Replica
from rkfleet.meta import Ref, ResourceName

__all__ = ["Catalog", "Key"]

Key = tuple[str, str]
"""Namespace and name."""


class _Placed(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    board_name: str = ""


class _Indexed(msgspec.Struct, frozen=True, gc=False):
    spec: _Placed = _Placed()


_BOARD: Final = ("spec", "boardName")


def _board_of(item: Item) -> str:
    try:
        return msgspec.json.decode(item.body, type=_Indexed).spec.board_name
    except msgspec.ValidationError:  # Validation is not the store's business: what is no text is asked for as selections write it.
        return text_at(msgspec.json.decode(item.body), _BOARD)


INDEXED_FIELDS: Final[Mapping[ResourceName, tuple[tuple[str, ...], Callable[[Item], str]]]] = {Replica.resource.name: (_BOARD, _board_of)}
"""Per resource one field and how it is read; more of them would cost each write more than they save."""


class _Shelf:
    """The items of one resource."""

    __slots__ = ("_by_value", "_read", "_values", "indexed", "items", "keys")

    def __init__(self, resource: ResourceName) -> None:
        self.items: Final[dict[Key, Item]] = {}
        self.keys: Final[list[Key]] = []  # Sorted; an insertion moves 8 bytes for each later key: microseconds at 100,000 objects.
        indexed = INDEXED_FIELDS.get(resource)
        self.indexed: Final = indexed[0] if indexed else ()
        self._read: Final = indexed[1] if indexed else None
        self._values: Final[dict[Key, str]] = {}
        self._by_value: Final[dict[str, set[Key]]] = {}

    def with_value(self, value: str) -> list[Key]:
        """Return the keys of the items that have this value in the indexed field, in order."""
        return sorted(self._by_value.get(value, ()))

    def index(self, key: Key, item: Item | None) -> None:
        """Note the value of an item, or forget it."""
        if self._read is None:
            return
        before, after = self._values.get(key), None if item is None else self._read(item)
        if before == after:
            return
        if before is not None:
            self._by_value[before].discard(key)
            if not self._by_value[before]:
                del self._by_value[before]
        if after is None:
            del self._values[key]
        else:
            self._values[key] = after
            self._by_value.setdefault(after, set()).add(key)


class Catalog:
    """All items, by resource."""

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._shelves: Final[dict[ResourceName, _Shelf]] = {}
        for item in items:
            shelf, key = self._shelf(item.ref.resource), (item.ref.namespace, item.ref.name)
            shelf.items[key] = item
            shelf.index(key, item)
        for shelf in self._shelves.values():
            shelf.keys.extend(sorted(shelf.items))

    def find(self, ref: Ref) -> Item | None:
        """Return the item of this name, or None."""
        shelf = self._shelves.get(ref.resource)
        return None if shelf is None else shelf.items.get((ref.namespace, ref.name))

    def put(self, item: Item) -> None:
        """Add or replace an item."""
        shelf = self._shelf(item.ref.resource)
        key = (item.ref.namespace, item.ref.name)
        if key not in shelf.items:
            bisect.insort(shelf.keys, key)
        shelf.items[key] = item
        shelf.index(key, item)

    def remove(self, ref: Ref) -> None:
        """Take the item of this name away, if it is there."""
        shelf = self._shelves.get(ref.resource)
        key = (ref.namespace, ref.name)
        if shelf is not None and shelf.items.pop(key, None) is not None:
            del shelf.keys[bisect.bisect_left(shelf.keys, key)]
            shelf.index(key, None)

    def _shelf(self, resource: ResourceName) -> _Shelf:
        shelf = self._shelves.get(resource)
        if shelf is None:
            shelf = self._shelves[resource] = _Shelf(resource)
        return shelf

    def candidates(
        self, resource: ResourceName, selector: Selector, after: Key | None, before: Mapping[Key, Item | None]
    ) -> Sequence[Item]:
        """Return the items behind `after` whose names the selector allows, in order; what they hold is still to be asked.

        Args:
            resource: Which kind.
            selector: Which names.
            after: Last key of the page before; None for the first page.
            before: What was there instead, at the moment that the pages show, under keys that changed since; None for nothing.
        """
        shelf = self._shelf(resource)
        value = selector.equals(shelf.indexed) if shelf.indexed else None
        keys = _between(shelf.keys if value is None else shelf.with_value(value), selector.namespace, after)
        if selector.name and (selector.namespace or (keys and not keys[0][0])):  # Without namespaces every key has an empty one.
            keys = _of_one(keys, (selector.namespace, selector.name))
        if before:
            old = [key for key, item in before.items() if item and (after is None or key > after) and selector.namespace in ("", key[0])]
            keys = sorted({key for key in keys if key not in before}.union(old))
        if selector.name:
            keys = [key for key in keys if key[1] == selector.name]
        return [before.get(key) or shelf.items[key] for key in keys]


def _of_one(keys: list[Key], key: Key) -> list[Key]:
    at = bisect.bisect_left(keys, key)
    return [key] if keys[at : at + 1] == [key] else []


def _between(keys: list[Key], namespace: str, after: Key | None) -> list[Key]:
    start = 0 if after is None else bisect.bisect_right(keys, after)
    if not namespace:
        return keys[start:] if start else keys
    first = bisect.bisect_left(keys, (namespace, ""))
    last = bisect.bisect_left(keys, (namespace + "\0", ""))
    return keys[max(start, first) : last]
