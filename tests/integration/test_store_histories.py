"""What clients of real servers recorded while servers and databases were killed, held against what a store promises.

`make soak-store` records a hundred histories of each database and prints the seed of each; `SEED=n` plays one of them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
import pytest

from tests.support.history.broken import FAULTS, FORGETFUL
from tests.support.history.checker import check
from tests.support.history.clients import Client
from tests.support.history.databases import Database, SqliteFile, crashing_postgres
from tests.support.history.plan import Plan, plan_of
from tests.support.history.play import CLOCK, play
from tests.support.history.recorder import Recorder
from tests.support.history.servers import Forks, Server, forks
from tests.support.history.wire import Wire
from tests.support.postgres import postgres_url

HISTORIES_OF_A_CAMPAIGN = 10  # Times `--soak`, which is 10.
FIXED_SEEDS = (3,)  # Of the normal suite: two kills and a stop of SQLite, two kills and a crash of PostgreSQL.
ATTEMPTS = 30  # A list that is read in pages while somebody writes is a matter of luck; mostly the first history has one.

CALM = Plan(
    seed=1,
    names=("a", "b", "c", "d", "e"),
    clients=5,
    log_events=200,
    padding=0,
    watchers=(("", "steady"), ("", "restless"), ("name=a", "restless")),
    deaths=(),
    rest_seconds=0.0,
    operations_min=120,
    calm_seconds_max=2.0,
)


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
            for seed in seeds:
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
        async with forks(tmp_path) as started:
            for number, fault in enumerate(FAULTS):
                assert await found(fault, started, SqliteFile(), tmp_path / str(number)), f"a store that {fault} went unseen"

    asyncio.run(each_fault())


@pytest.mark.processes
@pytest.mark.parametrize("fault", ["", FORGETFUL])
def test_a_controller_that_does_not_ask_what_others_wrote_is_found(tmp_path: Path, fault: str) -> None:
    """Of two servers, one writes and then the other is asked."""

    async def scenario() -> None:
        recorder = Recorder(CLOCK.monotonic)
        async with forks(tmp_path) as started, contextlib.AsyncExitStack() as stack:
            place, clients = postgres_url(), []
            for name in ("writer", "reader"):
                server = Server(started, tmp_path / name, place, CALM.log_events, fault)
                assert not await server.start()
                wire = Wire(server.endpoint())
                stack.push_async_callback(wire.aclose)
                clients.append(Client(name, [wire], recorder, chance=random.Random(1), names=CALM.names, padding=0, clock=CLOCK))
            writer, reader = clients
            await reader.list("", 0)
            for name in CALM.names:
                await writer.create(name, recorder.value())
                await reader.get(name)
        faults = check(recorder.history(base=recorder.operations[0].pages[0]))
        assert [one.partition(":")[0] for one in faults] == (["stale"] * len(CALM.names) if fault else [])

    asyncio.run(scenario())


async def found(fault: str, started: Forks, database: Database, directory: Path) -> list[str]:
    """Let clients work on servers with a fault until the checker sees it; return what it says."""
    for attempt in range(ATTEMPTS):
        played = await play(msgspec.structs.replace(CALM, seed=attempt), started, database, directory / str(attempt), fault)
        if faults := check(played.history):
            return faults
    return []
