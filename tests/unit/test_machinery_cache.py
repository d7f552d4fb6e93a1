"""Caches over a real store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from controller.machinery.cache import Cache
from controller.store.base import Page, Selection, Store, Watch
from controller.store.sql.store import SqlStore
from rkfleet import metric_names
from rkfleet.clock import SystemClock
from rkfleet.errors import Unavailable
from rkfleet.kinds import KINDS, Model
from rkfleet.meta import ResourceName
from rkfleet.metrics import Metrics
from tests.support.stores import NOW, model, model_ref


class Gate:
    """A store around a real one, whose reads fail while it is shut and whose watches count."""

    def __init__(self, store: SqlStore) -> None:
        self.store = store
        self.shut = False
        self.lists = 0
        self.watches: list[Watch] = []

    async def list(self, resource: ResourceName, selection: Selection = Selection(), *, limit: int = 0, continue_token: str = "") -> Page:
        self._pass()
        self.lists += 1
        return await self.store.list(resource, selection, limit=limit, continue_token=continue_token)

    async def watch(self, resource: ResourceName, selection: Selection = Selection(), **options: Any) -> Watch:
        self._pass()
        self.watches.append(await self.store.watch(resource, selection, **options))
        return self.watches[-1]

    def _pass(self) -> None:
        if self.shut:
            raise Unavailable("the store is away")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


async def until(holds: Callable[[], bool]) -> None:
    """Wait on a level."""
    clock = SystemClock()
    async with asyncio.timeout(10):
        while not holds():
            await clock.sleep(0.001)


@asynccontextmanager
async def running(path: Path, **options: Any) -> AsyncIterator[tuple[Gate, Cache[Model], Metrics]]:
    metrics = Metrics("controller")
    async with SqlStore.open(path / "store.db", KINDS, **options) as sql:
        gate = Gate(sql)
        store: Store = gate
        indexes = {"family": lambda found: (found.spec.family,), "label": lambda found: found.metadata.labels.values()}
        cache = Cache(store, Model, clock=SystemClock(), random=random.Random(1), indexes=indexes, metrics=metrics)
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(cache.run())
            yield gate, cache, metrics
            following.cancel()


def check(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def names(cache: Cache[Model]) -> set[str]:
    return {found.metadata.name for found in cache.snapshot()}


def test_a_cache_knows_what_was_there_and_follows_what_comes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (store, cache, _):
            await store.create(model_ref("a"), model("a"))
            await cache.wait_synced()
            await until(lambda: names(cache) == {"a"})
            await store.create(model_ref("b"), model("b"))
            await until(lambda: names(cache) == {"a", "b"})
            await store.delete(model_ref("a"), now=NOW)
            await until(lambda: names(cache) == {"b"})
            assert cache.synced
            assert cache.snapshot().find("b", "default") is not None
            assert cache.snapshot().find("b") is None
            assert cache.snapshot().find_ref(model_ref("a")) is None

    check(scenario)


def test_a_snapshot_never_changes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (store, cache, _):
            await store.create(model_ref("a"), model("a"))
            await until(lambda: names(cache) == {"a"})
            before = cache.snapshot()
            assert before is cache.snapshot()
            await store.create(model_ref("b"), model("b"))
            await store.delete(model_ref("a"), now=NOW)
            await until(lambda: names(cache) == {"b"})
            assert [found.metadata.name for found in before] == ["a"]
            assert [found.metadata.name for found in before.by("family", "qwen2")] == ["a"]
            assert len(before) == 1

    check(scenario)


def test_an_index_follows_its_objects(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (store, cache, _):

            def by(index: str, value: str) -> set[str]:
                return {found.metadata.name for found in cache.snapshot().by(index, value)}

            await store.create(model_ref("a"), model("a", labels={"x": "one", "y": "two"}))
            await store.create(model_ref("b"), model("b", labels={"x": "one"}))
            await until(lambda: len(cache.snapshot()) == 2)
            assert (by("label", "one"), by("label", "two"), by("label", "three")) == ({"a", "b"}, {"a"}, set())
            await store.update(model_ref("a"), model("a", family="llama", labels={"x": "three"}), now=NOW)
            await until(lambda: by("family", "llama") == {"a"})
            assert (by("family", "qwen2"), by("label", "one"), by("label", "two"), by("label", "three")) == ({"b"}, {"b"}, set(), {"a"})
            with pytest.raises(KeyError):
                cache.snapshot().by("absent", "x")

    check(scenario)


def test_subscribers_are_told_states_before_and_after(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (store, cache, _):
            told: list[tuple[str | None, str | None]] = []
            late: list[str] = []
            cache.subscribe(lambda old, new: told.append((old.spec.family if old else None, new.spec.family if new else None)))
            await store.create(model_ref("a"), model("a"))
            await store.update(model_ref("a"), model("a", family="llama"), now=NOW)
            await until(lambda: len(told) == 2)
            cache.subscribe(lambda old, new: late.append(new.metadata.name if new else "gone"))
            await store.delete(model_ref("a"), now=NOW)
            await until(lambda: len(told) == 3)
            assert told == [(None, "qwen2"), ("qwen2", "llama"), ("llama", None)]
            assert late == ["a", "gone"]

    check(scenario)


def test_a_cache_that_fell_behind_lists_again_and_tells_the_difference(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, log_events_max=10) as (store, cache, metrics):
            for name in ("stays", "changes", "goes"):
                await store.create(model_ref(name), model(name))
            await until(lambda: len(cache.snapshot()) == 3)
            told: list[tuple[str | None, str | None]] = []
            cache.subscribe(lambda old, new: told.append((old.metadata.name if old else None, new.metadata.name if new else None)))
            told.clear()
            store.shut = True
            await store.watches[-1].aclose()
            await store.delete(model_ref("goes"), now=NOW)
            await store.update(model_ref("changes"), model("changes", family="llama"), now=NOW)
            for n in range(40):
                await store.create(model_ref(f"m{n}"), model(f"m{n}"))
            store.shut = False
            await until(lambda: len(cache.snapshot()) == 42)
            assert {("goes", None), ("changes", "changes"), (None, "m0")} <= set(told)
            assert ("stays", "stays") not in told
            assert len(told) == 42
            assert store.lists == 2
            assert f'{metric_names.CACHE_RELISTS.name}{{resource="models.rkfleet.dev"}} 1.0' in metrics.text().decode()

    check(scenario)


def test_a_watch_that_broke_is_resumed_without_a_list(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (store, cache, _):
            await store.create(model_ref("a"), model("a"))
            await until(lambda: names(cache) == {"a"})
            store.shut = True
            await store.watches[-1].aclose()
            await store.create(model_ref("b"), model("b"))
            store.shut = False
            await until(lambda: names(cache) == {"a", "b"})
            assert store.lists == 1

    check(scenario)


def test_an_object_that_this_release_cannot_read_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (store, cache, _):
            told: list[object] = []
            await store.create(model_ref("listed"), model("listed", spec={"family": "from another time"}))
            await store.create(model_ref("turns"), model("turns"))
            cache.subscribe(lambda old, new: told.append((old, new)))
            await store.create(model_ref("watched"), model("watched", spec={"family": "from another time"}))
            await until(lambda: names(cache) == {"turns"})
            await store.update(model_ref("turns"), model("turns", spec={"family": "from another time"}), now=NOW)
            await store.create(model_ref("good"), model("good"))
            await until(lambda: names(cache) == {"good"})
            assert (None, None) not in told

    check(scenario)
    assert any("default/listed is left out" in record.getMessage() for record in caplog.records)
