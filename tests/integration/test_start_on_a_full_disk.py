"""A controller whose disk is full can be started again: nothing that it does at the start needs room."""

from __future__ import annotations

import asyncio
from pathlib import Path

from controller.api.namespaces import ensure_namespace
from controller.store.sql.store import SqlStore
from rkfleet.clock import SystemClock
from rkfleet.kinds import KINDS
from rkfleet.metrics import Metrics
from tests.support.faulty_store import FaultyStore


def test_the_default_namespace_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    """The store refuses every write while its disk is full, also one that would only find that the name is taken."""

    async def start_twice() -> int:
        async with SqlStore.open(tmp_path / "store.db", KINDS, metrics=Metrics("controller")) as real:
            store = FaultyStore(real)
            await ensure_namespace(store, "default", clock=SystemClock(), ids=lambda: "uid-1")  # type: ignore[arg-type]
            store.fails = lambda _method, _ref: True
            await ensure_namespace(store, "default", clock=SystemClock(), ids=lambda: "uid-2")  # type: ignore[arg-type]
            return store.refused

    assert asyncio.run(start_twice()) == 0
