"""Equal values kept once: what the objects of a fleet have in common is in memory one time, not ten thousand times.

In: values that were just decoded and that nobody else holds. Out: equal values, whose equal parts are the same Python objects. Thousands of
Boards name the same runtimes, versions and capacities, thousands of Replicas the same revision, owner and reasons; as text each has its
own copy, and decoded values are mostly such text. Caches use it, and the store for labels.

What is remembered is bounded, in two generations: a value that keeps coming stays, one that came once is forgotten.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final, TypeVar

import msgspec

__all__ = ["Sharing"]

REMEMBERED_MAX: Final = 4_096  # Of each generation: a megabyte at most, and more different values than a fleet has in common.

T = TypeVar("T")


class Sharing:
    """Remembers values; one for each kind, or each reading of a database."""

    def __init__(self, remembered_max: int = REMEMBERED_MAX) -> None:
        self._remembered_max: Final = remembered_max
        self._young: dict[Hashable, Any] = {}
        self._old: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def labels(self, labels: dict[str, str]) -> dict[str, str]:
        """Return an equal dictionary; it must not be changed by anybody."""
        return self._one(tuple(labels.items()), labels) if labels else labels

    def value(self, value: T) -> T:
        """Return an equal value made of shared parts; a struct is changed in place, into itself, and must be fresh.

        Texts, structs, and tuples of both are shared; whatever else is inside is left as it is.
        """
        shared: T = self._shared(value)
        return shared

    def _shared(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._one(value, value)
        if isinstance(value, msgspec.Struct):
            for field in value.__struct_fields__:
                part = getattr(value, field)
                if (shared := self._shared(part)) is not part:
                    msgspec.structs.force_setattr(value, field, shared)
        elif isinstance(value, tuple):
            value = tuple([self._shared(part) for part in value])
        else:
            return value
        try:
            return self._one(value, value)
        except TypeError:  # A dictionary is inside.
            return value

    def _one(self, key: Hashable, value: Any) -> Any:
        found = self._young.get(key)
        if found is None:
            found = self._old.get(key, value)
            if len(self._young) >= self._remembered_max:
                self._old, self._young = self._young, {}
            self._young[key] = found
        return found
