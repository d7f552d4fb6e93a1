"""Simulated boards: what a hundred of them cost in one process, and how true their speed is at the client.

`python -m bench.simulated [--boards N] [--seconds N]`. A whole local fleet is started with its own commands: a real controller, registry
and gateway, and one host process with half of the boards RK3588 and half RK3576. Then Qwen2-1.5B is deployed, one replica for each board.

Measured of the host process: CPU while idle, before and after the models are loaded, and resident memory for each board, everything that
the process needs itself included. Measured at the client, through the gateway: tokens per second against the row of the table, for single
streams and with streams on all boards at the same time. Idle is only what holds its sessions: all boards are in session before and after,
and none has taken a new one meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx2

from bench.agent import resident_mib
from bench.report import Goal, Result, finish, result
from rkfleet.benchmarks import load_table
from rkfleet.cli.chat import Answer, ask
from rkfleet.cli.fleet import SIMULATED, FleetPlan, LocalFleet, local_fleet
from rkfleet.cli.rollout import follow_rollout
from rkfleet.cli.samples import run_command
from rkfleet.clock import Clock, SystemClock
from rkfleet.conditions import READY
from rkfleet.kinds import Board, ModelDeployment
from rkfleet.meta import Ref

MODEL: Final = "Qwen2-1.5B"
BOARDS: Final = 100
SETTLE_SECONDS: Final = 15.0  # Nothing of the start is left after three looks of each agent's loop.
IDLE_SECONDS: Final = 60.0  # Six heartbeats of each board, and one full assertion of each board's status.
OUTPUT_TOKENS: Final = 64
SINGLES: Final = 6
IDLE_CORE_SHARE_MAX: Final = 0.10
MIB_PER_BOARD_MAX: Final = 12.0
RATE_ERROR_MAX: Final = 0.05
ROLLOUT_SECONDS_MAX: Final = 180.0


async def measure(directory: Path, clock: Clock, boards: int, seconds: float) -> list[Result]:
    plan = FleetPlan(
        data_dir=directory, api_port=0, grpc_port=0, registry_port=0, gateway_port=0, cpu_boards=0,
        simulated={"rk3588": boards - boards // 2, "rk3576": boards // 2},
    )  # fmt: skip
    async with local_fleet(plan, clock, _say) as fleet:
        pid = int((directory / "run" / f"{SIMULATED}.pid").read_text())
        await clock.sleep(SETTLE_SECONDS)
        idle = await idle_core_share(fleet, pid, clock, seconds, boards)
        empty_mib = resident_mib(pid)
        await deploy(fleet, boards)
        await clock.sleep(SETTLE_SECONDS)
        loaded = await idle_core_share(fleet, pid, clock, seconds, boards)
        # No certificates are looked up for plain HTTP; one client, because a hundred would be a second of CPU of this process.
        limits = httpx2.Limits(max_connections=boards)
        async with httpx2.AsyncClient(timeout=120.0, trust_env=False, verify=False, limits=limits) as http:
            singles = [await stream(http, fleet, clock) for _ in range(SINGLES)]
            await asyncio.gather(*(stream(http, fleet, clock, 1) for _ in range(boards)))  # the gateway's connections to all boards
            busy, since = cpu_seconds(pid), clock.monotonic()
            together = await asyncio.gather(*(stream(http, fleet, clock) for _ in range(boards)))
            busy = (cpu_seconds(pid) - busy) / (clock.monotonic() - since)
        assert int((directory / "run" / f"{SIMULATED}.pid").read_text()) == pid, "the host was restarted during the benchmark"
        asked = {answer.headers["x-rkfleet-board"] for answer in together}
        assert len(asked) == boards, f"{boards} streams at once reached {len(asked)} boards"
        return [
            result("host_idle_core_share", "cores", [idle], goal=Goal("value", "<=", IDLE_CORE_SHARE_MAX)),
            result("host_idle_core_share_models_loaded", "cores", [loaded], goal=Goal("value", "<=", IDLE_CORE_SHARE_MAX)),
            result("host_rss_per_board", "MiB", [empty_mib / boards], goal=Goal("value", "<=", MIB_PER_BOARD_MAX)),
            result("host_rss_per_board_after_streams", "MiB", [resident_mib(pid) / boards], goal=Goal("value", "<=", MIB_PER_BOARD_MAX)),
            result("rate_error_single_stream", "share", [rate_error(one) for one in singles], goal=Goal("value", "<=", RATE_ERROR_MAX)),
            result("rate_error_all_boards", "share", [rate_error(one) for one in together]),
            result("host_core_share_all_boards", "cores", [busy]),
            result("first_token_added_all_boards", "s", [statistics.median(first_token_added(one) for one in together)]),
        ]


async def deploy(fleet: LocalFleet, replicas: int) -> None:
    """Push the placeholders, deploy one replica for each board and wait until all serve."""
    kubeconfig = fleet.endpoints.kubeconfig
    await run_command([sys.executable, "-m", "rkfleet.cli.main", "model", "push", "--simulated", MODEL, "--kubeconfig", kubeconfig])
    async with fleet.client() as client:
        await client.create(
            Ref(ModelDeployment.resource.name, "default", "qwen2"),
            {
                "apiVersion": "rkfleet.dev/v1alpha1",
                "kind": "ModelDeployment",
                "metadata": {"name": "qwen2", "namespace": "default"},
                "spec": {"replicas": replicas, "template": {"model": MODEL.lower()}},
            },
        )
        await follow_rollout(client, "default", "qwen2", ROLLOUT_SECONDS_MAX, _say)


async def stream(http: httpx2.AsyncClient, fleet: LocalFleet, clock: Clock, output_tokens: int = OUTPUT_TOKENS) -> Answer:
    """Ask once through the gateway and check that the answer is what it must be."""
    body: dict[str, Any] = {"model": "qwen2", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": output_tokens}
    answer = await ask(http, fleet.endpoints.gateway, body, clock)
    assert answer.simulated, "an answer of a simulated board did not say so"
    assert answer.output_tokens == output_tokens, f"{answer.output_tokens} tokens instead of {output_tokens}"
    return answer


def rate_error(answer: Answer) -> float:
    """Return by which share the client's tokens per second differ from the row."""
    expected = load_table().get(MODEL, *_dtype_and_soc(answer)).tokens_per_second
    assert answer.decode_tokens_per_second is not None
    return abs(answer.decode_tokens_per_second / expected - 1)


def first_token_added(answer: Answer) -> float:
    """Return how much later than the row the client had its first token."""
    assert answer.time_to_first_token_seconds is not None
    return answer.time_to_first_token_seconds - load_table().get(MODEL, *_dtype_and_soc(answer)).time_to_first_token_seconds


def _dtype_and_soc(answer: Answer) -> tuple[str, str]:
    soc, _, dtype = answer.headers["x-rkfleet-variant"].partition("-")
    return dtype, soc


async def idle_core_share(fleet: LocalFleet, pid: int, clock: Clock, seconds: float, boards: int) -> float:
    """Return how much of one core the host used while every board held its session and nobody asked for anything."""
    sessions = await session_numbers(fleet)
    assert len(sessions) == boards, f"{len(sessions)} of {boards} boards are in session"
    before, since = cpu_seconds(pid), clock.monotonic()
    await clock.sleep(seconds)
    share = (cpu_seconds(pid) - before) / (clock.monotonic() - since)
    assert await session_numbers(fleet) == sessions, "a board lost its session while nothing happened"
    return share


async def session_numbers(fleet: LocalFleet) -> dict[str, int]:
    """Return the number of the session of each board that is Ready, as the API tells."""
    async with fleet.client() as client:
        listed = (await client.list(Board.resource.name)).items
    ready = [one for one in listed if any(said["type"] == READY and said["status"] == "True" for said in one["status"]["conditions"])]
    return {one["metadata"]["name"]: one["status"]["session"]["number"] for one in ready}


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process. Source: proc_pid_stat(5), fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.simulated", description="Cost and truth of simulated boards in one process.")
    parser.add_argument("--boards", type=int, default=BOARDS, help="boards, half of each chip (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=IDLE_SECONDS, help="how long CPU is counted (default %(default)s)")
    options = parser.parse_args(arguments)
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="rkfleet-bench-") as directory:
        results = asyncio.run(measure(Path(directory) / "fleet", clock, options.boards, options.seconds))
    return finish("simulated", results, clock)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
