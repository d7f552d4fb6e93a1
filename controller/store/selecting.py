"""Which items a `Selection` chooses: one compiled question, asked of many items.

Reads and watches come from memory as encoded JSON, so a question about fields must not decode every object: a value that is written
in JSON as it stands is searched in the bytes first, and only what contains it is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from controller.store.base import Item, Selection
from controller.store.turn import turn
from rkfleet.meta import LabelSelector, matches

__all__ = ["Selector", "text_at"]

ASKED_AT_ONCE: Final = 1_000  # Items asked before other tasks get their turn: 5 ms by labels, 20 where every object is decoded.

_NAME: Final = ("metadata", "name")
_NAMESPACE: Final = ("metadata", "namespace")
_WRITTEN_AS_IS: Final = re.compile(r"[A-Za-z0-9_./:-]+")  # Characters that JSON never escapes.


class Selector:
    """A selection, ready to be asked.

    Attributes:
        namespace: The one namespace that can match; empty for all.
        name: The one name that can match; empty for all.
        fixed: Whether the answer for an object can never change while it lives, because only its name and namespace are asked for.
    """

    def __init__(self, selection: Selection) -> None:
        self._labels: Final = selection.labels if selection.labels != LabelSelector() else None
        self._fields: Final = [term for term in selection.fields if term[0] not in (_NAME, _NAMESPACE)]
        self._names: Final = [term for term in selection.fields if term[0] in (_NAME, _NAMESPACE)]
        self._needles: Final = [value.encode() for _, value, equal in self._fields if equal and _WRITTEN_AS_IS.fullmatch(value)]
        self.namespace: Final = selection.namespace
        self.name: Final = next((value for path, value, equal in self._names if path == _NAME and equal), "")
        self.fixed: Final = self._labels is None and not self._fields

    @property
    def everything(self) -> bool:
        """Whether every item of the namespace matches."""
        return self.fixed and not self._names

    def equals(self, path: tuple[str, ...]) -> str | None:
        """Return the one value that the field at `path` must have, or None if any may do."""
        return next((value for asked, value, equal in self._fields if asked == path and equal), None)

    def selects(self, item: Item) -> bool:
        """Return whether the item is chosen."""
        ref = item.ref
        if self.namespace and ref.namespace != self.namespace:
            return False
        for path, value, equal in self._names:
            if ((ref.name if path == _NAME else ref.namespace) == value) != equal:
                return False
        if self._labels is not None and not matches(self._labels, item.labels):
            return False
        if not self._fields:
            return True
        if any(needle not in item.body for needle in self._needles):
            return False
        obj = msgspec.json.decode(item.body)
        return all((text_at(obj, path) == value) == equal for path, value, equal in self._fields)

    async def choose(self, items: Sequence[Item], limit: int) -> tuple[Sequence[Item], int | None]:
        """Return the chosen items, at most `limit` (0: all), and how many follow: 0 if none do, None if only looking would tell.

        `items` must not change meanwhile; other tasks get their turn.
        """
        if self.everything:
            found = items[:limit] if limit else items
            return found, len(items) - len(found)
        chosen: list[Item] = []
        for number, item in enumerate(items, start=1):
            if self.selects(item):
                if limit and len(chosen) == limit:
                    return chosen, None
                chosen.append(item)
            if number % ASKED_AT_ONCE == 0:
                await turn()
        return chosen, 0


def text_at(obj: Any, path: tuple[str, ...]) -> str:
    """Return the scalar at `path` as a field selector writes it; what is absent or no scalar is the empty string."""
    for part in path:
        obj = obj.get(part) if isinstance(obj, dict) else None
    match obj:
        case bool():
            return "true" if obj else "false"
        case str():
            return obj
        case int() | float():
            return str(obj)
        case _:
            return ""
