"""What listing 5,000 Boards costs the controller, and how long anything holds its event loop while lists, watches and writes run at once.

`python -m bench.lists [--boards N]`. The shipped controller is started over a full database. First one client asks again and again for all
Boards in each form; the cost is CPU of the whole process (utime + stime), encryption included. Then three client processes at once list in
all forms, hold two hundred watches through changes, and create objects. Every turn of the controller's loop is timed by the CPU clock of
its thread: a machine that gives the core to somebody else is not what holds a loop. Lists are compared with what was stored.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from bench._control_plane import ControlPlane
from bench._https_load import load, request_of
from bench._seeded import BOARDS, board_of, seeded_control_plane
from bench._timed_controller import slow_turns_ms
from bench.api_memory import settled_mib
from bench.fleet import Probe, cpu_seconds
from bench.report import Goal, Result, finish, result
from bench.watchers import DATA_BYTES, NAME, deliver
from rkfleet.client import load_cluster
from rkfleet.clock import Clock, SystemClock
from rkfleet.kinds import Board, ConfigMap
from rkfleet.meta import Ref

LISTS: Final = 10  # In each form.
CPU_SECONDS_MAX: Final = 0.25
TURN_MS_MAX: Final = 20.0
LISTERS: Final = 4
LISTS_TOGETHER: Final = 24
WATCHES: Final = 200
CHANGES: Final = 30
WRITERS: Final = 16
WRITES: Final = 2_000

FORMS: Final = {
    "objects": "accept: application/json\r\n",
    "objects, gzip": "accept: application/json\r\naccept-encoding: gzip\r\n",
    "a table": "accept: application/json;as=Table;v=v1;g=meta.k8s.io\r\n",
    "metadata": "accept: application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io\r\n",
}
PATH: Final = f"/apis/{Board.resource.api_version}/{Board.resource.plural}"
MAPS: Final = f"/api/{ConfigMap.resource.api_version}/namespaces/default/{ConfigMap.resource.plural}"


class Client:
    """Loads on one controller, each from a process of its own."""

    def __init__(self, plane: ControlPlane) -> None:
        cluster = load_cluster(plane.kubeconfig)
        self._port: Final = urlsplit(cluster.server).port or 443
        self._token: Final = cluster.token
        self._ca_file: Final = plane.kubeconfig.with_name("api-ca.crt")
        self._ca_file.write_text(cluster.ca_pem)

    def lists(self, forms: Sequence[str], count: int, connections: int = 1) -> None:
        """List all Boards so many times, in the forms by turns."""
        plain = request_of(self._port, "GET", PATH, b"", self._token)
        requests = [plain.replace(b"content-type: application/json\r\n", FORMS[form].encode()) for form in forms]
        self._load([requests[number % len(requests)] for number in range(count)], connections, "200")

    def writes(self) -> None:
        """Create objects."""
        bodies = [
            msgspec.json.encode({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"made-{number}"}, "data": {"a": "b" * 800}})
            for number in range(WRITES)
        ]
        self._load([request_of(self._port, "POST", MAPS, body, self._token) for body in bodies], WRITERS, "201")

    def _load(self, requests: Sequence[bytes], connections: int, wanted: str) -> None:
        found = load(self._port, self._ca_file, connections, requests).statuses
        assert found == {wanted: len(requests)}, f"answers were {found}, not {len(requests)} times {wanted}"


async def compare(plane: ControlPlane, boards: int) -> None:
    """Compare a list with what was stored."""
    async with plane.client() as client:
        found = {item["metadata"]["name"]: item for item in (await client.list(Board.resource.name)).items}
    stored = [board_of(number) for number in range(boards)]
    assert len(found) == boards, f"{len(found)} Boards, not {boards}"
    for obj in stored:
        item = found[obj["metadata"]["name"]]
        assert item["metadata"]["uid"] == obj["metadata"]["uid"]
        assert item["status"]["runtimes"] == obj["status"]["runtimes"]
        assert item["status"]["servingEndpoint"] == obj["status"]["servingEndpoint"]


async def measure(directory: Path, clock: Clock, boards: int) -> Sequence[Result]:
    """Return the figures."""
    results: list[Result] = []
    async with seeded_control_plane(directory, clock, boards=boards, program="bench._timed_controller") as plane:
        await settled_mib(plane, clock)
        client, pid = Client(plane), Probe(plane, clock).pid
        await compare(plane, boards)
        for form in FORMS:
            await asyncio.to_thread(client.lists, [form], 1)
            before = cpu_seconds(pid)
            await asyncio.to_thread(client.lists, [form], LISTS)
            goal = Goal("value", "<=", CPU_SECONDS_MAX)
            results.append(
                result(f"server CPU for a list of {boards} Boards as {form}", "s", [(cpu_seconds(pid) - before) / LISTS], goal=goal)
            )
        async with plane.client() as api:
            head = {"apiVersion": ConfigMap.resource.api_version, "kind": ConfigMap.resource.kind}
            body = {**head, "metadata": {"name": NAME}, "data": {"settings": "x" * DATA_BYTES}}
            await api.create(Ref(ConfigMap.resource.name, "default", NAME), body)
        seen = len(slow_turns_ms(directory / "controller"))
        assert seen, "no turn of the loop was timed"
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.to_thread(client.lists, tuple(FORMS), LISTS_TOGETHER, LISTERS))
            tasks.create_task(asyncio.to_thread(client.writes))
            tasks.create_task(deliver(plane, clock, "application/json", WATCHES, CHANGES, fields=f"metadata.name%3D{NAME}"))
        turns = slow_turns_ms(directory / "controller")[seen:]
        results += [
            result("longest turn of the loop under lists, watches and writes", "ms", [max(turns)], goal=Goal("value", "<=", TURN_MS_MAX)),
            result("turns above 10 ms", "turns", [sum(turn > 10 for turn in turns)]),
        ]
    return results


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boards", type=int, default=BOARDS, help="Boards that are listed (default %(default)s)")
    given = parser.parse_args(arguments)
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="rkfleet-bench-") as directory:
        results = asyncio.run(measure(Path(directory), clock, given.boards))
    return finish("lists", results, clock)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
