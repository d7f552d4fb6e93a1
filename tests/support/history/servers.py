"""The servers of one history: started, killed and started again, as its plan says.

In: a directory and a database. Out: where the servers are (`Endpoint`), and when they die. It talks to `server.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from rkfleet.ports import free_port

__all__ = ["Endpoint", "Forks", "Server", "forks"]

START_SECONDS_MAX = 30.0


class Endpoint(msgspec.Struct, frozen=True):
    """How a client reaches a server."""

    url: str
    token: str
    context: ssl.SSLContext


class Forks:
    """The process whose forks the servers are; commands go one at a time."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log
        self._turn = asyncio.Lock()

    async def ask(self, *command: Any) -> list[Any]:
        """Send a command and return its answer."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        async with self._turn, asyncio.timeout(START_SECONDS_MAX):
            stdin.write(msgspec.json.encode(command) + b"\n")
            line = await stdout.readline()
        assert line, f"the servers ended: {self._log.read_text()[-2000:]}"
        answer: list[Any] = msgspec.json.decode(line)
        return answer


class Server:
    """One server, on the same port each time.

    Attributes:
        pid: Of its process; 0 while it is down.
    """

    def __init__(self, forks: Forks, directory: Path, place: str, log_events: int, fault: str = "") -> None:
        self._forks = forks
        self._directory = directory
        self._place = place
        self._log_events = log_events
        self._fault = fault
        self._port = free_port()
        self.pid = 0
        directory.mkdir(parents=True, exist_ok=True)

    async def start(self) -> str:
        """Start it; return why it did not, or nothing."""
        answer, what = await self._forks.ask("start", str(self._directory), self._port, self._place, self._log_events, self._fault)
        if answer == "ready":
            self.pid = what
            return ""
        return str(what)

    async def kill(self) -> None:
        """Kill it with SIGKILL; when this returns it is gone."""
        if self.pid:
            await self._forks.ask("kill", self.pid)
            self.pid = 0

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def endpoint(self) -> Endpoint:
        """Return how to reach it; after its first start."""
        config = yaml.safe_load((self._directory / "kubeconfig").read_text())
        ca = msgspec.json.decode(f'"{config["clusters"][0]["cluster"]["certificate-authority-data"]}"', type=bytes).decode()
        context = ssl.create_default_context(cadata=ca)
        return Endpoint(f"https://127.0.0.1:{self._port}", (self._directory / "token").read_text(), context)


@contextlib.asynccontextmanager
async def forks(directory: Path) -> AsyncIterator[Forks]:
    """Run the process of the servers; it and they end with the block."""
    log = directory / "servers.log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.history.server",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=output, env=dict(os.environ),
        )  # fmt: skip
    try:
        yield Forks(process, log)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(START_SECONDS_MAX):
            await process.wait()
