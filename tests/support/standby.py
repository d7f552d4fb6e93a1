"""Controllers that share a PostgreSQL database, as real processes, and the boards that are in session with whichever leads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import httpx2

from rkfleet.client import ApiClient, load_cluster
from rkfleet.kinds import Board
from rkfleet.ports import free_port
from tests.support.postgres import postgres_url
from tests.support.up import CLOCK, eventually

LEASE_SECONDS = 3


class Controller:
    """One controller process.

    Attributes:
        url: Of its API.
        directory: Its data.
    """

    def __init__(self, directory: Path, database_url: str, ports: tuple[int, int, int], sessions: str) -> None:
        self.directory = directory
        self.api_port, self.grpc_port, self.ops_port = ports
        self.url = f"https://127.0.0.1:{self.api_port}"
        self._database_url = database_url
        self._sessions = sessions
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and wait until it serves."""
        command = [
            sys.executable, "-m", "controller", "--data-dir", str(self.directory), "--api-port", str(self.api_port),
            "--grpc-port", str(self.grpc_port), "--ops-port", str(self.ops_port), "--session-address", self._sessions,
            "--lease-seconds", str(LEASE_SECONDS), "--registry-url", f"https://127.0.0.1:{free_port()}",
        ]  # fmt: skip
        with (self.directory.parent / f"{self.directory.name}.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, stderr=log, env={**os.environ, "RKFLEET_DATABASE_URL": self._database_url}
            )
        await eventually(self.serves, self.last_words)

    async def serves(self) -> bool:
        """Whether it answers."""
        return (await self._ops("/readyz")) == 200

    async def leads(self) -> bool:
        """Whether it says that it leads."""
        with contextlib.suppress(httpx2.TransportError):
            async with httpx2.AsyncClient(trust_env=False) as http:
                return "rkfleet_controller_leader 1.0" in (await http.get(f"http://127.0.0.1:{self.ops_port}/metrics")).text
        return False

    async def _ops(self, path: str) -> int:
        try:
            async with httpx2.AsyncClient(trust_env=False) as http:
                return (await http.get(f"http://127.0.0.1:{self.ops_port}{path}")).status_code
        except httpx2.TransportError:
            return 0

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end and return its status."""
        assert self._process is not None
        async with asyncio.timeout(20):
            return await self._process.wait()

    async def stop(self) -> None:
        """Stop it, if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            await self.ended()

    def client(self) -> ApiClient:
        """Return a client of its API, as an admin."""
        return ApiClient(load_cluster(self.directory / "kubeconfig"), CLOCK)

    def last_words(self) -> str:
        """Return the end of its log."""
        return (self.directory.parent / f"{self.directory.name}.log").read_text()[-4000:]


class Fleet:
    """Two controllers and the boards of one host."""

    def __init__(self, controllers: tuple[Controller, Controller]) -> None:
        self.controllers = controllers

    async def leader(self) -> Controller:
        """Wait until exactly one leads, and return it."""
        found: list[Controller] = []

        async def one() -> bool:
            found[:] = [each for each in self.controllers if await each.leads()]
            return len(found) == 1

        await eventually(one, lambda: "\n".join(each.last_words() for each in self.controllers))
        return found[0]

    def other(self, controller: Controller) -> Controller:
        """Return the one that is not this."""
        return next(each for each in self.controllers if each is not controller)


@contextlib.asynccontextmanager
async def standby_fleet(directory: Path, boards: str = "rk3588=2") -> AsyncIterator[Fleet]:
    """Run two controllers and a host of simulated boards."""
    url = postgres_url()
    ports = [(free_port(), free_port(), free_port()) for _ in range(2)]
    sessions = ",".join(f"127.0.0.1:{grpc_port}" for _, grpc_port, _ in ports)
    first, second = (Controller(directory / f"c{number}", url, ports[number], sessions) for number in range(2))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(first.stop)
        await first.start()
        shutil.copytree(first.directory / "pki", second.directory / "pki")  # As the guide says.
        shutil.copy(first.directory / "encryption.key", second.directory / "encryption.key")
        stack.push_async_callback(second.stop)
        await second.start()
        await stack.enter_async_context(_board_host(directory / "boards", boards, first.directory / "kubeconfig"))
        yield Fleet((first, second))


@contextlib.asynccontextmanager
async def _board_host(directory: Path, boards: str, kubeconfig: Path) -> AsyncIterator[None]:
    command = [
        sys.executable, "-m", "simulation.boards", "--data-dir", str(directory), "--boards", boards, "--kubeconfig", str(kubeconfig),
        "--ops-port", str(free_port()),
    ]  # fmt: skip
    with (directory.parent / "boards.log").open("ab") as log:
        host = await asyncio.create_subprocess_exec(*command, stderr=log)
    try:
        yield
    finally:
        host.terminate()
        async with asyncio.timeout(20):
            await host.wait()


async def ready_boards(controller: Controller) -> dict[str, tuple[str, str]]:
    """Return status and reason of `Ready` of every board, as this controller shows them."""
    async with controller.client() as api:
        boards = (await api.list(Board.resource.name)).items
    return {board["metadata"]["name"]: _ready(board.get("status", {}).get("conditions", ())) for board in boards}


def _ready(conditions: Iterable[dict[str, str]]) -> tuple[str, str]:
    return next(((one["status"], one["reason"]) for one in conditions if one["type"] == "Ready"), ("", ""))
