"""A store that is killed right before a system call that writes: each of those that make, open and fill it, in turn."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from controller.store.sql.store import SqlStore
from rkfleet.kinds import KINDS
from tests.support.stores import MODELS, take

WRITES = 30  # A commit of one object is about nine writes of pages and one flush.
STRACE = shutil.which("strace")


def killed_before(call: str, number: int, path: Path) -> list[str]:
    """Let a child write one object after the other until a thread of it makes this call for this time; return what it acknowledged."""
    assert STRACE is not None
    kill = ["-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}"]
    child = [sys.executable, "-m", "tests.support.store_child", "acks", str(path), str(WRITES)]
    done = subprocess.run([STRACE, "-f", "-qq", *kill, "-o", "/dev/null", *child], stdout=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == -9, f"{call} was not made {number} times"
    return [name for fact, name in (msgspec.json.decode(line) for line in done.stdout.splitlines()) if fact == "ack"]


async def kept(path: Path) -> list[str]:
    """Return the names that the store has, after checking that its log tells of each in order, and that it goes on."""
    async with SqlStore.open(path, KINDS) as store:
        page = await store.list(MODELS)
        watch = await store.watch(MODELS, resource_version="0")
        names = [item.ref.name for item in sorted(page.items, key=lambda item: int(item.resource_version))]
        told = await take(watch, len(names)) if names else []
        await watch.aclose()
        assert [change.item.ref.name for change in told if change.item] == names
        assert [change.resource_version for change in told] == [str(number) for number in range(1, len(names) + 1)]
        return names


@pytest.mark.processes
@pytest.mark.skipif(STRACE is None, reason="strace is not on PATH")
@pytest.mark.parametrize(("call", "first", "step"), [("pwrite64", 33, 1), ("fdatasync", 6, 1), ("pwrite64", 2, 2)])
def test_a_kill_before_any_write_loses_nothing(tmp_path: Path, call: str, first: int, step: int, soak_factor: int) -> None:
    """Of a store that is being filled, a whole commit's calls and more; of one that is being made, every second call."""
    for number in range(first, first + step * (1 if soak_factor == 1 else 2 * soak_factor), step):
        path = tmp_path / str(number) / "store.db"
        path.parent.mkdir()
        acknowledged = killed_before(call, number, path)
        names = asyncio.run(kept(path))
        assert names in (acknowledged, [*acknowledged, f"m{len(acknowledged)}"]), f"killed before {call} number {number}"
