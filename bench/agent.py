"""Memory of the agent: VmRSS when idle, with one model loaded, after twenty requests.

`python -m bench.agent [--requests N]`. A whole local fleet is started with its own commands; the requests go through the gateway, half of
them streamed. The worker is a process of its own and does not count: the goal is what an agent costs a board whatever it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx2

from bench._fleet import DEPLOYMENT, agent_pid, serving_fleet
from bench.report import Goal, Result, finish, result
from rkfleet.cli.chat import ask
from rkfleet.cli.fleet import LocalFleet
from rkfleet.clock import Clock, SystemClock

REQUESTS: Final = 20
IDLE_SECONDS: Final = 12.0  # Two looks of the agent's loop and two heartbeats: nothing of the last request is left.
RSS_MIB_MAX: Final = 60.0


async def measure(directory: Path, clock: Clock, requests: int) -> list[Result]:
    async with serving_fleet(directory, clock) as fleet:
        pid = agent_pid(fleet)
        loaded = resident_mib(pid)
        await send(fleet, clock, requests)
        await clock.sleep(IDLE_SECONDS)
        assert agent_pid(fleet) == pid, "the agent was restarted during the benchmark"
        return [
            result("agent_rss_model_loaded", "MiB", [loaded]),
            result("agent_rss_idle_after_requests", "MiB", [resident_mib(pid)], goal=Goal("value", "<=", RSS_MIB_MAX)),
        ]


async def send(fleet: LocalFleet, clock: Clock, requests: int) -> None:
    url = fleet.endpoints.gateway
    async with httpx2.AsyncClient(timeout=120.0, trust_env=False) as http:
        for number in range(requests):
            body: dict[str, Any] = {
                "model": DEPLOYMENT,
                "messages": [{"role": "user", "content": f"Request {number}: tell me something about the number {number}."}],
                "max_tokens": 16,
            }
            if number % 2:
                await ask(http, url, body, clock)
            else:
                (await http.post(f"{url}/v1/chat/completions", json=body)).raise_for_status()


def resident_mib(pid: int) -> float:
    """Return VmRSS of a process. Source: proc_pid_status(5); the kernel writes kibibytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise LookupError(f"process {pid} has no VmRSS: it has ended")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.agent", description="Memory of the agent with one model loaded.")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="requests before measuring (default %(default)s)")
    options = parser.parse_args(arguments)
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="rkfleet-bench-") as directory:
        results = asyncio.run(measure(Path(directory) / "fleet", clock, options.requests))
    return finish("agent", results, clock)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
