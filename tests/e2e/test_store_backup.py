"""A fleet that is backed up while it runs, changed, and restored: boards, watchers and clients recover by themselves."""

from __future__ import annotations

import asyncio
import json
import subprocess
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from controller.store.sql.jump import JUMP_REVISIONS
from rkfleet.client import ApiClient
from rkfleet.errors import Expired
from rkfleet.kinds import Event, ModelDeployment, Replica
from rkfleet.kinds.base import Object
from tests.support.up import Up, eventually, up

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

FLAGS = ("--cpu-boards", "0", "--simulated", "rk3588=2", "--load-speedup", "50")


async def objects(client: ApiClient, kind: type[Object]) -> list[dict[str, Any]]:
    return list((await client.list(kind.resource.name, "default")).items)


async def placed(client: ApiClient) -> dict[str, str]:
    """Return the Replica of each board, of those that are Ready."""
    return {
        one["spec"]["boardName"]: one["metadata"]["name"]
        for one in await objects(client, Replica)
        if {"Ready": "True"}.items() <= {each["type"]: each["status"] for each in one.get("status", {}).get("conditions", [])}.items()
    }


async def has_placed(client: ApiClient, count: int) -> bool:
    return len(await placed(client)) == count


async def rewound(client: ApiClient) -> bool:
    return any(one["reason"] == "AssignmentRewound" for one in await objects(client, Event))


def deploy(fleet: Up, folder: Path) -> None:
    fleet.run("model", "push", "--simulated", "qwen2-1.5b")
    manifest = {
        "apiVersion": "rkfleet.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "qwen2"},
        "spec": {"replicas": 1, "placement": {"boardLostSeconds": 300}, "template": {"model": "qwen2-1.5b"}},
    }  # fmt: skip
    (folder / "qwen2.json").write_text(json.dumps(manifest))
    fleet.run("apply", "-f", str(folder / "qwen2.json"))
    fleet.run("rollout", "status", "qwen2", "--timeout", "60")


async def newest(client: ApiClient) -> str:
    return (await client.list(ModelDeployment.resource.name, "default")).resource_version


def test_a_fleet_is_what_it_was_after_a_restore(tmp_path: Path) -> None:
    directory, file = tmp_path / "fleet", tmp_path / "backup.tar"

    async def story() -> None:
        async with up(directory, *FLAGS) as fleet, fleet.client() as client:
            await asyncio.to_thread(deploy, fleet, tmp_path)
            before = await placed(client)
            assert len(before) == 1
            said = fleet.run("controller", "backup", "--data-dir", str(directory / "controller"), "--to", str(file)).stdout
            assert f"wrote {file}: fleet f-" in said
            assert "keep it as you keep passwords" in said
            fleet.run("scale", "modeldeployment/qwen2", "--replicas", "2")
            await eventually(lambda: has_placed(client, 2), "two replicas are ready")
            refused = fleet.run("controller", "restore", "--data-dir", str(directory / "controller"), "--from", str(file), check=False)
            assert "is in use by process" in refused.stderr
            known = await newest(client)
        await asyncio.to_thread(restore, fleet, directory, file)
        async with up(directory, *FLAGS) as fleet, fleet.client() as client:
            assert int(await newest(client)) > int(known) + JUMP_REVISIONS // 2
            async with aclosing(client.watch(ModelDeployment.resource.name, "default", resource_version=known)) as watch:
                assert (await anext(watch))[0] == "OPENED"
                with pytest.raises(Expired):
                    await anext(watch)

            async def restored() -> bool:
                return await placed(client) == before

            await eventually(restored, "the replica of the backup serves, and no other")
            await eventually(lambda: rewound(client), "a board that had more is told to have less")
            assert [one["spec"]["replicas"] for one in await objects(client, ModelDeployment)] == [1]
            fleet.run("scale", "modeldeployment/qwen2", "--replicas", "2")
            await eventually(lambda: has_placed(client, 2), "it goes on from there")

    asyncio.run(story())


def restore(fleet: Up, directory: Path, file: Path) -> None:
    words = ("controller", "restore", "--data-dir", str(directory / "controller"), "--from", str(file))
    done = subprocess.run(fleet.command(*words), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "they are undone" in done.stdout
    assert "tokens" in done.stdout.partition("kept, because they may be newer")[2]
