"""How much one controller carries: hollow boards by the thousand, in session with a real controller process.

`python -m bench.fleet [--boards 1000,5000] [--replicas 1000]`. Controller and registry are started with their own commands, the boards by
`python -m simulation.hollow` in one more process: real enrolment, mutual TLS, the real session protocol, the shipped planner of the board.
The model is a placeholder in the real registry. Nothing here is an NPU, and no board loads anything.

For each size: the boards join; the controller is watched at rest (memory, CPU, loop lag); one deployment is applied and every replica is
timed from the request until a watch shows it Ready, less the time that its load was told to take; the controller is killed, and the time
until every board is back in session is taken. In the same run it is checked that all boards are in session, all replicas Ready, no board
has two while others have none, no replica moved by the restart.

Controller, boards and this script share the machine's cores: wall times hold the cost of both ends. CPU seconds tell them apart.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import httpx2
import msgspec

from bench._control_plane import ControlPlane, control_plane
from bench.agent import resident_mib
from bench.report import Goal, Result, finish, result
from rkfleet.cli.samples import run_command
from rkfleet.client import ApiClient
from rkfleet.clock import Clock, SystemClock
from rkfleet.kinds import Board, ModelDeployment, Replica
from rkfleet.meta import Ref

FETCH_SECONDS: Final = 2.0
LOAD_SECONDS: Final = 3.0
REST_SECONDS: Final = 60.0  # Six heartbeats of each board, and one time of each board at which its whole status is asserted anew.
SETTLE_SECONDS: Final = 15.0
PATIENCE_SECONDS: Final = 900.0
MIB: Final = float(1 << 20)
MODEL: Final = "placeholder"
DEPLOYMENT: Final = "bench"

# Goals, as docs and README give them; RSS and CPU are for 5,000 boards and hold for fewer all the more.
RSS_MIB_MAX: Final = 600.0
CPU_CORES_MAX: Final = 0.25
BACK_SECONDS_MAX: Final = 60.0
ABOVE_LOAD_SECONDS_MAX: Final = 1.0
LAG_MS_MAX: Final = 20.0


class Probe:
    """What the controller process shows of itself from outside."""

    def __init__(self, plane: ControlPlane, clock: Clock) -> None:
        self._plane: Final = plane
        self._clock: Final = clock

    @property
    def pid(self) -> int:
        """Return the controller's process id."""
        return self._plane.controller_pid

    async def metrics(self) -> dict[str, float]:
        """Return every sample by its name with labels, as the text format writes it."""
        async with httpx2.AsyncClient(trust_env=False, timeout=30.0) as http:
            text = (await http.get(self._plane.metrics_url)).text
        samples = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    async def sessions(self) -> int:
        """Return how many boards are in session; -1 while the controller does not answer."""
        try:
            return int((await self.metrics()).get("rkfleet_sessions", 0))
        except httpx2.HTTPError:
            return -1

    async def wait_sessions(self, count: int) -> float:
        """Wait until so many boards are in session; return the seconds that it took."""
        began = self._clock.monotonic()
        while (now := await self.sessions()) < count:
            seconds = self._clock.monotonic() - began
            assert seconds < PATIENCE_SECONDS, f"{now} of {count} boards are in session after {seconds:.0f} s"
            await self._clock.sleep(0.25)
        return self._clock.monotonic() - began


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process. Source: proc_pid_stat(5), fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def lag_ms(before: dict[str, float], after: dict[str, float], quantile: float) -> float:
    """Return a quantile of the loop lag between two looks, interpolated in its bucket; infinity above the last bucket."""
    name = "rkfleet_event_loop_lag_seconds_bucket"
    bounds = sorted((float(key.split('"')[1]), after[key] - before.get(key, 0.0)) for key in after if key.startswith(name))
    wanted, low, below = quantile * bounds[-1][1], 0.0, 0.0
    for bound, count in bounds:
        if count >= wanted and count > below:
            return 1000 * (low + (bound - low) * (wanted - below) / (count - below))
        low, below = bound, count
    return 0.0


@contextlib.asynccontextmanager
async def hollow(directory: Path, plane: ControlPlane, boards: int) -> AsyncIterator[int]:
    """Run hollow boards for as long as the block runs; the block gets the process id."""
    scenario = directory / "scenario.yaml"
    scenario.write_text(f"load: {{fetchSeconds: {FETCH_SECONDS}, loadSeconds: {LOAD_SECONDS}, jitter: 0}}\n")
    command = [sys.executable, "-m", "simulation.hollow", "--boards", str(boards), "--kubeconfig", str(plane.kubeconfig)]
    with (directory / "hollow.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, "--scenario", str(scenario), stdout=log, stderr=log)
    try:
        yield process.pid
        assert process.returncode is None, (directory / "hollow.log").read_text()[-2000:]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 60)
            except TimeoutError:
                process.kill()
                await process.wait()


async def push_placeholder(directory: Path, kubeconfig: str) -> None:
    """Push a file that no runtime loads, as a person would; one variant for any chip, so that all boards are equally good."""
    file = directory / "placeholder.rkllm"
    file.write_bytes(b"RKFLEET-SIMULATED\n" + bytes(1024))
    variant = "name=any,soc=any,dtype=w8a8,runtime=rkllm,context=4096,memory=2530Mi"
    command = [sys.executable, "-m", "rkfleet.cli.main", "model", "push", str(file), "--variant", variant, "--name", MODEL]
    await run_command([*command, "--kubeconfig", kubeconfig])


class Rollout(msgspec.Struct, frozen=True):
    """What became of one deployment: seconds after the request, for each replica, sorted.

    Attributes:
        seen: When a watch showed the Replica.
        placed: When it showed the Replica with a board.
        above: When it showed it Ready, less the time that its load was told to take.
        whole: Until the last one was.
    """

    seen: list[float]
    placed: list[float]
    above: list[float]
    whole: float


async def rollout(client: ApiClient, clock: Clock, replicas: int) -> Rollout:
    """Apply one deployment and watch it come up."""
    applied = clock.monotonic()
    seen: dict[str, float] = {}
    placed: dict[str, float] = {}
    ready: dict[str, float] = {}

    async def see() -> None:
        async for step in client.follow(Replica.resource.name, "default"):
            now = clock.monotonic()
            for replica in step.items:
                name = replica["metadata"]["name"]
                seen.setdefault(name, now)
                if replica["spec"].get("boardName"):
                    placed.setdefault(name, now)
                if condition(replica, "Ready") == "True":
                    ready.setdefault(name, now)
            if len(ready) >= replicas:
                return

    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        tasks.create_task(see())
        await clock.sleep(0.5)  # The watch is open; what follows is what a person waits for.
        applied = clock.monotonic()
        body = {
            "apiVersion": "rkfleet.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": DEPLOYMENT, "namespace": "default"},
            "spec": {"replicas": replicas, "template": {"model": MODEL}},
        }
        await client.create(Ref(ModelDeployment.resource.name, "default", DEPLOYMENT), body)
    above = sorted(moment - applied - FETCH_SECONDS - LOAD_SECONDS for moment in ready.values())
    assert above[0] >= -0.05, f"a replica was Ready {-above[0]:.2f} s before its load could end"
    stages = [sorted(moment - applied for moment in stage.values()) for stage in (seen, placed)]
    return Rollout(*stages, above, clock.monotonic() - applied)


def condition(obj: dict[str, Any], type: str) -> str:
    return next((one["status"] for one in obj.get("status", {}).get("conditions", ()) if one["type"] == type), "")


async def check_world(client: ApiClient, boards: int, replicas: int) -> dict[str, str]:
    """Check that the world is as declared; return the board of each replica by uid."""
    found = (await client.list(Board.resource.name)).items
    assert len(found) == boards, f"{len(found)} Boards, not {boards}"
    not_ready = [one["metadata"]["name"] for one in found if condition(one, "Ready") != "True"]
    assert not not_ready, f"{len(not_ready)} boards are not Ready, for example {not_ready[:3]}"
    assert all(one["status"]["simulated"] for one in found), "a hollow board does not say that it is simulated"
    items = (await client.list(Replica.resource.name, "default")).items
    assert len(items) == replicas, f"{len(items)} Replicas, not {replicas}"
    assert all(condition(one, "Ready") == "True" for one in items), "a replica is not Ready any more"
    assert len({one["spec"]["slot"] for one in items}) == replicas, "a slot is taken twice"
    placed = Counter(one["spec"]["boardName"] for one in items)
    assert max(placed.values()) <= -(-replicas // boards), f"a board has {max(placed.values())} replicas while others have none"
    return {one["metadata"]["uid"]: one["spec"]["boardName"] for one in items}


async def settled(client: ApiClient, clock: Clock, boards: int) -> float:
    """Wait until every Board is Ready; return the seconds."""
    began = clock.monotonic()
    while True:
        found = (await client.list(Board.resource.name)).items
        if len(found) == boards and all(condition(one, "Ready") == "True" for one in found):
            return clock.monotonic() - began
        assert clock.monotonic() - began < PATIENCE_SECONDS, "not every Board became Ready"
        await clock.sleep(1.0)


async def measure(directory: Path, clock: Clock, boards: int, replicas: int, rest_seconds: float) -> list[Result]:
    """Return what one size came to."""
    results: list[Result] = []

    def told(metric: str, unit: str, value: float, goal: Goal | None = None) -> None:
        results.append(result(f"{boards} boards: {metric}", unit, [value], goal=goal))
        say(f"{metric}: {value:.4g} {unit}" + (f" (goal {goal})" if goal else ""))

    async with control_plane(directory / "fleet", clock, say) as plane, plane.client() as client:
        probe = Probe(plane, clock)
        told("load average of the machine before", "processes", os.getloadavg()[0])
        await push_placeholder(directory, str(plane.kubeconfig))
        spent = cpu_seconds(probe.pid)
        async with hollow(directory, plane, boards) as hollow_pid:
            told("joined and in session", "s", await probe.wait_sessions(boards))
            await settled(client, clock, boards)
            told("controller CPU to enrol and take a session", "ms/board", 1000 * (cpu_seconds(probe.pid) - spent) / boards)
            await clock.sleep(SETTLE_SECONDS)

            before, spent, ours = await probe.metrics(), cpu_seconds(probe.pid), cpu_seconds(hollow_pid)
            await clock.sleep(rest_seconds)
            after = await probe.metrics()
            told("controller CPU at rest", "cores", (cpu_seconds(probe.pid) - spent) / rest_seconds, Goal("value", "<=", CPU_CORES_MAX))
            told("hollow process CPU at rest", "cores", (cpu_seconds(hollow_pid) - ours) / rest_seconds)
            told("loop lag p99 at rest", "ms", lag_ms(before, after, 0.99), Goal("value", "<=", LAG_MS_MAX))
            told("controller RSS at rest", "MiB", resident_mib(probe.pid), Goal("value", "<=", RSS_MIB_MAX))

            before, spent, ours = await probe.metrics(), cpu_seconds(probe.pid), cpu_seconds(hollow_pid)
            came = await rollout(client, clock, replicas)
            after = await probe.metrics()
            told(f"{replicas} replicas: applied to all Ready", "s", came.whole)
            told(f"{replicas} replicas: applied to seen by a watch, p99", "s", came.seen[len(came.seen) * 99 // 100])
            told(f"{replicas} replicas: applied to placed, p99", "s", came.placed[len(came.placed) * 99 // 100])
            told(f"{replicas} replicas: Ready above the simulated load, p50", "s", came.above[len(came.above) // 2])
            p99 = came.above[len(came.above) * 99 // 100]
            told(f"{replicas} replicas: Ready above the simulated load, p99", "s", p99, Goal("value", "<=", ABOVE_LOAD_SECONDS_MAX))
            told("controller CPU of the rollout", "ms/replica", 1000 * (cpu_seconds(probe.pid) - spent) / replicas)
            told("hollow process CPU of the rollout", "ms/replica", 1000 * (cpu_seconds(hollow_pid) - ours) / replicas)
            told("loop lag p99 in the rollout", "ms", lag_ms(before, after, 0.99), Goal("value", "<=", LAG_MS_MAX))
            placed = await check_world(client, boards, replicas)
            told("controller RSS with the deployment", "MiB", resident_mib(probe.pid), Goal("value", "<=", RSS_MIB_MAX))

            await clock.sleep(SETTLE_SECONDS)
            killed, began = probe.pid, clock.monotonic()
            os.kill(killed, signal.SIGKILL)
            while probe.pid == killed or await probe.sessions() < 0:
                await clock.sleep(0.1)
            told("controller serves again after kill -9", "s", clock.monotonic() - began)
            await probe.wait_sessions(boards)
            told("all boards back in session after kill -9", "s", clock.monotonic() - began, Goal("value", "<=", BACK_SECONDS_MAX))
            await settled(client, clock, boards)
            told("all Boards Ready after kill -9", "s", clock.monotonic() - began)
            told("controller CPU to take a session back", "ms/board", 1000 * cpu_seconds(probe.pid) / boards)
            told("loop lag p99 while boards come back", "ms", lag_ms({}, await probe.metrics(), 0.99), Goal("value", "<=", LAG_MS_MAX))
            await clock.sleep(SETTLE_SECONDS)
            assert await check_world(client, boards, replicas) == placed, "a replica moved because the controller was started again"
            told("controller RSS after the restart", "MiB", resident_mib(probe.pid), Goal("value", "<=", RSS_MIB_MAX))
    return results


def say(sentence: str) -> None:
    print(f"  {sentence}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description="How much one controller carries.")
    parser.add_argument("--boards", default="1000,5000", help="sizes to measure (default %(default)s)")
    parser.add_argument("--replicas", type=int, default=1000, help="replicas of the deployment (default %(default)s)")
    parser.add_argument("--rest", type=float, default=REST_SECONDS, help="seconds to watch the controller at rest (default %(default)s)")
    options = parser.parse_args(arguments)
    clock = SystemClock()
    results: list[Result] = []
    for boards in (int(size) for size in options.boards.split(",")):
        say(f"{boards} hollow boards, simulated")
        with tempfile.TemporaryDirectory(prefix="rkfleet-bench-") as directory:
            work: Callable[[], Any] = lambda: measure(Path(directory), clock, boards, min(options.replicas, boards), options.rest)  # noqa: B023,E731
            results += asyncio.run(work())
    return finish("fleet", results, clock)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
