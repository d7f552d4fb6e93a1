"""The manager: caches wake keys, keys reach reconcilers, failures wait."""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path

import pytest

from controller.machinery.cache import Cache
from controller.machinery.manager import Manager
from controller.machinery.reconciler import Source, itself
from controller.store.sql.store import SqlStore
from rkfleet import metric_names
from rkfleet.clock import SystemClock
from rkfleet.errors import Conflict, Invalid
from rkfleet.kinds import KINDS, Model
from rkfleet.meta import Ref
from rkfleet.metrics import Metrics
from tests.support.stores import model, model_ref


class Recording:
    """Notes every call; `outcomes` says how the next calls of a name end."""

    def __init__(self, cache: Cache[Model]) -> None:
        self.cache = cache
        self.calls: list[str] = []
        self.outcomes: dict[str, list[Exception | float]] = {}
        self.at_once = 0
        self.at_once_most = 0

    async def reconcile(self, key: Ref) -> float | None:
        assert self.cache.synced, "a reconciler runs only with caches that are filled"
        self.at_once += 1
        self.at_once_most = max(self.at_once, self.at_once_most)
        await SystemClock().sleep(0)
        self.at_once -= 1
        self.calls.append(key.name)
        outcome = next(iter(self.outcomes.get(key.name, [])), None)
        if outcome is not None:
            self.outcomes[key.name].pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def called(self, name: str, times: int) -> None:
        async with asyncio.timeout(10):
            while self.calls.count(name) < times:
                await SystemClock().sleep(0.001)


def test_every_object_is_reconciled_and_what_fails_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        metrics = Metrics("controller")
        async with SqlStore.open(tmp_path / "store.db", KINDS) as store:
            await store.create(model_ref("a"), model("a"))
            cache = Cache(store, Model, clock=SystemClock(), random=random.Random(1))
            manager = Manager(clock=SystemClock(), random=random.Random(1), metrics=metrics)
            loop = Recording(cache)
            loop.outcomes = {
                "conflict": [Conflict("lost a race")],
                "invalid": [Invalid("cannot be")],
                "broken": [RuntimeError("our mistake")],
                "later": [0.001],
            }
            queue = manager.add("models", loop, Source(cache, itself), workers=2)
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(manager.run())
                await loop.called("a", 1)
                for name in loop.outcomes:
                    await store.create(model_ref(name), model(name))
                    await loop.called(name, 2)
                queue.add(model_ref("poked"))
                await loop.called("poked", 1)
                async with asyncio.timeout(10):
                    while not manager.idle:
                        await SystemClock().sleep(0)
                assert manager.synced
                running.cancel()
        assert loop.at_once_most <= 2
        assert sorted(loop.calls) == sorted(["a", "poked", *(2 * list(loop.outcomes))])
        text = metrics.text().decode()
        for result, count in (("done", 6), ("retry", 1), ("error", 2), ("later", 1)):
            assert f'{metric_names.RECONCILES.name}{{loop="models",result="{result}"}} {float(count)}' in text

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    messages = [record.getMessage() for record in caplog.records]
    assert sum("cannot be" in message for message in messages) == 1
    assert sum("broken: internal error" in message for message in messages) == 1
    assert not any("lost a race" in message for message in messages), "a lost race is normal"
