"""What 5,000 Boards and 10,000 Replicas cost a controller in memory: VmRSS above an empty one.

`python -m bench.api_memory [--boards N] [--replicas N]`. Two controllers are started with their own commands, one over an empty database
and one over a full one, and both are left alone until nothing is written any more. The full one holds objects as JSON, the caches of all
loops and the log of recent changes, which is full: the loops have said of every Replica that nothing is known while its board is away.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from bench._control_plane import ControlPlane
from bench._seeded import BOARDS, REPLICAS, seeded_control_plane
from bench.agent import resident_mib
from bench.fleet import Probe
from bench.report import Goal, Result, finish, result
from rkfleet.clock import Clock, SystemClock
from rkfleet.kinds import Board, Replica

RSS_MIB_MAX: Final = 100.0
QUIET_SECONDS: Final = 8.0  # Without a write: the loops are done.
SETTLE_SECONDS: Final = 30.0  # Longer than a board may be silent before its Replicas are Unknown.
PATIENCE_SECONDS: Final = 300.0


async def settled_mib(plane: ControlPlane, clock: Clock) -> float:
    """Return the controller's VmRSS when nothing is written any more."""
    probe, began = Probe(plane, clock), clock.monotonic()
    revision, since = -1.0, began
    while clock.monotonic() - since < QUIET_SECONDS or clock.monotonic() - began < SETTLE_SECONDS:
        now = (await probe.metrics())["rkfleet_store_revision"]
        if now != revision:
            revision, since = now, clock.monotonic()
        assert clock.monotonic() - began < PATIENCE_SECONDS, "the controller does not stop to write"
        await clock.sleep(1.0)
    return resident_mib(probe.pid)


async def held(directory: Path, clock: Clock, boards: int, replicas: int) -> tuple[float, float]:
    """Return the VmRSS of a controller over so many objects, and how much the objects are as JSON, both in MiB."""
    async with seeded_control_plane(directory, clock, boards=boards, replicas=replicas) as plane:
        mib = await settled_mib(plane, clock)
        size = 0
        async with plane.client() as client:
            for kind, count in ((Board, boards), (Replica, replicas)):
                items = (await client.list(kind.resource.name)).items
                assert len(items) == count, f"{len(items)} {kind.resource.plural}, not {count}"
                size += sum(len(msgspec.json.encode(item)) for item in items)
    return mib, size / (1 << 20)


async def measure(directory: Path, clock: Clock, boards: int, replicas: int) -> Sequence[Result]:
    """Return the figures of both controllers."""
    for name in ("empty", "full"):
        (directory / name).mkdir()
    (empty, _), (full, size) = (
        await held(directory / "empty", clock, 0, 0),
        await held(directory / "full", clock, boards, replicas),
    )
    of = f"{boards} Boards and {replicas} Replicas"
    return [
        result("controller RSS, empty", "MiB", [empty]),
        result(f"{of}, as JSON", "MiB", [size]),
        result(f"{of}: RSS above an empty controller", "MiB", [full - empty], goal=Goal("value", "<=", RSS_MIB_MAX)),
    ]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boards", type=int, default=BOARDS, help="Boards that are held (default %(default)s)")
    parser.add_argument("--replicas", type=int, default=REPLICAS, help="Replicas that are held (default %(default)s)")
    given = parser.parse_args(arguments)
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="rkfleet-bench-") as directory:
        results = asyncio.run(measure(Path(directory), clock, given.boards, given.replicas))
    return finish("api_memory", results, clock)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
