"""Every program killed again and again, at seeded moments, while clients ask and an operator writes."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import httpx2
import pytest

from rkfleet.errors import FleetError
from rkfleet.kinds import ModelDeployment
from rkfleet.meta import Ref
from tests.support.up import CLOCK, Up, chat, eventually, processes, up

SEED = int(os.environ.get("RKFLEET_SEED", "20261123"))
VICTIMS = ("controller", "registry", "gateway", "agent-cpu-1", "worker")
PAUSE_SECONDS_MAX = 0.7  # Between kills of one round, so that they fall into all phases of the others' recovery.
CONVERGE_SECONDS_MAX = 40.0
MANIFEST = Path("manifests/deployments/smollm2.yaml")
BY_DESIGN = {"controller", "registry"}  # Their death must not cost a client anything.


class Operator:
    """Writes deployments all the time and remembers which were acknowledged."""

    def __init__(self, fleet: Up) -> None:
        self._fleet = fleet
        self.acknowledged: set[str] = set()

    async def run(self) -> None:
        number = 0
        async with self._fleet.client() as client:
            while True:
                number += 1
                name = f"kept-{number}"
                try:
                    await client.create(_ref(name), _idle_deployment(name))
                    self.acknowledged.add(name)
                except FleetError:
                    pass  # not acknowledged, so nothing is promised
                await CLOCK.sleep(0.05)


class Asker:
    """Asks all the time; counts answers and failures."""

    def __init__(self, fleet: Up) -> None:
        self._fleet = fleet
        self.answers = 0
        self.failures: list[str] = []

    async def run(self) -> None:
        number = 0
        async with httpx2.AsyncClient() as http:
            while True:
                number += 1
                try:
                    answer = await chat(http, self._fleet, f"{number}: say a word", max_tokens=4)
                    if answer.status_code == 200:
                        self.answers += 1
                    else:
                        self.failures.append(f"{answer.status_code} {answer.text[:200]}")
                        await CLOCK.sleep(0.1)
                except httpx2.HTTPError as error:
                    self.failures.append(repr(error))
                    await CLOCK.sleep(0.1)


def _ref(name: str) -> Ref:
    return Ref(ModelDeployment.resource.name, "default", name)


def _idle_deployment(name: str) -> dict[str, object]:
    spec = {"replicas": 0, "template": {"model": "smollm2-135m"}}
    resource = ModelDeployment.resource
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": name, "namespace": "default"}, "spec": spec}


async def _serves(fleet: Up, http: httpx2.AsyncClient) -> bool:
    try:
        return (await chat(http, fleet, "are you there?", max_tokens=2)).status_code == 200
    except httpx2.HTTPError:
        return False


async def _available(fleet: Up) -> bool:
    try:
        async with fleet.client() as client:
            obj = await client.get(_ref("smollm2"))
    except FleetError:
        return False
    status = obj.get("status", {})
    conditions = {one["type"]: one["status"] for one in status.get("conditions", ())}
    return conditions.get("Available") == "True" and status.get("readyReplicas") == 1


async def _kill(fleet: Up, victim: str) -> None:
    if victim == "worker":
        for pid in fleet.worker_pids():
            fleet.kill(pid)
        return
    fleet.kill(fleet.pid(victim))


async def _round(fleet: Up, chance: random.Random, http: httpx2.AsyncClient) -> None:
    for victim in chance.sample(VICTIMS, len(VICTIMS)):
        await _kill(fleet, victim)
        await CLOCK.sleep(chance.uniform(0, PAUSE_SECONDS_MAX))
    await eventually(lambda: _available(fleet), "the deployment is Available again", CONVERGE_SECONDS_MAX)
    await eventually(lambda: _serves(fleet, http), "the model answers again", CONVERGE_SECONDS_MAX)


async def _controller_alone(fleet: Up, asker: Asker) -> None:
    """Kill controller and registry only: not one request may fail for it."""
    before, answered = len(asker.failures), asker.answers
    for victim in sorted(BY_DESIGN):
        await _kill(fleet, victim)
    await eventually(lambda: asker.answers >= answered + 3, "answers while controller and registry are away")
    assert asker.failures[before:] == []
    await eventually(lambda: _available(fleet), "the deployment is Available again", CONVERGE_SECONDS_MAX)


@pytest.mark.processes
@pytest.mark.model
@pytest.mark.timeout(300)
def test_kills_lose_nothing_and_the_fleet_converges(tmp_path: Path, soak_factor: int) -> None:
    """Acknowledged objects stay, what served goes on serving without a controller, no orphan, no partial file, convergence."""
    chance = random.Random(SEED)
    print(f"RKFLEET_SEED={SEED}")
    rounds = 10 * soak_factor

    async def test() -> None:
        async with up(tmp_path / "fleet", "--samples", "--board-memory", "4Gi") as fleet:
            fleet.run("apply", "-f", str(MANIFEST))
            fleet.run("rollout", "status", "smollm2", "--timeout", "60")
            operator, asker = Operator(fleet), Asker(fleet)
            async with asyncio.TaskGroup() as tasks, httpx2.AsyncClient() as http:
                loops = [tasks.create_task(operator.run()), tasks.create_task(asker.run())]
                await _controller_alone(fleet, asker)
                for _ in range(rounds):
                    await _round(fleet, chance, http)
                for loop in loops:
                    loop.cancel()
            await _check_world(fleet, operator)
            assert asker.answers > rounds

    asyncio.run(test())


async def _check_world(fleet: Up, operator: Operator) -> None:
    async with fleet.client() as client:
        listing = await client.list(ModelDeployment.resource.name, "default")
    lost = operator.acknowledged - {obj["metadata"]["name"] for obj in listing.items}
    assert lost == set(), f"{len(lost)} of {len(operator.acknowledged)} acknowledged objects are lost"
    assert operator.acknowledged
    assert len(fleet.worker_pids()) == 1, "exactly one worker runs"
    orphans = [
        pid for pid, words in processes() if b"agent.workers.child" in words and Path(f"/proc/{pid}/stat").read_text().split()[3] == "1"
    ]
    assert orphans == []
    partial = [path for path in fleet.data_dir.rglob("*") if path.suffix in {".part", ".partial"} and path.is_file()]
    assert partial == []
