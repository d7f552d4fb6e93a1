"""A board without a fleet as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx2

from rkfleet.ports import free_port
from tests.support.agents import RunningAgent
from tests.support.sessions import until


@dataclass
class Alone(RunningAgent):
    """`log` holds what a person would read; `port` is where it listens."""

    port: int = 0

    def said(self) -> str:
        return self.log.read_text()

    async def until_said(self, words: str) -> None:
        await until(lambda: words in self.said(), 60)

    async def interrupt(self) -> int:
        """Press Ctrl-C."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(15):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def standalone(root: Path, *options: str, ready: bool = True, program: str = "agent") -> AsyncIterator[Alone]:
    """Run `rkfleet agent run --standalone` with these options, or `tests.support.quick_agent`; it ends with the block."""
    port, log = free_port(), root / "said"
    command = (sys.executable, "-m", program, "--standalone", "--data-dir", str(root / "data"), "--port", str(port), *options)
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, verify=False, timeout=60) as client:
            alone = Alone(process, client, "", log, port)
            if ready:
                await alone.until_said("ready after")
            yield alone
    finally:
        if process.returncode is None:
            process.terminate()
            async with asyncio.timeout(15):
                await process.wait()
