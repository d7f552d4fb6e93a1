"""How the host of simulated boards starts and ends when there is no fleet yet."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import httpx2

from rkfleet.ports import Ports
from tests.support.up import eventually


def test_a_host_without_a_fleet_says_what_it_waits_for_and_dies_with_its_parent(tmp_path: Path) -> None:
    """The reason stands in /readyz and at each board; a second host of the same directory is turned away."""

    async def body() -> None:
        port = Ports(tmp_path / "ports.json").choose("ops", 0)
        lifeline, held = os.pipe()
        command = [
            sys.executable, "-m", "simulation.boards", "--data-dir", str(tmp_path / "host"), "--boards", "rk3588=1,rk3576=1",
            "--kubeconfig", str(tmp_path / "kubeconfig"), "--ops-port", str(port), "--lifeline-fd", str(lifeline),
        ]  # fmt: skip
        with (tmp_path / "log").open("wb") as log:
            host = await asyncio.create_subprocess_exec(*command, stderr=log, pass_fds=(lifeline,))
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            wanted = (
                f"2 of 2 boards are not in session (rk3588-1, rk3576-1); rk3588-1: kubeconfig '{tmp_path / 'kubeconfig'}' does not exist"
            )

            async def waits() -> bool:
                try:
                    answer = await http.get("/readyz")
                except httpx2.ConnectError:
                    return False
                return answer.status_code == 503 and answer.text.startswith(wanted)

            await eventually(waits, lambda: (tmp_path / "log").read_text()[-2000:])
            assert (await http.get("/healthz")).status_code == 200
            boards = (await http.get("/boards")).json()["boards"]
            assert [(one["name"], one["state"]) for one in boards] == [("rk3588-1", "away"), ("rk3576-1", "away")]
        second = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, pass_fds=(lifeline,))
        _, said = await second.communicate()
        assert second.returncode == 1
        assert f"is in use by process {host.pid}".encode() in said
        os.close(held)
        os.close(lifeline)
        assert await asyncio.wait_for(host.wait(), 10) == 0
        assert '"board":"rk3576-1"' in (tmp_path / "log").read_text()

    asyncio.run(body())
