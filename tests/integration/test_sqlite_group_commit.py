"""How writes share commits, and that each is on the disk before it is acknowledged."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from controller.store.sql.store import SqlStore
from rkfleet import metric_names
from rkfleet.errors import AlreadyExists, Conflict, Internal, Unavailable
from rkfleet.kinds import KINDS
from rkfleet.metrics import Metrics
from tests.support.stores import MODELS, NOW, model, model_ref

COMMITS_MAX = 40


def test_200_concurrent_creates_use_at_most_40_commits(tmp_path: Path) -> None:
    async def scenario() -> None:
        metrics = Metrics("controller")
        async with SqlStore.open(tmp_path / "store.db", KINDS, metrics=metrics) as store:
            await asyncio.gather(*(store.create(model_ref(f"m{n}"), model(f"m{n}")) for n in range(200)))
            assert 1 <= store.commits <= COMMITS_MAX
            assert f"{metric_names.STORE_COMMITS.name} {float(store.commits)}" in metrics.text().decode()
            assert len((await store.list(MODELS)).items) == 200

    asyncio.run(scenario())


def test_200_creates_that_trickle_in_use_at_most_40_commits(tmp_path: Path) -> None:
    """Each caller arrives in its own turn of the event loop, as requests from the network do."""

    async def scenario() -> None:
        async with SqlStore.open(tmp_path / "store.db", KINDS) as store, asyncio.TaskGroup() as tasks:
            for n in range(200):
                tasks.create_task(store.create(model_ref(f"m{n}"), model(f"m{n}")))
                await asyncio.wait_for(asyncio.shield(asyncio.get_running_loop().run_in_executor(None, os.getpid)), 1)
        assert store.commits <= COMMITS_MAX

    asyncio.run(scenario())


def test_one_caller_after_the_other_has_a_commit_for_each(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with SqlStore.open(tmp_path / "store.db", KINDS) as store:
            for n in range(10):
                await store.create(model_ref(f"m{n}"), model(f"m{n}"))
                assert store.commits == n + 1

    asyncio.run(scenario())


def test_a_loser_gets_its_error_while_the_batch_commits(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with SqlStore.open(tmp_path / "store.db", KINDS) as store:
            stale = await store.create(model_ref("a"), model("a"))
            await store.patch(model_ref("a"), {"spec": {"n": 1}}, now=NOW)
            before = store.commits
            results = await asyncio.gather(
                store.create(model_ref("b"), model("b")),
                store.create(model_ref("b"), model("b", uid="second")),
                store.patch(model_ref("a"), {"spec": {"n": 2}}, resource_version=stale.resource_version, now=NOW),
                store.create(model_ref("c"), model("c")),
                return_exceptions=True,
            )
            assert [type(result) for result in results[1:3]] == [AlreadyExists, Conflict]
            assert store.commits == before + 1
            assert [item.ref.name for item in (await store.list(MODELS)).items] == ["a", "b", "c"]

    asyncio.run(scenario())


def test_a_caller_who_left_does_not_stop_the_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with SqlStore.open(tmp_path / "store.db", KINDS) as store, asyncio.TaskGroup() as tasks:
            leaving = tasks.create_task(store.create(model_ref("a"), model("a")))
            staying = tasks.create_task(store.create(model_ref("b"), model("b")))
            await asyncio.wait((leaving,), timeout=0)
            leaving.cancel()
            assert (await staying).ref.name == "b"

    asyncio.run(scenario())


def test_a_store_that_stops_finishes_what_it_took_and_refuses_the_rest(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with SqlStore.open(tmp_path / "store.db", KINDS) as store:
            writes = [asyncio.ensure_future(store.create(model_ref(f"m{n}"), model(f"m{n}"))) for n in range(300)]
            await asyncio.wait(writes[:1], timeout=0)
        assert all(write.done() and write.exception() is None for write in writes)
        with pytest.raises(Unavailable, match="stopping"):
            await store.create(model_ref("late"), model("late"))

    asyncio.run(scenario())


def test_our_own_mistake_in_one_write_does_not_fail_its_neighbours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with SqlStore.open(tmp_path / "store.db", KINDS) as store:
            await store.create(model_ref("a"), model("a"))
            results = await asyncio.gather(
                store.create(model_ref("b"), model("b")),
                store.patch_status(model_ref("a"), "uid-a", "model", {}, [None], now=NOW),  # type: ignore[list-item]
                store.create(model_ref("c"), model("c")),
                return_exceptions=True,
            )
            assert isinstance(results[1], Internal)
            assert [item.ref.name for item in (await store.list(MODELS)).items] == ["a", "b", "c"]

    asyncio.run(scenario())
    assert "write to models.rkfleet.dev/default/a failed" in caplog.text


def test_more_writes_than_may_wait_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.store.sql.store.PENDING_WRITES_MAX", 5)

    async def scenario() -> None:
        async with SqlStore.open(tmp_path / "store.db", KINDS) as store:
            results = await asyncio.gather(*(store.create(model_ref(f"m{n}"), model(f"m{n}")) for n in range(8)), return_exceptions=True)
            refused = [result for result in results if isinstance(result, Unavailable)]
            assert [error.message for error in refused] == ["5 writes wait for the disk, at most 5 may"] * 3
            await store.create(model_ref("later"), model("later"))

    asyncio.run(scenario())


def test_the_settings_are_those_of_a_durable_store(tmp_path: Path) -> None:
    from controller.store.sql.sqlite import SqliteDatabase

    database = SqliteDatabase.open(tmp_path / "store.db")
    connection = database._connect()
    assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
    assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
    database.close()
    with sqlite3.connect(tmp_path / "store.db") as plain:
        assert plain.execute("SELECT schema_version, revision FROM counter").fetchall() == [(2, 0)]
    plain.close()


def traced(tmp_path: Path, *options: str, count: int) -> tuple[list[list[str]], str]:
    """Run a child that writes one object after the other under strace; return what it said and what it did."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not on PATH")
    trace = tmp_path / "trace"
    child = [sys.executable, "-m", "tests.support.store_child", "acks", str(tmp_path / "store.db"), str(count)]
    syscalls = "trace=fsync,fdatasync,write"
    done = subprocess.run(
        [strace, "-f", "-qq", "-s", "16", "-e", syscalls, *options, "-o", str(trace), *child],
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    return [msgspec.json.decode(line) for line in done.stdout.splitlines()], trace.read_text()


@pytest.mark.processes
def test_each_write_is_acknowledged_after_its_fsync(tmp_path: Path) -> None:
    """In the trace of the process, a sync of the file lies between one acknowledgement and the next."""
    said, trace = traced(tmp_path, count=8)
    assert [fact[0] for fact in said] == ["ack"] * 8 + ["kept"]
    steps = re.findall(r'(sync)\([^\n]*= 0|write\(1, "\[\\"(ack)', trace)
    order = "".join("s" if sync else "a" for sync, _ in steps)
    first, *rest = order.split("a")[:8]
    assert "s" in first
    assert all("s" in between for between in rest)


@pytest.mark.processes
def test_nothing_is_acknowledged_while_the_disk_cannot_sync(tmp_path: Path) -> None:
    """The kernel answers some fsyncs with EIO; the store says so, tries again, and loses nothing."""
    said, _ = traced(tmp_path, "-e", "inject=fsync,fdatasync:error=EIO:when=16..19", count=16)
    refused = [fact for fact in said if fact[0] == "refused"]
    assert refused
    assert all("cannot be written: disk I/O error" in fact[2] for fact in refused)
    assert [fact[1] for fact in said if fact[0] == "ack"] == [f"m{n}" for n in range(16)]
    assert said[-1] == ["kept", 16]
