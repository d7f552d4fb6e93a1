"""Hollow boards against a real controller: joined for real, in session, rolled out to, cut off, and back after the controller died."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from rkfleet.cli.fleet import FleetPlan, LocalFleet, local_fleet
from rkfleet.cli.samples import run_command
from rkfleet.client import ApiClient
from rkfleet.clock import SystemClock
from rkfleet.conditions import find
from rkfleet.errors import Unavailable
from rkfleet.kinds import Board, ModelDeployment, Replica
from rkfleet.kinds.base import decode
from rkfleet.meta import Ref
from tests.support.objects import Json

pytestmark = pytest.mark.processes
CLOCK = SystemClock()
PATIENCE_SECONDS = 60.0
BOARDS = 30
SCENARIO = """
seed: 1
sites: [lab-1, lab-2]
load: {fetchSeconds: 0.2, loadSeconds: 0.3, jitter: 0.5}
outages: [{atSeconds: 6, forSeconds: 3, site: lab-2}]
"""


async def eventually(level: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = CLOCK.monotonic() + PATIENCE_SECONDS
    while not await level():
        assert CLOCK.monotonic() < deadline, f"after {PATIENCE_SECONDS:.0f} s still not: {what}"
        await CLOCK.sleep(0.1)


async def boards(client: ApiClient) -> list[Board]:
    return [decode(Board, msgspec.json.encode(one)) for one in (await client.list(Board.resource.name)).items]


async def replicas(client: ApiClient) -> list[Replica]:
    return [decode(Replica, msgspec.json.encode(one)) for one in (await client.list(Replica.resource.name, "default")).items]


def ready(one: Board | Replica) -> str:
    found = find(one.status.conditions, "Ready")
    return found.status if found else ""


async def count_ready(client: ApiClient) -> int:
    return sum(ready(one) == "True" for one in await boards(client))


@contextlib.asynccontextmanager
async def simulate(directory: Path, fleet: LocalFleet, *flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run hollow boards; whatever happens in the block, they are gone after it."""
    command = [sys.executable, "-m", "rkfleet.cli.main", "simulate", "--boards", str(BOARDS), "--soc", "rk3588=2,rk3576=1"]
    flags = ("--kubeconfig", fleet.endpoints.kubeconfig, "--state", str(directory / "state.json"), *flags)
    with (directory / "hollow.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*command, *flags, stdout=log, stderr=log)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def stop(process: asyncio.subprocess.Process) -> int:
    process.send_signal(signal.SIGTERM)
    return await asyncio.wait_for(process.wait(), 30)


async def deploy(directory: Path, client: ApiClient, kubeconfig: str) -> None:
    file = directory / "placeholder.rkllm"
    file.write_bytes(b"RKFLEET-SIMULATED\n")
    variant = "name=any,soc=any,dtype=w8a8,runtime=rkllm,memory=2530Mi"
    command = [sys.executable, "-m", "rkfleet.cli.main", "model", "push", str(file), "--variant", variant, "--name", "placeholder"]
    await run_command([*command, "--kubeconfig", kubeconfig])
    body: Json = {
        "apiVersion": "rkfleet.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "many", "namespace": "default"},
        "spec": {"replicas": BOARDS, "template": {"model": "placeholder"}},
    }
    await client.create(Ref(ModelDeployment.resource.name, "default", "many"), body)


def test_hollow_boards_are_a_fleet_to_the_controller(tmp_path: Path) -> None:
    """Everything that a controller does with boards it does with these: sessions, placement, rollout, presence, its own restart."""

    async def story() -> None:
        plan = FleetPlan(data_dir=tmp_path / "fleet", api_port=0, grpc_port=0, registry_port=0, gateway_port=0, cpu_boards=0)
        (tmp_path / "scenario.yaml").write_text(SCENARIO)
        async with local_fleet(plan, CLOCK, lambda _: None) as fleet, fleet.client() as client, contextlib.AsyncExitStack() as stack:
            process = await stack.enter_async_context(simulate(tmp_path, fleet, "--scenario", str(tmp_path / "scenario.yaml")))

            async def all_ready() -> bool:
                return await count_ready(client) == BOARDS

            async def all_serve() -> bool:
                found = await replicas(client)
                return len(found) == BOARDS and all(ready(one) == "True" for one in found)

            async def some_away() -> bool:
                return await count_ready(client) <= BOARDS // 2

            async def all_described() -> bool:
                return all(one.status.runtimes for one in await boards(client))

            await eventually(all_ready, "every board is in session")
            await eventually(all_described, "every board has reported")
            found = await boards(client)
            assert all(one.status.simulated and one.status.runtimes[0].backend == "simulated" for one in found)
            assert sorted(one.status.soc for one in found).count("rk3588") == 20
            assert [one.metadata.labels["rkfleet.dev/site"] for one in found].count("lab-2") == 15

            await deploy(tmp_path, client, fleet.endpoints.kubeconfig)
            await eventually(all_serve, "every replica is Ready")
            placed = {one.metadata.uid: one.spec.board_name for one in await replicas(client)}
            assert len(set(placed.values())) == BOARDS, "one replica on each board"

            await eventually(some_away, "the boards of lab-2 lose their connection")
            away = {one.metadata.labels["rkfleet.dev/site"] for one in await boards(client) if ready(one) != "True"}
            assert away == {"lab-2"}
            await eventually(all_ready, "they are back after the outage")

            before = {one.metadata.name: one.status.session.number for one in await boards(client)}
            os.kill(int((tmp_path / "fleet/run/controller.pid").read_text()), signal.SIGKILL)
            await eventually(lambda: come_again(client, before), "every board is in session with the controller that was started again")
            assert {one.metadata.uid: one.spec.board_name for one in await replicas(client)} == placed, "no replica moved"

            assert await stop(process) == 0
            before = {one.metadata.name: one.status.session.number for one in await boards(client)}
            second = await stack.enter_async_context(simulate(tmp_path, fleet))
            await eventually(lambda: come_again(client, before), "the same boards come back with their kept keys")
            assert await stop(second) == 0
            refused = await stack.enter_async_context(simulate(tmp_path, fleet, "--state", str(tmp_path / "other.json")))
            assert await asyncio.wait_for(refused.wait(), 30) == 4
        said = (tmp_path / "hollow.log").read_text()
        assert "outages[0] (site lab-2): 15 boards lose their connection for 3 s" in said
        assert "exist already and their keys are not here" in said
        assert all("hollow" in line and "simulated" in line for line in said.splitlines() if not line.startswith(("error:", "{")))

    asyncio.run(story())


async def come_again(client: ApiClient, before: dict[str, int]) -> bool:
    """Whether every board has opened a session since."""
    with contextlib.suppress(Unavailable):  # The controller is away.
        found = await boards(client)
        return all(one.status.session.number > before[one.metadata.name] and ready(one) == "True" for one in found)
    return False
