"""Disks without room, real ones, under each program that keeps something: it says so with the reason, and recovers by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from rkfleet.cli.samples import push_command
from rkfleet.errors import Unavailable
from rkfleet.kinds import Board, Namespace
from rkfleet.meta import Ref
from rkfleet.sample import SMOLLM2, ensure_sample
from tests.support.small_disks import SmallDisks
from tests.support.up import Up, chat, eventually, up

pytestmark = [pytest.mark.processes, pytest.mark.model]

MANIFEST = "manifests/deployments/smollm2.yaml"
AGENT = "agents/cpu-1"
RECOVER_SECONDS_MAX = 40.0


def test_full_disks_are_told_with_the_reason_and_recover_by_themselves(tmp_path: Path) -> None:
    """Registry: a push is refused. Controller: writes are refused, reads go on. Board: a condition. None is restarted."""
    disks = SmallDisks(tmp_path / "fleet", {"registry": "120m", "controller": "24m", AGENT: "150m"})

    async def story() -> None:
        sample = await ensure_sample(SMOLLM2)
        async with up(tmp_path / "fleet", "--board-memory", "4Gi", before=disks.before) as fleet:
            pids = {name: fleet.pid(name) for name in ("controller", "registry", "agent-cpu-1")}
            await _a_push_finds_the_registry_full(fleet, disks, sample)
            await _writes_find_the_controller_full(fleet, disks)
            await _a_board_is_full(fleet, disks)
            assert {name: fleet.pid(name) for name in pids} == pids, "no program was restarted"

    asyncio.run(story())


async def _a_push_finds_the_registry_full(fleet: Up, disks: SmallDisks, sample: Path) -> None:
    """It says why nothing moves, and goes on by itself when there is room."""
    push = await asyncio.create_subprocess_exec(
        *push_command(SMOLLM2, sample, fleet.kubeconfig), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert push.stderr is not None
    async with asyncio.timeout(30):
        why = (await push.stderr.readline()).decode()
        assert "the registry's disk is full" in why
        assert "bytes do not fit" in why
        disks.resize(fleet, "registry", "400m")
        printed, complained = await push.communicate()
    assert push.returncode == 0, complained
    assert b"created" in printed


async def _writes_find_the_controller_full(fleet: Up, disks: SmallDisks) -> None:
    numbers = iter(range(1000))

    async def write() -> str:
        name = f"written-{next(numbers)}"
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        try:
            await client.create(Ref(Namespace.resource.name, "", name), namespace)
        except Unavailable as error:
            return error.message
        return ""

    async with fleet.client() as client:
        with _filled(disks.inside(fleet, "controller")):
            refusals: list[str] = []

            async def refused() -> bool:
                refusals.append(await write())
                return bool(refusals[-1])

            await eventually(refused, "writes are refused once the disk is full")
            assert "the disk is full" in refusals[-1]
            boards = await client.list(Board.resource.name)
            assert [board["metadata"]["name"] for board in boards.items] == ["cpu-1"], "reads go on"

        async def written() -> bool:
            return not await write()

        await eventually(written, "writes are taken again", 10.0)


@contextlib.contextmanager
def _filled(folder: Path) -> Iterator[None]:
    """Take all room of a file system for as long as the block runs."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(os.urandom(4096))
    try:
        yield
    finally:
        filler.unlink()


async def _a_board_is_full(fleet: Up, disks: SmallDisks) -> None:
    fleet.run("apply", "-f", MANIFEST)
    board = Ref(Board.resource.name, "", "cpu-1")
    said: dict[str, Any] = {}

    async with fleet.client() as client, httpx2.AsyncClient(trust_env=False) as http:

        async def pressed(status: str) -> bool:
            conditions = (await client.get(board))["status"].get("conditions", ())
            said.update(next((one for one in conditions if one["type"] == "DiskPressure"), {}))
            return bool(said.get("status") == status)

        async def answers() -> bool:
            return (await chat(http, fleet, "hello", max_tokens=2)).status_code == 200

        await eventually(lambda: pressed("True"), "the board is under DiskPressure")
        assert said["reason"] == "DiskFull"
        assert "do not fit" in said["message"], said
        described = await asyncio.to_thread(fleet.run, "get", "replicas", "-o", "json")
        assert '"DiskFull"' in described.stdout
        assert (await chat(http, fleet, "hello")).status_code == 503
        disks.resize(fleet, AGENT, "600m")
        await eventually(lambda: pressed("False"), "the pressure is gone", RECOVER_SECONDS_MAX)
        await eventually(answers, "the model answers", RECOVER_SECONDS_MAX)
