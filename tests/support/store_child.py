"""Stores in processes of their own, which tests kill, starve of disk or trace.

`python -m tests.support.store_child MODE …` prints one JSON line for each thing that happened, each in one write:

- `forks`: reads `[path, seed]` lines; for each it forks a child that writes to the store until it is killed.
- `tmpfs DIRECTORY` and `limit DIRECTORY`: fills a file system of 1 MiB, or up to a file size limit, frees it, and goes on.
- `acks PATH COUNT`: writes one object after the other, trying again where the store is in trouble.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from controller.store.sql.store import SqlStore
from rkfleet.clock import SystemClock
from rkfleet.errors import Unavailable
from rkfleet.kinds import KINDS
from tests.support.stores import MODELS, NOW, model, model_ref

LOG_EVENTS = 60  # Small, so that compaction is among what is killed.
WRITERS = 6


def say(*facts: Any) -> None:
    os.write(1, msgspec.json.encode(facts) + b"\n")


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqlStore]:
    async with SqlStore.open(path, KINDS, log_events_max=LOG_EVENTS) as store:
        yield store


async def write_until_killed(path: Path, seed: int) -> None:
    """Say what is tried before each write and what was acknowledged after it; names belong to one writer each."""
    chance = random.Random(seed)
    async with opened(path) as store, asyncio.TaskGroup() as tasks:
        for writer in range(WRITERS):
            tasks.create_task(write_forever(store, writer, random.Random(chance.random())))


async def write_forever(store: SqlStore, writer: int, chance: random.Random) -> None:
    known = {item.ref.name for item in (await store.list(MODELS)).items}
    for number in range(1_000_000):
        ref = model_ref(f"w{writer}-{chance.randrange(5)}")
        if ref.name not in known:
            value: int | None = number
            say("try", ref.name, value)
            item = await store.create(ref, model(ref.name, spec={"n": number, "pad": "x" * 300}))
            known.add(ref.name)
        elif chance.random() < 0.7:
            value = number
            say("try", ref.name, value)
            item = await store.patch(ref, {"spec": {"n": number, "at": chance.random()}}, now=NOW)
        else:
            value = None
            say("try", ref.name, value)
            item = await store.delete(ref, now=NOW)
            known.discard(ref.name)
        say("ack", ref.name, value, int(item.resource_version))


def forks() -> None:
    for line in sys.stdin.buffer:
        path, seed = msgspec.json.decode(line)
        child = os.fork()
        if child == 0:
            say("pid", os.getpid())
            asyncio.run(write_until_killed(Path(path), seed))
            os._exit(0)
        os.waitpid(child, 0)
        say("dead")


async def fill_and_free(path: Path, fill: Callable[[], None], free: Callable[[], None]) -> None:
    """Write until the disk refuses, look around, free it, wait until the store noticed, write again, and read all back."""
    clock = SystemClock()
    acknowledged: list[str] = []
    async with opened(path) as store, asyncio.timeout(30):
        start = (await store.list(MODELS)).resource_version
        fill()
        refused = ""
        while not refused:
            name = f"m{len(acknowledged)}"
            try:
                await store.create(model_ref(name), model(name, spec={"pad": "x" * 20_000}))
                acknowledged.append(name)
            except Unavailable as error:
                refused = error.message
        seen = [item.ref.name for item in (await store.list(MODELS)).items]
        say("full", {"refused": refused, "trouble": store.trouble, "readable": sorted(seen) == sorted(acknowledged)})
        free()
        while store.trouble:
            await clock.sleep(0.02)
        await store.create(model_ref("after"), model("after"))
        acknowledged.append("after")
        watch = await store.watch(MODELS, resource_version=start)
        changes = [await anext(aiter(watch)) for _ in acknowledged]
        say("free", {"watched": [change.item.ref.name for change in changes if change.item] == acknowledged})
    async with opened(path) as store:
        say("again", {"kept": sorted(item.ref.name for item in (await store.list(MODELS)).items) == sorted(acknowledged)})


def tmpfs(directory: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(directory)], check=True)
    ballast = directory / "ballast"
    ballast.write_bytes(bytes(300_000))
    asyncio.run(fill_and_free(directory / "store.db", lambda: None, ballast.unlink))


def limit(directory: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    asyncio.run(
        fill_and_free(
            directory / "store.db",
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard)),
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard)),
        )
    )


async def acknowledge(path: Path, count: int) -> None:
    async with opened(path) as store:
        for number in range(count):
            name = f"m{number}"
            while True:
                try:
                    await store.create(model_ref(name), model(name))
                except Unavailable as error:
                    say("refused", name, error.message)
                else:
                    say("ack", name)
                    break
    async with opened(path) as store:
        say("kept", len((await store.list(MODELS)).items))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["forks"]:
            forks()
        case ["tmpfs", directory]:
            tmpfs(Path(directory))
        case ["limit", directory]:
            limit(Path(directory))
        case ["acks", path, count]:
            asyncio.run(acknowledge(Path(path), int(count)))
        case other:
            sys.exit(f"no such mode: {other}")
