"""What SIGKILL leaves of a store: everything that was acknowledged, and a log without holes."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest

from controller.store.sql.store import SqlStore
from rkfleet.errors import Expired
from rkfleet.kinds import KINDS
from tests.support.stores import MODELS, body, take

KILLS = 12
ACKS_MAX = 120


@contextmanager
def forking_writer() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    command = [sys.executable, "-m", "tests.support.store_child", "forks"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as helper:
        assert helper.stdin is not None
        assert helper.stdout is not None
        yield helper.stdin, helper.stdout
        helper.stdin.close()
    assert helper.returncode == 0


@pytest.mark.processes
def test_an_acknowledged_write_is_there_after_sigkill(tmp_path: Path, soak_factor: int) -> None:
    """Of each object the store has the last acknowledged state, or that of the one write that was on its way."""
    path = tmp_path / "store.db"
    chance = random.Random(2026)
    newest = 0
    acked: dict[str, int | None] = {}
    with forking_writer() as (commands, facts):
        for _ in range(KILLS * soak_factor):
            commands.write(msgspec.json.encode((str(path), chance.randrange(1 << 30))) + b"\n")
            commands.flush()
            tried: dict[str, int | None] = {}
            pid, left = 0, chance.randrange(ACKS_MAX)
            while (fact := read(facts))[0] != "dead":
                match fact:
                    case ["pid", number]:
                        pid = number
                    case ["try", name, value]:
                        tried[name] = value
                    case ["ack", name, value, revision]:
                        acked[name], newest = value, max(newest, revision)
                        tried.pop(name)
                        left -= 1
                    case other:
                        pytest.fail(f"the child said {other}")
                if pid and left <= 0:
                    os.kill(pid, signal.SIGKILL)
                    pid = 0
            found = asyncio.run(holds(path, newest))
            for name in {*found, *acked, *tried}:
                assert found.get(name) in {acked.get(name), tried.get(name, acked.get(name))}, name
            acked = {**dict.fromkeys(acked), **found}


def read(facts: IO[bytes]) -> list[Any]:
    line = facts.readline()
    assert line, "the helper ended"
    fact: list[Any] = msgspec.json.decode(line)
    return fact


async def holds(path: Path, newest: int) -> dict[str, int | None]:
    """Return the numbers by name, after checking that the log has every revision from its start to its end."""
    async with SqlStore.open(path, KINDS) as store:
        page = await store.list(MODELS)
        end = int(page.resource_version)
        assert end >= newest
        floor = 0
        while not await is_known(store, floor):
            floor += 1
        watch = await store.watch(MODELS, resource_version=str(floor))
        async with aclosing(watch):
            changes = await take(watch, end - floor) if end > floor else []
        assert [int(change.resource_version) for change in changes] == list(range(floor + 1, end + 1))
        return {item.ref.name: body(item)["spec"]["n"] for item in page.items}


async def is_known(store: SqlStore, revision: int) -> bool:
    try:
        await (await store.watch(MODELS, resource_version=str(revision))).aclose()
    except Expired:
        return False
    return True
