"""What a list costs a controller whose objects are behind a Kubernetes API: CPU of the reader, beside the official client's dictionaries.

    python -m bench.kubernetes_list [--boards 5000] [--rounds 7]

A real controller serves the API in a process of its own, so that the CPU counted here is the reader's alone. Both sides read the same
objects over HTTPS with the same credentials; names and specs of both must agree.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from kubernetes.aio import client, config

from bench._control_plane import control_plane
from bench.report import Goal, finish, result
from controller.store.kubernetes.store import KubernetesStore
from rkfleet.clock import SystemClock
from rkfleet.kinds import KINDS, Board
from rkfleet.meta import Ref

WRITERS: Final = 32
RATIO_MAX: Final = 0.5
CONDITIONS: Final = ("Ready", "MemoryPressure", "DiskPressure", "ThermalPressure", "ClockSynchronized")


def main() -> int:
    """Measure, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boards", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    return asyncio.run(measure(given.boards, given.rounds))


async def measure(boards: int, rounds: int) -> int:
    clock, chance = SystemClock(), random.Random(1)
    ours: list[float] = []
    theirs: list[float] = []
    walls: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rkfleet-list-")))
        plane = await stack.enter_async_context(control_plane(scratch, clock, lambda _: None))
        opening = KubernetesStore.open(KINDS, kubeconfig=plane.kubeconfig, clock=clock, chance=chance)
        store = await stack.enter_async_context(opening)
        await fill(store, boards)
        peer = await official(plane.kubeconfig)
        stack.push_async_callback(peer.close)
        sides: dict[str, tuple[list[float], Callable[[], Awaitable[Any]]]] = {
            "ours": (ours, lambda: store.list(Board.resource.name)),
            "theirs": (theirs, lambda: listed(peer)),
        }
        for round_ in range(rounds):
            answers = {}
            for side in sides if round_ % 2 == 0 else reversed(sides):
                kept, read = sides[side]
                started, wall = time.process_time(), time.perf_counter()
                answers[side] = await read()
                kept.append(time.process_time() - started)
                if side == "ours":
                    walls.append(time.perf_counter() - wall)
            wanted = sorted((one["metadata"]["name"], one["spec"]) for one in answers["theirs"]["items"])
            found = [(item.ref.name, msgspec.json.decode(item.body)["spec"]) for item in answers["ours"].items]
            if len(found) != boards or found != wanted:
                print("the two lists differ", file=sys.stderr)
                return 1
    official_client = "kubernetes.aio CustomObjectsApi, same list"
    goal = Goal("ratio", "<=", RATIO_MAX)
    return finish(
        "kubernetes_list",
        [
            result("list_cpu", "s", ours, peer=official_client, theirs=theirs, goal=goal),
            result("list_wall", "s", walls),
            result("boards", "objects", [float(boards)]),
        ],
        clock,
    )


async def fill(store: KubernetesStore, boards: int) -> None:
    """Create boards as agents report them, of about 2 kB."""
    condition = {"status": "True", "reason": "Fine", "message": "m" * 80, "lastTransitionTime": "2026-01-01T00:00:00Z"}
    status = {
        "soc": "rk3588",
        "allocatable": {"memory": "14Gi", "storage": "100Gi"},
        "runtimes": [{"name": "rkllm", "version": "1.2.1", "backend": "rkllm"}],
        "conditions": [{"type": type, **condition} for type in CONDITIONS],
    }
    numbers = iter(range(boards))

    async def write() -> None:
        for number in numbers:
            name = f"board-{number:05}"
            await store.create(
                Ref(Board.resource.name, "", name), {"metadata": {"name": name}, "spec": {}, "status": status}, keep_status=True
            )

    async with asyncio.TaskGroup() as tasks:
        for _ in range(WRITERS):
            tasks.create_task(write())


async def official(kubeconfig: Path) -> client.ApiClient:
    configuration = client.Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=configuration, persist_config=False)
    return client.ApiClient(configuration)


async def listed(peer: client.ApiClient) -> Any:
    resource = Board.resource
    return await client.CustomObjectsApi(peer).list_cluster_custom_object(resource.group, resource.version, resource.plural)


if __name__ == "__main__":
    sys.exit(main())
