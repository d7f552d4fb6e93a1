"""Older and newer clients than the one that the API claims to be made for: what their users do every day."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.api import running_api
from tests.support.kubectl import Kubectl
from tests.support.objects import deployment


@pytest.mark.kubectl
@pytest.mark.parametrize("minor", [28, 30, 33])
def test_the_daily_commands_work_with_other_versions(tmp_path: Path, minor: int) -> None:
    async def run() -> None:
        async with running_api(tmp_path) as api:
            kubectl = Kubectl(api.kubeconfig, tmp_path / "home", minor)
            assert "created" in await kubectl.ok("apply", "-f", "-", stdin=deployment(replicas=2))
            assert "configured" in await kubectl.ok("apply", "-f", "-", stdin=deployment(replicas=3))
            unknown = await kubectl.run("apply", "-f", "-", stdin=deployment(replicaz=3))
            assert 'unknown field "spec.replicaz"' in unknown.err
            assert "scaled" in await kubectl.ok("scale", "mdep/qwen", "--replicas=4")
            assert " 4 " in await kubectl.ok("get", "mdep")
            assert "Replicas:" in await kubectl.ok("describe", "mdep", "qwen")
            assert "deleted" in await kubectl.ok("delete", "mdep", "qwen")

    asyncio.run(run())
