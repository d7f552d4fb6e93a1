"""The store as caches and gateways see it: reads and writes as they are, watches late.

Each watch has its own random source and its own lag, so what one kind tells may come long after what happened later in another kind. In
one kind the order stays, as a watch promises.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec

from controller.store.base import Change, Selection, Watch
from controller.store.sql.store import SqlStore
from rkfleet.errors import Expired
from rkfleet.kinds import ConfigMap, Lease, Secret
from rkfleet.meta import ResourceName
from tests.support.scenario.files import settle
from tests.support.scenario.virtual import VirtualLoop

REST_SECONDS = 0.02  # After a stall everything that came meanwhile is told, so that no watch is later than the longest stall.

UNLAGGED = frozenset(kind.resource.name for kind in (Secret, ConfigMap, Lease))
"""What no scenario makes and no promise is about: following it draws no chance, so that histories stay as they are."""


class Lag(msgspec.Struct):
    """How late watches are.

    Attributes:
        chance_of_stall: Share of deliveries after which a watch stands still.
        seconds: The shortest and the longest such stall.
        chance_of_expiry: Share of stalls that end with Expired, so that everything is listed again.
        limit_so_far: What no stall was longer than, since the start: a stall goes on when shorter ones are set.
    """

    chance_of_stall: float = 0.3
    seconds: tuple[float, float] = (0.0, 0.05)
    chance_of_expiry: float = 0.0
    limit_so_far: float = 0.0


class LaggedStore:
    """Hands everything to the real store; its watches lag."""

    def __init__(self, real: SqlStore, loop: VirtualLoop, seed: str, lag: Lag) -> None:
        self._real = real
        self._loop = loop
        self._seed = seed
        self._lag = lag
        self._watches = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def watch(
        self, resource: ResourceName, selection: Selection = Selection(), *, resource_version: str, bookmarks: bool = False
    ) -> Watch:
        watch = await self._real.watch(resource, selection, resource_version=resource_version, bookmarks=bookmarks)
        if resource in UNLAGGED:
            return watch
        self._watches += 1
        return _LaggedWatch(watch, self._loop, random.Random(f"{self._seed} {resource} {self._watches}"), self._lag)


class _LaggedWatch:
    def __init__(self, real: Watch, loop: VirtualLoop, chance: random.Random, lag: Lag) -> None:
        self._real = real
        self._changes = aiter(real)
        self._loop = loop
        self._chance = chance
        self._lag = lag
        self._open_at = loop.time()
        self._expires = False

    def __aiter__(self) -> _LaggedWatch:
        return self

    async def __anext__(self) -> Change:
        change = await anext(self._changes)
        if (wait := self._open_at - self._loop.time()) > 0:
            await settle(wait)
            if self._expires:
                raise Expired("the watch fell behind; list again")
        if self._loop.time() - self._open_at > REST_SECONDS and self._chance.random() < self._lag.chance_of_stall:
            # Most stalls are short, whatever the longest may be.
            low, high = self._lag.seconds
            self._lag.limit_so_far = max(self._lag.limit_so_far, high)
            self._open_at = self._loop.time() + low + (high - low) * self._chance.random() ** 3
            self._expires = self._chance.random() < self._lag.chance_of_expiry
        return change

    async def aclose(self) -> None:
        await self._real.aclose()
