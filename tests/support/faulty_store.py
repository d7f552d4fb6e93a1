"""The real store with faults that a test switches on: a disk that is full for the writes it chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from controller.store.base import Item
from controller.store.sql.store import SqlStore
from rkfleet.errors import Unavailable
from rkfleet.meta import Ref

WRITES = frozenset(("create", "update", "patch", "patch_status", "delete"))


class FaultyStore:
    """Hands everything to the real store, except writes for which `fails(method, ref)` holds: those raise Unavailable.

    Attributes:
        refused: How many writes were refused.
        written: Methods and names of the writes that went through.
    """

    def __init__(self, real: SqlStore) -> None:
        self._real = real
        self.fails: Callable[[str, Ref], bool] = lambda method, ref: False
        self.refused = 0
        self.written: list[tuple[str, Ref]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name not in WRITES:
            return found

        async def write(ref: Ref, *args: Any, **keywords: Any) -> Item:
            if self.fails(name, ref):
                self.refused += 1
                raise Unavailable("database or disk is full")
            item: Item = await found(ref, *args, **keywords)
            self.written.append((name, ref))
            return item

        return write
