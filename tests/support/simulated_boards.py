"""Hosts of simulated boards in this event loop, against a controller's session side and its API with the enrolment routes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import msgspec

from controller.api.kubeconfig import kubeconfig, write_kubeconfig
from controller.store.base import decode_item
from rkfleet import simulated
from rkfleet.assignment import AssignedFile, AssignedReplica, Assignment, ServingParameters
from rkfleet.kinds import Board
from rkfleet.ports import free_port
from simulation.boards import app as boards_app
from simulation.boards.config import Config
from tests.support.enrolling import enrolling_api
from tests.support.sessions import SessionWorld, board_ref, session_world, until

PLACEHOLDER = simulated.MAGIC + b"model: Qwen2-0.5B\n"


@dataclass
class SimulatedWorld:
    """A controller that boards can join, and the admin's kubeconfig."""

    sessions: SessionWorld
    directory: Path
    kubeconfig: Path

    async def board(self, name: str) -> Board:
        """Return a Board as it is stored."""
        return decode_item(Board, await self.sessions.store.get(board_ref(name)))

    async def reported(self, name: str) -> Board:
        """Return a Board once its agent has said what it is."""

        async def level() -> Board | None:
            board = await self.board(name)
            return board if board.status.soc else None

        found: Board = await until(level)
        return found

    async def assign(self, name: str) -> None:
        """Let a board serve a placeholder, which is put on its disk as a fetch would."""
        digest = hashlib.sha256(PLACEHOLDER).hexdigest()
        whole = self.directory / "boards" / name / "artifacts" / "sha256" / digest
        whole.parent.mkdir(parents=True, exist_ok=True)
        whole.write_bytes(PLACEHOLDER)
        uid = await self.sessions.create_replica(f"on-{name}", name)
        replica = AssignedReplica(
            namespace="default", name=f"on-{name}", uid=uid, generation=1, model="qwen2", served_model_name="chat", variant="any",
            soc="any", dtype="w8a8", runtime="rkllm", reference_model="Qwen2-0.5B", memory_bytes=700 << 20,
            files=(AssignedFile(path="model.rkllm", digest=f"sha256:{digest}", size_bytes=len(PLACEHOLDER)),),
            serving=ServingParameters(context_tokens=4096, max_output_tokens=4000),
        )  # fmt: skip
        await self.sessions.want(name, Assignment(replicas=(replica,)))

    def config(self, **fields: Any) -> Config:
        """Return the configuration of a host whose directory is always the same."""
        made = Config(
            data_dir=self.directory / "boards", boards={"rk3588": 2, "rk3576": 1}, kubeconfig=self.kubeconfig, ops_port=free_port(),
            load_speedup=10.0,
        )  # fmt: skip
        return msgspec.structs.replace(made, **fields)


@contextlib.asynccontextmanager
async def simulated_world(directory: Path) -> AsyncIterator[SimulatedWorld]:
    """Run session side and API in this event loop."""
    async with session_world(directory) as world, enrolling_api(world) as listener:
        token = world.tokens.issue_api_token("ada", "admin")
        written = kubeconfig(server=listener.url, ca_pem=world.pki.ca_pem("servers").encode(), token=token)
        write_kubeconfig(directory / "kubeconfig", written)
        yield SimulatedWorld(world, directory, directory / "kubeconfig")


class RunningHost:
    """A host that runs; `http` speaks to its listener."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self.http = http

    async def is_ready(self) -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return (await self.http.get("/readyz")).status_code == 200
        return False

    async def boards(self) -> Mapping[str, dict[str, Any]]:
        """Return what it says of each board."""
        with contextlib.suppress(httpx2.TransportError):
            return {one["name"]: one for one in (await self.http.get("/boards")).json()["boards"]}
        return {}

    async def states(self) -> list[str]:
        """Return the states of all boards, sorted."""
        return sorted(one["state"] for one in (await self.boards()).values())


@contextlib.asynccontextmanager
async def running_host(config: Config) -> AsyncIterator[RunningHost]:
    """Run a host for as long as the block runs; at the end its boards shut down cleanly."""
    async with (
        asyncio.TaskGroup() as tasks,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{config.ops_port}", trust_env=False, timeout=20) as http,
    ):
        running = tasks.create_task(boards_app.run(config))
        try:
            yield RunningHost(http)
        finally:
            running.cancel()
