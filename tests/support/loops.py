"""The agent's loop in the test's own event loop: real ledger, cache, fetcher, registry, machine and HTTP, and given runtimes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.artifacts.cache import Cache
from agent.artifacts.fetch import Fetcher
from agent.artifacts.prompt_caches import PromptCaches
from agent.board.facts import Overrides
from agent.board.memory import Memory
from agent.board.sensors import MachineSensors
from agent.demand import Demand
from agent.fetching import Bytes
from agent.journal import Journals
from agent.ledger import Ledger
from agent.loop import Loop
from agent.metrics import AgentMetrics
from agent.planning.values import Abilities, Served
from agent.reports import Reports
from agent.serving.app import Serving
from agent.serving.assigned import route_of
from agent.serving.routes import Routes
from agent.workers.base import Backend
from agent.workers.supervisor import Supervisor
from controller.registry.app import Running
from rkfleet.assignment import AssignedFile, AssignedReplica
from rkfleet.clock import SystemClock
from rkfleet.conditions import find
from rkfleet.errors import PermissionDenied, Unavailable
from rkfleet.metrics import Metrics
from rkfleet.ops import serve_asgi
from rkfleet.registry_client import RegistryClient
from rkfleet.session import Grant
from tests.support.assignments import offer, replica
from tests.support.disk import LimitedDisk
from tests.support.registry import REPOSITORY, RegistryWorld

CHUNK = 64 << 10
NOTHING = Abilities(libraries={}, cores=2, memory_bytes=1 << 30, serving_url="https://127.0.0.1:7490")


class GrantBooth:
    """Grants what is asked for unless `refusal` or `away` says otherwise."""

    def __init__(self, world: RegistryWorld) -> None:
        self.world = world
        self.refusal = ""
        self.away = False

    async def request_grant(self, digests: tuple[str, ...]) -> Grant:
        if self.away:
            raise Unavailable("no session yet")
        if self.refusal:
            raise PermissionDenied(self.refusal)
        source = f"{self.world.url}/v2/{REPOSITORY}"
        return Grant(request_id=1, sources=(source,), token=self.world.board_token(REPOSITORY, *digests))


class FaultySensors(MachineSensors):
    """The real machine, which tells nothing while `blind`."""

    blind = False

    def memory(self) -> Memory:
        if self.blind:
            raise OSError("no meminfo")
        return super().memory()


@dataclass
class LoopWorld:
    """One board's loop and everything around it."""

    registry: RegistryWorld
    running: Running
    client: RegistryClient
    disk: LimitedDisk
    ledger: Ledger
    cache: Cache
    reports: Reports
    metrics: Metrics
    booth: GrantBooth
    sensors: FaultySensors
    served: list[tuple[Served, ...]]
    journals: Journals
    supervisor: Supervisor
    demand: Demand
    url: str

    async def push(self, size: int, seed: int = 1) -> AssignedFile:
        return await self.push_body(random.Random(seed).randbytes(size))

    async def push_body(self, body: bytes) -> AssignedFile:
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        await self.client.push_blob(REPOSITORY, digest, body)
        return AssignedFile(path="model.gguf", digest=digest, size_bytes=len(body))

    async def assign(self, number: int, *replicas: AssignedReplica) -> None:
        await self.ledger.accept(offer(number, *replicas))

    def of_replica(self, type: str, name: str = "chat-1") -> tuple[str, str]:
        """Return status and reason of a replica's condition; empty before there is one."""
        states = self.reports.state.replicas if self.reports.state else ()
        found = next((find(state.conditions, type) for state in states if state.name == name), None)
        return (found.status, found.reason) if found else ("", "")

    def of_board(self, type: str) -> tuple[str, str]:
        """Return status and reason of the board's condition; empty before there is one."""
        found = find(self.reports.state.conditions, type) if self.reports.state else None
        return (found.status, found.reason) if found else ("", "")


def staged(file: AssignedFile, name: str = "chat-1", **changes: Any) -> AssignedReplica:
    return replica(name, files=(file,), activation="Staged", **changes)


@contextlib.asynccontextmanager
async def loop_world(
    root: Path, *, limit_bytes: int = 0, backends: tuple[Backend, ...] = (), abilities: Abilities = NOTHING, problems: tuple[str, ...] = ()
) -> AsyncIterator[LoopWorld]:
    """Run a registry and one board's loop, workers and serving."""
    registry, clock, disk, metrics, wake = RegistryWorld(root), SystemClock(), LimitedDisk(), Metrics("agent"), asyncio.Event()
    data_dir = root / "agent"
    data_dir.mkdir()
    jitter = random.Random(3)
    async with registry.running() as (running, client):
        cache = Cache(data_dir, limit_bytes, disk, metrics, reserve_bytes=0)
        ledger, reports, booth = Ledger(data_dir, disk, wake.set), Reports(clock), GrantBooth(registry)
        journals = Journals(clock)
        supervisor = Supervisor(backends, clock=clock, random=jitter, metrics=metrics, on_change=wake.set, journals=journals)
        sensors = FaultySensors(Path("/"), data_dir, Overrides(), ())
        served: list[tuple[Served, ...]] = []
        routes, demand = Routes(), Demand(clock, wake.set)
        serving = Serving(routes, metrics, clock, demand=demand)

        def publish(now: tuple[Served, ...]) -> None:
            served.append(now)
            routes.replace(tuple(route_of(one, "b") for one in now))

        loop = Loop(
            clock=clock, wake=wake, ledger=ledger, cache=cache,
            bytes=Bytes(
                cache=cache, fetcher=Fetcher(cache, registry.tls, disk, metrics, CHUNK), grants=booth, clock=clock, jitter=jitter,
                on_change=wake.set,
            ),
            supervisor=supervisor, traffic=serving, sensors=sensors,
            reports=reports, metrics=AgentMetrics(metrics), publish=publish, problems=problems,
            demand=demand, prompt_caches=PromptCaches(data_dir),
            abilities=abilities,
        )  # fmt: skip
        async with asyncio.TaskGroup() as tasks, serve_asgi(serving, "127.0.0.1", 0) as listener:
            background = [tasks.create_task(loop.run()), tasks.create_task(supervisor.run())]
            yield LoopWorld(
                registry, running, client, disk, ledger, cache, reports, metrics, booth, sensors, served, journals, supervisor, demand,
                listener.url,
            )  # fmt: skip
            for task in background:
                task.cancel()
