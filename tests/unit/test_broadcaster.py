"""The log of recent changes, and how the watches of one change take turns with everything else on the loop."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Literal

import pytest

from controller.store.base import Item, Selection
from controller.store.broadcaster import WAKE_AT_ONCE, Broadcaster, Entry
from controller.store.selecting import Selector
from rkfleet.clock import give_way
from rkfleet.errors import Expired
from rkfleet.kinds import ConfigMap
from rkfleet.meta import Ref

pytestmark = pytest.mark.anyio

MAPS = ConfigMap.resource.name
WATCHES = 1_000


def entry(revision: int, type: Literal["ADDED", "MODIFIED"] = "MODIFIED") -> Entry:
    item = Item(Ref(MAPS, "default", "watched"), "uid", str(revision), {}, b"{}")
    return Entry(revision, type, item, None)


async def test_one_change_for_a_thousand_watches_leaves_turns_to_other_tasks() -> None:
    """All watches see every change in order, and never more of them between two turns of another task than one slice of them."""
    broadcaster = Broadcaster(0, 0, ())
    seen: list[list[str]] = [[] for _ in range(WATCHES)]
    deliveries = 0

    async def follow(number: int) -> None:
        nonlocal deliveries
        async with aclosing(broadcaster.watch(MAPS, Selector(Selection()), 0, bookmarks=False)) as watch:
            async for change in watch:
                seen[number].append(change.resource_version)
                deliveries += 1
                if len(seen[number]) == 3:
                    return

    most = 0
    async with asyncio.TaskGroup() as tasks:
        for number in range(WATCHES):
            tasks.create_task(follow(number))
        await give_way()
        assert broadcaster.watches == WATCHES
        for revisions in ([1], [2, 3]):
            broadcaster.publish([entry(revision) for revision in revisions], revisions[-1])
            while deliveries < WATCHES * revisions[-1]:
                before = deliveries
                await give_way()
                most = max(most, (deliveries - before) // len(revisions))
    assert seen == [["1", "2", "3"]] * WATCHES
    assert 0 < most <= WAKE_AT_ONCE


async def test_a_watch_that_waits_for_its_turn_is_still_told_that_it_fell_behind() -> None:
    """Compaction overtakes watches that were not woken yet; none of them misses a change without an error."""
    broadcaster = Broadcaster(0, 0, ())
    ends: list[str] = []

    async def follow() -> None:
        async with aclosing(broadcaster.watch(MAPS, Selector(Selection()), 0, bookmarks=False)) as watch:
            try:
                async for change in watch:
                    ends.append(change.resource_version)
                    return
            except Expired:
                ends.append("Expired")

    async with asyncio.TaskGroup() as tasks:
        for _ in range(3 * WAKE_AT_ONCE):
            tasks.create_task(follow())
        await give_way()
        broadcaster.publish([entry(1), entry(2)], 2)
        broadcaster.compact(1)
    assert ends == ["Expired"] * (3 * WAKE_AT_ONCE)
    assert broadcaster.watches == 0
