"""Writes per second of the store, against SQLite itself on the same disk, with the same durability.

`python -m bench.store [--rounds N] [--directory DIR]`. Both sides make the same objects, one row in `objects` and one in `events` each, in
a write-ahead log with `synchronous=FULL`, and every write is durable before the next step counts it. Ours decides preconditions, sets
versions, keeps the event log in memory and answers each caller; the peer is the standard library's sqlite3 in one thread, once with a
transaction for each object and once with a hundred objects in each. After every run the file is opened again and each acknowledged object
is read back and compared; an object that is missing or different ends the benchmark.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec

from bench.report import Goal, Result, finish, interleave, result
from controller.store.sql.store import SqlStore
from rkfleet.clock import SystemClock
from rkfleet.kinds import KINDS, Model
from rkfleet.meta import Ref

LONE_WRITES: Final = 400
SHARED_WRITES: Final = 4_000
WRITERS: Final = 200
BATCH: Final = 100
WATCHES: Final = 10

SETTINGS: Final = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL")
TABLES: Final = (
    (
        "CREATE TABLE objects (resource TEXT, namespace TEXT, name TEXT, uid TEXT, store_revision INTEGER, body BLOB,"
        " PRIMARY KEY (resource, namespace, name))"
    ),
    "CREATE TABLE events (store_revision INTEGER PRIMARY KEY, type TEXT, resource TEXT, namespace TEXT, name TEXT, uid TEXT, body BLOB)",
    "CREATE TABLE counter (id INTEGER PRIMARY KEY, revision INTEGER)",
    "INSERT INTO counter VALUES (1, 0)",
)

Digests = dict[str, str]


def ref_of(number: int) -> Ref:
    return Ref(Model.resource.name, "default", f"model-{number:06d}")


def model_of(number: int) -> dict[str, Any]:
    """Return an object of about a kilobyte, as a Model with one variant is."""
    name = ref_of(number).name
    digest = "sha256:" + hashlib.sha256(name.encode()).hexdigest()
    variant = {
        "name": "rk3588-w8a8",
        "soc": "rk3588",
        "dtype": "w8a8",
        "runtime": "rkllm",
        "contextTokens": 4096,
        "artifact": {"files": [{"path": "model.rkllm", "digest": digest, "sizeBytes": 8388608, "role": "weight"}]},
        "requires": {"memory": "2530Mi", "npuCores": 3, "runtimeVersion": ">=1.1.0,<1.4", "driverVersion": ">=0.9.7"},
    }
    metadata = {"name": name, "uid": f"uid-{number}", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"family": "qwen2"}}
    return {"metadata": metadata, "spec": {"family": "qwen2", "license": "Apache-2.0", "variants": [variant]}}


def fingerprint(obj: Any) -> str:
    """Return a hash of what the writer wrote, without what the store adds."""
    return hashlib.sha256(msgspec.json.encode((obj["metadata"]["name"], obj["spec"]), order="deterministic")).hexdigest()


class Bench:
    """Runs of one benchmark; each has a directory of its own on the disk that is measured."""

    def __init__(self, directory: Path) -> None:
        self._directory: Final = directory
        self.commits: Final[list[int]] = []

    def ours(self, writers: int, writes: int, *, watches: int = 0) -> Callable[[], float]:
        """Return a run of our store: so many callers, each waiting for each of its answers."""

        def run() -> float:
            with tempfile.TemporaryDirectory(dir=self._directory) as directory:
                path = Path(directory) / "store.db"
                seconds, written = asyncio.run(self._write(path, writers, writes, watches))
                self._compare(written, asyncio.run(read_ours(path)))
                return writes / seconds

        return run

    def sqlite(self, writes: int, batch: int) -> Callable[[], float]:
        """Return a run of SQLite alone: `batch` objects in each transaction."""

        def run() -> float:
            with tempfile.TemporaryDirectory(dir=self._directory) as directory:
                path = Path(directory) / "peer.db"
                seconds, written = write_sqlite(path, writes, batch)
                self._compare(written, read_sqlite(path))
                return writes / seconds

        return run

    async def _write(self, path: Path, writers: int, writes: int, watches: int) -> tuple[float, Digests]:
        objects = {number: model_of(number) for number in range(writes)}
        written: Digests = {}
        async with SqlStore.open(path, KINDS) as store:

            async def write(first: int) -> None:
                for number in range(first, writes, writers):
                    await store.create(ref_of(number), objects[number])
                    written[ref_of(number).name] = ""

            async def follow() -> int:
                seen = 0
                async for _ in await store.watch(Model.resource.name, resource_version="0"):
                    seen += 1
                    if seen == writes:
                        break
                return seen

            started = time.perf_counter()
            async with asyncio.TaskGroup() as tasks:
                for first in range(writers):
                    tasks.create_task(write(first))
                for _ in range(watches):
                    tasks.create_task(follow())
            seconds = time.perf_counter() - started
            self.commits.append(store.commits)
        return seconds, {ref_of(number).name: fingerprint(obj) for number, obj in objects.items() if ref_of(number).name in written}

    @staticmethod
    def _compare(written: Digests, found: Digests) -> None:
        if written != found:
            different = [name for name in written if found.get(name) != written[name]]
            sys.exit(f"{len(different)} of {len(written)} acknowledged objects are not there, first {different[:1]}")


async def read_ours(path: Path) -> Digests:
    async with SqlStore.open(path, KINDS) as store:
        items = (await store.list(Model.resource.name)).items
    return {item.ref.name: fingerprint(msgspec.json.decode(item.body)) for item in items}


def write_sqlite(path: Path, writes: int, batch: int) -> tuple[float, Digests]:
    objects = [model_of(number) for number in range(writes)]
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in (*SETTINGS, *TABLES):
            connection.execute(statement)
        started = time.perf_counter()
        for first in range(0, writes, batch):
            rows = []
            for revision in range(first + 1, min(first + batch, writes) + 1):
                obj = objects[revision - 1]
                name, uid = obj["metadata"]["name"], obj["metadata"]["uid"]
                rows.append((Model.resource.name, "default", name, uid, revision, msgspec.json.encode(obj)))
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE counter SET revision = ?", (first + len(rows),))
            connection.executemany("INSERT INTO objects VALUES (?, ?, ?, ?, ?, ?)", rows)
            logged = [(row[4], "ADDED", *row[:4], row[5]) for row in rows]
            connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", logged)
            connection.execute("COMMIT")
        seconds = time.perf_counter() - started
    return seconds, {obj["metadata"]["name"]: fingerprint(obj) for obj in objects}


def read_sqlite(path: Path) -> Digests:
    with closing(sqlite3.connect(path)) as connection:
        return {name: fingerprint(msgspec.json.decode(body)) for name, body in connection.execute("SELECT name, body FROM objects")}


def measure(bench: Bench, rounds: int) -> Sequence[Result]:
    shared, lone, followed, single, batched, single_lone = interleave(
        rounds,
        bench.ours(WRITERS, SHARED_WRITES),
        bench.ours(1, LONE_WRITES),
        bench.ours(WRITERS, SHARED_WRITES, watches=WATCHES),
        bench.sqlite(SHARED_WRITES, 1),
        bench.sqlite(SHARED_WRITES, BATCH),
        bench.sqlite(LONE_WRITES, 1),
    )
    one, many = "sqlite3, one object per commit", f"sqlite3, {BATCH} objects per commit"
    burst = bench.ours(WRITERS, WRITERS)
    bench.commits.clear()
    for _ in range(rounds):
        burst()
    many_callers, alone = f"creates by {WRITERS} callers", "creates by one caller"
    with_watches = f"{many_callers}, {WATCHES} watches read along"
    return [
        result(many_callers, "writes/s", shared, peer=one, theirs=single, goal=Goal("ratio", ">=", 1.5)),
        result(f"{many_callers}, batched peer", "writes/s", shared, peer=many, theirs=batched, goal=Goal("ratio", ">=", 0.15)),
        result(with_watches, "writes/s", followed, peer=one, theirs=single, goal=Goal("ratio", ">=", 1.0)),
        result(alone, "writes/s", lone, peer=one, theirs=single_lone, goal=Goal("ratio", ">=", 0.2)),
        result(f"commits of {WRITERS} concurrent creates", "commits", [max(bench.commits)], goal=Goal("value", "<=", 40)),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are taken over them")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    given = parser.parse_args()
    return finish("store", measure(Bench(given.directory), given.rounds), SystemClock())


if __name__ == "__main__":
    sys.exit(main())
