"""What five thousand Boards and ten thousand Replicas cost a controller: memory, the CPU of listing them, and how long its loop is held.

`python -m bench.api_memory`. A store file is made with objects as real boards and rollouts leave them, and the shipped controller is
started on it and on an empty one. Memory is the resident size (VmRSS) after its loops have seen everything, above the empty controller's;
CPU is the process's own (utime + stime of /proc) over a number of whole lists; the event loop's lag is what the controller itself measures,
as its metric tells it, while lists and a thousand writes run. Lists are decoded and counted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any, Final

from bench._control_plane import ControlPlane, control_plane
from bench.report import Goal, Result, finish, result
from controller.store.sql.store import SqlStore
from rkfleet.clock import SystemClock
from rkfleet.kinds import KINDS, Board, ConfigMap, Namespace, Replica
from rkfleet.meta import Ref

BOARDS: Final = 5_000
REPLICAS: Final = 10_000
LISTS: Final = 5
WRITES: Final = 1_000
WRITERS: Final = 16
CLOCK: Final = SystemClock()
TIME: Final = "2026-01-01T00:00:00Z"
TABLE: Final = "application/json;as=Table;v=v1;g=meta.k8s.io"

Json = dict[str, Any]


def _condition(type: str, reason: str) -> Json:
    return {"type": type, "status": "True", "reason": reason, "message": "", "lastTransitionTime": TIME, "observedGeneration": 1}


def board(number: int) -> Json:
    """Return a Board as an agent's reports leave it, about 1.8 kB."""
    name = f"rk3588-{number:05d}"
    running = [
        {"replica": f"default/model-{index}-5f3c9a1b2d-{number}", "uid": f"{number:08d}-{index}", "memory": "2530Mi"} for index in (0, 1)
    ]
    conditions = [_condition(type, "Enough") for type in ("Ready", "MemoryPressure", "DiskPressure")]
    return {
        "metadata": {
            "name": name, "uid": f"board-{number:08d}-0000-4000-8000-000000000000", "creationTimestamp": TIME,
            "labels": {"rkfleet.dev/soc": "rk3588", "rkfleet.dev/site": f"site-{number % 50}"},
            "annotations": {"rkfleet.dev/key-sha256": f"{number:064x}", "rkfleet.dev/machine-id": f"{number:032x}"},
        },
        "spec": {"unschedulable": False},
        "status": {
            "observedGeneration": 1, "soc": "rk3588", "simulated": False,
            "capacity": {"memory": "16Gi", "storage": "58Gi", "npuCores": 3}, "allocatable": {"memory": "15Gi", "storage": "40Gi"},
            "versions": {"agent": "0.1.0", "kernel": "6.1.84", "npuDriver": {"family": "rknpu", "version": "0.9.8"}},
            "runtimes": [{"name": "rkllm", "version": "1.2.1", "backend": "rkllm"}],
            "servingEndpoint": f"https://10.0.{number // 250}.{number % 250}:7490", "session": {"controller": "c-0", "number": 12},
            "assignment": {"number": 41, "sha256": f"{number:064x}", "acceptedNumber": 41, "message": ""}, "running": running,
            "conditions": conditions,
        },
    }  # fmt: skip


def replica(number: int) -> Json:
    """Return a Replica that serves, about 1.5 kB."""
    name = f"model-{number % 2}-5f3c9a1b2d-{number // 2}"
    owner = {"apiVersion": "rkfleet.dev/v1alpha1", "kind": "ModelDeployment", "name": f"model-{number % 2}", "uid": "u", "controller": True}
    return {
        "metadata": {
            "name": name, "namespace": "default", "uid": f"replica-{number:08d}-4000-8000-000000000000", "creationTimestamp": TIME,
            "labels": {"rkfleet.dev/deployment": f"model-{number % 2}"}, "ownerReferences": [{**owner, "blockOwnerDeletion": True}],
        },
        "spec": {
            "deploymentName": f"model-{number % 2}", "revisionName": f"model-{number % 2}-5f3c9a1b2d", "slot": str(number // 2),
            "boardName": f"rk3588-{number // 2:05d}", "variantName": "rk3588-w8a8", "activation": "Serving",
        },
        "status": {
            "observedGeneration": 2, "endpoint": f"https://10.0.0.17:7490/replicas/default/{name}",
            "progress": {"fetchedBytes": 8388608, "totalBytes": 8388608},
            "measured": {"timeToFirstTokenSeconds": 0.21, "decodeTokensPerSecond": 16}, "restarts": 0,
            "conditions": [_condition(one, "Done") for one in ("Scheduled", "ArtifactAvailable", "Loaded", "Ready")],
        },
    }  # fmt: skip


async def fill(path: Path) -> None:
    """Make a store file with everything in it."""
    async with SqlStore.open(path, KINDS) as store:
        namespace = {"metadata": {"name": "default", "uid": "n", "creationTimestamp": TIME}}
        await store.create(Ref(Namespace.resource.name, "", "default"), namespace)
        made = [(Ref(Board.resource.name, "", obj["metadata"]["name"]), obj) for obj in map(board, range(BOARDS))]
        made += [(Ref(Replica.resource.name, "default", obj["metadata"]["name"]), obj) for obj in map(replica, range(REPLICAS))]
        for first in range(0, len(made), 500):
            await asyncio.gather(*(store.create(ref, obj, keep_status=True) for ref, obj in made[first : first + 500]))


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def cpu_seconds(pid: int) -> float:
    """Return what a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _prepare(directory: Path, full: Path | None) -> None:
    (directory / "controller").mkdir(parents=True, mode=0o700)
    if full is not None:
        shutil.copy(full, directory / "controller" / "store.db")


async def memory(directory: Path, full: Path | None) -> int:
    """Return the memory of a controller on an empty store, or on a copy of a full one."""
    _prepare(directory, full)
    async with control_plane(directory, CLOCK, _say) as plane:
        await _settled(plane)
        return rss_bytes(plane.controller_pid)


async def _settled(plane: ControlPlane) -> None:
    """Wait until the controller has nothing more to do: its CPU stands still for a second."""
    used = -1.0
    while (now := cpu_seconds(plane.controller_pid)) - used > 0.05:
        used = now
        await CLOCK.sleep(1.0)


async def lists(directory: Path, full: Path) -> list[Result]:
    """Return the CPU of lists, and the lag of the event loop while everything runs."""
    _prepare(directory, full)
    async with control_plane(directory, CLOCK, _say) as plane, plane.client() as api:
        await _settled(plane)
        results = []
        for what, accept in (("objects", "application/json"), ("a table", TABLE)):
            before = cpu_seconds(plane.controller_pid)
            for _ in range(LISTS):
                listed = await api.request("GET", "/apis/rkfleet.dev/v1alpha1/boards", accept=accept)
                assert len(listed["items" if what == "objects" else "rows"]) == BOARDS
            used = (cpu_seconds(plane.controller_pid) - before) / LISTS
            goal = Goal("value", "<=", 0.25) if what == "objects" else None
            results.append(result(f"CPU of the server for {BOARDS:,} Boards as {what}", "s", [used], goal=goal))
        before_lag = _lag(plane)

        async def write(first: int) -> None:
            for number in range(first, WRITES, WRITERS):
                name = f"c-{number:05d}"
                await api.create(Ref(ConfigMap.resource.name, "default", name), {"metadata": {"name": name}, "data": {"a": "b" * 500}})

        async def read() -> None:
            for accept in ("application/json", TABLE, "application/json"):
                await api.request("GET", "/apis/rkfleet.dev/v1alpha1/boards", accept=accept)

        await asyncio.gather(*(write(first) for first in range(WRITERS)), read(), read())
        over = _over(before_lag, _lag(plane), 0.02)
        results.append(result("share of loop-lag samples above 20 ms under lists and writes", "", [over], goal=Goal("value", "<=", 0.01)))
        return results


def _lag(plane: ControlPlane) -> dict[str, float]:
    """Return the buckets of the controller's own lag histogram."""
    with urllib.request.urlopen(plane.metrics_url) as answer:
        text = answer.read().decode()
    found = re.findall(r'^rkfleet_event_loop_lag_seconds_bucket\{le="([^"]+)"[^}]*\} (\S+)$', text, re.MULTILINE)
    return {bound: float(count) for bound, count in found}


def _over(before: dict[str, float], after: dict[str, float], seconds: float) -> float:
    """Return which share of the samples between two readings is above a bound."""
    bound = next(one for one in after if one != "+Inf" and float(one) >= seconds)
    total = after["+Inf"] - before.get("+Inf", 0)
    below = after[bound] - before.get(bound, 0)
    return (total - below) / total if total else 0.0


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


async def measure(directory: Path) -> list[Result]:
    full = directory / "full.db"
    await fill(full)
    empty_bytes = await memory(directory / "empty", None)
    full_bytes = await memory(directory / "full", full)
    above = (full_bytes - empty_bytes) / (1 << 20)
    what = f"{BOARDS:,} Boards and {REPLICAS:,} Replicas above an empty controller"
    stored = full.stat().st_size / (1 << 20)
    return [
        result(what, "MiB", [above], goal=Goal("value", "<=", 100)),
        result("the store file of that", "MiB", [stored]),
        result("an empty controller", "MiB", [empty_bytes / (1 << 20)]),
        *await lists(directory / "lists", full),
    ]


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as directory:
        return finish("api_memory", asyncio.run(measure(Path(directory))), CLOCK)


if __name__ == "__main__":
    sys.exit(main())
