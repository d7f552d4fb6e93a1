"""Every program killed again and again, at seeded moments, while clients ask, an operator writes and a person pushes models."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from rkfleet.errors import FleetError
from rkfleet.kinds import Model, ModelDeployment, Replica
from tests.support.up import CLOCK, Up, chat, eventually, processes_of, up
from tests.support.users import Asker, Operator, Pusher, deployment_ref

SEED = int(os.environ.get("RKFLEET_SEED", "20261123"))
KILLS = 10  # Of each program.
KILLS_ALONE = 5  # Of these, so many of controller and registry before anything else is hurt.
WORKERS_ALONE = 3  # Of these, so many workers while another one serves.
PAUSE_SECONDS_MAX = 0.7  # Life of a program until it is killed: from before its first line of code to serving.
RETURN_SECONDS_MAX = 60.0  # A board asks for its session again after up to 30 s, and needs it to fetch what is spoiled.
CONVERGE_SECONDS_MAX = 40.0
AGENT = "agent-cpu-1"
PROGRAMS = ("controller", "registry", "gateway", AGENT)
SPOILED_AFTER = (5, 9)  # Kills of the agent after which its cache is spoiled; by then a controller lives that says where to fetch.
REPLICAS = 2  # Both on the one board: twice the workers to kill in each life of its agent.
MANIFEST = Path("manifests/deployments/smollm2.yaml")


class Killer:
    """Kills processes of a fleet at seeded moments, each only once, and counts those that were alive."""

    def __init__(self, fleet: Up, seed: str) -> None:
        self.kills = Counter[str]()
        self._fleet = fleet
        self._chances = {name: random.Random(f"{seed} {name}") for name in (*PROGRAMS, "worker")}  # how fast others are changes nothing
        self._met: set[int] = set()

    async def kill(self, name: str) -> None:
        """Wait for a process of this program that was not met yet, then for a moment, and kill it."""
        found: list[int] = []

        def there() -> bool:
            pids = self._fleet.worker_pids() if name == "worker" else [self._fleet.pid(name)]
            found[:] = [pid for pid in pids if pid not in self._met and Path(f"/proc/{pid}").exists()]
            return bool(found)

        await eventually(there, f"{name} runs again", RETURN_SECONDS_MAX)
        self._met.add(found[0])
        await CLOCK.sleep(self._chances[name].uniform(0, PAUSE_SECONDS_MAX))
        if Path(f"/proc/{found[0]}").exists():
            self._fleet.kill(found[0])
            self.kills[name] += 1

    async def kill_often(self, name: str, times: int) -> None:
        """Kill a program whose life depends on no other one."""
        for _ in range(times):
            await self.kill(name)

    async def kill_board(self, times: int) -> None:
        """Kill workers and their agent: some agents after their workers, some in the middle of their start."""
        while min(self.kills["worker"], self.kills[AGENT]) < times:
            for _ in range(REPLICAS):
                await self.kill("worker")
            await self.kill(AGENT)
            if self.kills[AGENT] < times:
                if self.kills[AGENT] in SPOILED_AFTER:
                    _spoil_the_cache(self._fleet, self._chances[AGENT])
                await self.kill(AGENT)


def _spoil_the_cache(fleet: Up, chance: random.Random) -> None:
    """Flip one byte of each cached artifact, so that the next start must find it and fetch again, under the same kills."""
    for file in _files(fleet, "agents/cpu-1/artifacts/sha256"):
        with file.open("r+b") as opened:
            opened.seek(chance.randrange(file.stat().st_size))
            old = opened.read(1)
            opened.seek(-1, os.SEEK_CUR)
            opened.write(bytes([old[0] ^ 1]))


def _files(fleet: Up, folder: str) -> Iterator[Path]:
    return (path for path in (fleet.data_dir / folder).rglob("*") if path.is_file())


async def _all_is_well(fleet: Up, http: httpx2.AsyncClient) -> bool:
    try:
        async with fleet.client() as client:
            status = (await client.get(deployment_ref("smollm2"))).get("status", {})
        answer = await chat(http, fleet, "are you there?", max_tokens=2)
    except (FleetError, httpx2.HTTPError):
        return False
    conditions = {one["type"]: one["status"] for one in status.get("conditions", ())}
    return conditions.get("Available") == "True" and status.get("readyReplicas") == REPLICAS and answer.status_code == 200


async def _controller_and_registry_alone(killer: Killer, askers: list[Asker]) -> None:
    """Kill only what no answer needs: not one request may fail for it."""
    before = [(asker.answers, len(asker.failures)) for asker in askers]
    async with asyncio.TaskGroup() as kills:
        for name in ("controller", "registry"):
            kills.create_task(killer.kill_often(name, KILLS_ALONE))
    await eventually(
        lambda: all(asker.answers > answers for asker, (answers, _) in zip(askers, before, strict=True)), "answers all the while"
    )
    assert [asker.failures[failures:] for asker, (_, failures) in zip(askers, before, strict=True)] == [[]] * len(askers)


async def _one_worker_of_two(fleet: Up, killer: Killer, whole: Asker) -> None:
    """While one replica dies and comes back the other one answers: whoever waits for a whole answer gets it."""
    failures = len(whole.failures)
    for _ in range(WORKERS_ALONE):
        restarts = sum(await _restarts(fleet))
        await killer.kill("worker")

        async def is_back(restarts: int = restarts) -> bool:
            ready = await _restarts(fleet)
            return len(ready) == REPLICAS and sum(ready) == restarts + 1

        await eventually(is_back, "both replicas are Ready, one after a restart of its worker")
    assert whole.failures[failures:] == []


async def _restarts(fleet: Up) -> list[int]:
    """How often the worker of each Ready replica was started again."""
    async with fleet.client() as client:
        statuses = [obj["status"] for obj in (await client.list(Replica.resource.name, "default")).items]
    return [
        status.get("restarts", 0)
        for status in statuses
        if any(one["type"] == "Ready" and one["status"] == "True" for one in status["conditions"])
    ]


async def _everything(killer: Killer) -> None:
    async with asyncio.TaskGroup() as kills:
        for name in ("controller", "registry", "gateway"):
            kills.create_task(killer.kill_often(name, KILLS - killer.kills[name]))
        kills.create_task(killer.kill_board(KILLS))


async def _round(fleet: Up, killer: Killer, askers: list[Asker]) -> None:
    async with httpx2.AsyncClient(trust_env=False) as http:
        await _one_worker_of_two(fleet, killer, askers[0])
        await _controller_and_registry_alone(killer, askers)
        await _everything(killer)
        await eventually(lambda: _all_is_well(fleet, http), "the fleet is as it was", CONVERGE_SECONDS_MAX)
    print(dict(killer.kills), [(asker.answers, len(asker.failures)) for asker in askers])
    assert all(killer.kills[name] >= KILLS for name in (*PROGRAMS, "worker")), killer.kills


@pytest.mark.processes
@pytest.mark.model
@pytest.mark.timeout(300)
def test_kills_lose_nothing_and_the_fleet_converges(tmp_path: Path, soak_factor: int) -> None:
    """Acknowledged objects and models stay, what served goes on serving without a controller, no orphan, no partial file, convergence."""
    print(f"RKFLEET_SEED={SEED}")

    async def test() -> None:
        async with up(tmp_path / "fleet", "--samples", "--board-memory", "4Gi") as fleet:
            manifest = tmp_path / "smollm2.yaml"
            manifest.write_text(MANIFEST.read_text().replace("replicas: 1", f"replicas: {REPLICAS}"))
            fleet.run("apply", "-f", str(manifest))
            fleet.run("rollout", "status", "smollm2", "--timeout", "60")
            operator, pusher = Operator(fleet), Pusher(fleet, tmp_path)
            askers = [Asker(fleet, stream=False), Asker(fleet, stream=True)]
            async with asyncio.TaskGroup() as tasks:
                users = [tasks.create_task(user.run()) for user in (operator, pusher, *askers)]
                for number in range(soak_factor):
                    await _round(fleet, Killer(fleet, f"{SEED} {number}"), askers)
                for user in users:
                    user.cancel()
            assert [silence for asker in askers for silence in asker.silent] == []
            await _nothing_is_lost(fleet, operator, pusher)
            await _nothing_is_left_over(fleet)

    asyncio.run(test())


async def _nothing_is_lost(fleet: Up, operator: Operator, pusher: Pusher) -> None:
    async with fleet.client() as client:
        assert operator.labels
        assert operator.deleted
        assert pusher.models
        deployments = await client.list(ModelDeployment.resource.name, "default")
        assert operator.broken_promises(deployments.items) == []
        missing: list[str] = []

        async def models_are_ready() -> bool:
            missing[:] = pusher.broken_promises((await client.list(Model.resource.name, "default")).items)
            return not missing

        await eventually(models_are_ready, lambda: f"acknowledged models are Ready, not {missing}")
        replicas = (await client.list(Replica.resource.name, "default")).items
        assert len(replicas) == REPLICAS


async def _nothing_is_left_over(fleet: Up) -> None:
    found: list[str] = []

    def nothing_else_runs() -> bool:
        found[:] = processes_of(fleet.data_dir).values()
        return len(found) == 1 + len(PROGRAMS) + REPLICAS and len(fleet.worker_pids()) == REPLICAS

    await eventually(nothing_else_runs, lambda: f"only up, its programs and one worker per replica run, not {found}", 5.0)
    partial = [path for path in fleet.data_dir.rglob("*") if path.suffix in {".part", ".partial", ".chunks"}]
    assert partial == []
    assert list(_files(fleet, "agents/cpu-1/partial")) == []
