"""What clients of real servers recorded while servers and databases were killed, held against what a store promises.

`make soak-store` records a hundred histories of each database and prints the seed of each; `SEED=n` plays one of them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.support.history.broken import FAULTS
from tests.support.history.checker import check
from tests.support.history.databases import Database, SqliteFile, crashing_postgres
from tests.support.history.plan import Plan, plan_of
from tests.support.history.play import play
from tests.support.history.servers import forks

HISTORIES_OF_A_CAMPAIGN = 10  # Times `--soak`, which is 10.
FIXED_SEEDS = (3, 5)  # Of the normal suite; PostgreSQL, which starts and crashes for a second each, plays the first.
ATTEMPTS = 8  # A list that is read in pages while somebody writes is a matter of luck; it mostly happens in the first half second.


@contextlib.asynccontextmanager
async def sqlite() -> AsyncIterator[Database]:
    yield SqliteFile()


@pytest.fixture
def seeds(soak_factor: int) -> Sequence[int]:
    if os.environ.get("SEED"):
        return [int(os.environ["SEED"])]
    if soak_factor == 1:
        return FIXED_SEEDS
    first = secrets.randbelow(1 << 32)
    return range(first, first + HISTORIES_OF_A_CAMPAIGN * soak_factor)


@pytest.mark.processes
@pytest.mark.parametrize("database", [sqlite, crashing_postgres], ids=["sqlite", "postgres"])
def test_the_store_keeps_its_word_while_everything_is_killed(
    tmp_path: Path, seeds: Sequence[int], database: Callable[[], AbstractAsyncContextManager[Database]]
) -> None:
    """No acknowledged write is lost, nobody sees a phantom, every object is linearizable, and watches are whole."""

    async def campaign() -> None:
        async with database() as used, forks(tmp_path) as started:
            for seed in seeds if seeds != FIXED_SEEDS else seeds[: 3 - used.servers]:
                plan = plan_of(seed, used)
                played = await play(plan, started, used, tmp_path / str(seed))
                print(f"SEED={seed}: {len(plan.deaths)} deaths, {played}", flush=True)
                faults = [*played.faults, *check(played.history)]
                assert not faults, f"SEED={seed}: {len(faults)} faults\n" + "\n".join(faults[:20])

    asyncio.run(campaign())


@pytest.mark.processes
def test_a_store_that_breaks_its_word_is_found(tmp_path: Path) -> None:
    """From outside, through HTTPS, with nobody killed."""

    async def each_fault() -> None:
        plan = Plan(
            seed=1,
            names=("a", "b", "c", "d", "e"),
            clients=5,
            log_events=200,
            padding=0,
            watchers=(("", "steady"), ("", "restless"), ("name=a", "restless")),
            deaths=(),
            rest_seconds=0.25,
            calm_seconds_max=2.0,
        )
        async with forks(tmp_path) as started:
            for number, fault in enumerate(FAULTS):
                found: list[str] = []
                for attempt in range(ATTEMPTS):
                    played = await play(plan, started, SqliteFile(), tmp_path / f"{number}-{attempt}", fault)
                    if found := check(played.history):
                        break
                assert found, f"a store that {fault} went unseen"

    asyncio.run(each_fault())
