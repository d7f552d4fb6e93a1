"""How long one change takes to reach a thousand watchers, over TLS, through the shipped controller.

`python -m bench.watchers [--watchers N] [--changes N]`. A controller is started with its own command; a client process of its own holds
the watches and changes one ConfigMap's annotation again and again, each time when everybody has seen the change before. A delivery is timed
from the moment the change was sent: it holds the write with its fsync, the fan-out, encryption and the client's own reading, on the same
cores. Every watch must get the same lines, each once, in order. Watches ask for objects, then for tables as `kubectl get -w` does.
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

from bench._control_plane import ControlPlane, control_plane
from bench._watch_load import Deliveries, Plan
from bench.fleet import Probe, cpu_seconds
from bench.report import Goal, Result, finish, result
from rkfleet.client import load_cluster
from rkfleet.clock import Clock, SystemClock
from rkfleet.kinds import ConfigMap
from rkfleet.meta import Ref

WATCHERS: Final = 1_000
CHANGES: Final = 40
DELIVERY_MS_MAX: Final = 250.0  # p99
NAME: Final = "watched"
DATA_BYTES: Final = 1_500  # With its metadata an object of about 2 kB, as most in a fleet are. No loop writes to ConfigMaps.
FORMS: Final = {
    "objects": "application/json",
    "tables": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
}


async def measure(directory: Path, clock: Clock, watchers: int, changes: int) -> Sequence[Result]:
    """Return what each form came to."""
    results: list[Result] = []
    async with control_plane(directory, clock, lambda sentence: print(sentence, file=sys.stderr)) as plane:
        async with plane.client() as client:
            head = {"apiVersion": ConfigMap.resource.api_version, "kind": ConfigMap.resource.kind}
            body = {**head, "metadata": {"name": NAME}, "data": {"settings": "x" * DATA_BYTES}}
            await client.create(Ref(ConfigMap.resource.name, "default", NAME), body)
        for form, accept in FORMS.items():
            deliveries, cpu = await deliver(plane, clock, accept, watchers, changes)
            of = f"one change to {watchers} watchers, as {form}"
            assert deliveries.count == watchers * changes, f"{deliveries.count} deliveries, not {watchers * changes}"
            goal = Goal("value", "<=", DELIVERY_MS_MAX)
            results += [
                result(f"{of}: p50", "ms", [1000 * deliveries.p50_seconds]),
                result(f"{of}: p99", "ms", [1000 * deliveries.p99_seconds], goal=goal),
                result(f"{of}: last", "ms", [1000 * deliveries.last_seconds]),
                result(f"{of}: answer to the writer, p50", "ms", [1000 * deliveries.answer_seconds]),
                result(f"{of}: server CPU", "us/delivery", [1e6 * cpu / deliveries.count]),
                result(f"{of}: line", "bytes", [deliveries.line_bytes]),
            ]
    return results


async def deliver(
    plane: ControlPlane, clock: Clock, accept: str, watchers: int, changes: int, *, fields: str = ""
) -> tuple[Deliveries, float]:
    """Run the client once, with watches of what `fields` selects; return its times, and the server's CPU seconds for the changes."""
    cluster = load_cluster(plane.kubeconfig)
    ca_file = plane.kubeconfig.with_name("api-ca.crt")
    ca_file.write_text(cluster.ca_pem)
    path = f"/api/{ConfigMap.resource.api_version}/namespaces/default/{ConfigMap.resource.plural}"
    async with plane.client() as client:
        version = (await client.list(ConfigMap.resource.name, "default")).resource_version
    plan = Plan(
        port=urlsplit(cluster.server).port or 443,
        ca_file=str(ca_file),
        token=cluster.token,
        watch_path=f"{path}?watch=true&resourceVersion={version}&fieldSelector={fields}",
        accept=accept,
        change_path=f"{path}/{NAME}",
        watchers=watchers,
        changes=changes,
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench._watch_load", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 24
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(msgspec.json.encode(plan))
    process.stdin.close()
    assert await process.stdout.readline() == b"open\n", "not every watch was opened"
    pid = Probe(plane, clock).pid
    before = cpu_seconds(pid)
    line = await process.stdout.readline()
    cpu = cpu_seconds(pid) - before
    if code := await process.wait():
        raise RuntimeError(f"the client ended with {code} after {len(line)} bytes")
    return msgspec.json.decode(line, type=Deliveries), cpu


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watchers", type=int, default=WATCHERS, help="watches at once (default %(default)s)")
    parser.add_argument("--changes", type=int, default=CHANGES, help="changes, one after the other (default %(default)s)")
    given = parser.parse_args(arguments)
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="rkfleet-bench-") as directory:
        results = asyncio.run(measure(Path(directory), clock, given.watchers, given.changes))
    return finish("watchers", results, clock)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
