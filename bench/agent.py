"""What an agent costs a board: VmRSS with one model loaded and after twenty requests, and the CPU that it takes while nobody asks.

`python -m bench.agent [--requests N]`. A whole local fleet is started with its own commands; the requests go through the gateway, half of
them streamed. The worker is a process of its own and does not count: the goal is what an agent costs a board whatever it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
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
QUIET_SECONDS: Final = 60.0  # Twelve looks of the loop and six heartbeats.
CPU_PERCENT_MAX: Final = 0.5


async def measure(directory: Path, clock: Clock, requests: int) -> list[Result]:
    async with serving_fleet(directory, clock) as fleet:
        pid = agent_pid(fleet)
        loaded = resident_mib(pid)
        await send(fleet, clock, requests)
        await clock.sleep(IDLE_SECONDS)
        assert agent_pid(fleet) == pid, "the agent was restarted during the benchmark"
        cpu_percent = await cpu_percent_at_rest(pid, clock)
        return [
            result("agent_cpu_idle", "% of a core", [cpu_percent], goal=Goal("value", "<=", CPU_PERCENT_MAX)),
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


async def cpu_percent_at_rest(pid: int, clock: Clock) -> float:
    """Return which share of a core the process takes over QUIET_SECONDS in which nobody asks anything."""
    began, used = clock.monotonic(), cpu_seconds(pid)
    await clock.sleep(QUIET_SECONDS)
    return 100 * (cpu_seconds(pid) - used) / (clock.monotonic() - began)


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process. Source: proc_pid_stat(5), fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Return VmRSS of a process. Source: proc_pid_status(5); the kernel writes kibibytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise LookupError(f"process {pid} has no VmRSS: it has ended")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.agent", description="Memory and CPU of the agent with one model loaded.")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="requests before measuring (default %(default)s)")
    options = parser.parse_args(arguments)
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="rkfleet-bench-") as directory:
        results = asyncio.run(measure(Path(directory) / "fleet", clock, options.requests))
    return finish("agent", results, clock)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
