"""Models on demand over HTTP, on a board whose runtime is simulated: the shipped loop, supervisor, queue and proxy."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2

from agent.planning.values import Abilities, InstalledLibrary
from agent.workers.base import Worker, WorkerSpec
from agent.workers.simulated import SimulatedBackend
from rkfleet import simulated
from rkfleet.assignment import AssignedReplica, ServingParameters
from rkfleet.benchmarks import load_table
from rkfleet.clock import SystemClock
from tests.support.assignments import replica
from tests.support.loops import LoopWorld, loop_world
from tests.support.sessions import until

TABLE = load_table()
MODEL = "Qwen2-0.5B"
MEMORY_BYTES = 600 << 20
ABILITIES = Abilities(
    libraries={"rkllm": (InstalledLibrary(version="1.1.4"),)}, cores=8, memory_bytes=1 << 30, serving_url="", soc="rk3588",
    tables={"rkllm": TABLE},
)  # fmt: skip


class CountingBackend(SimulatedBackend):
    """Remembers what it was asked to start."""

    def __init__(self, soc: str) -> None:
        super().__init__(soc, TABLE, clock=SystemClock(), new_api_key=lambda: "k", load_speedup=20.0)
        self.starts: list[str] = []

    async def start(self, spec: WorkerSpec, tasks: asyncio.TaskGroup, beat: Callable[[], None], log: Callable[[str], None]) -> Worker:
        self.starts.append(spec.uid)
        return await super().start(spec, tasks, beat, log)


@contextlib.asynccontextmanager
async def board(root: Path) -> AsyncIterator[tuple[LoopWorld, httpx2.AsyncClient, list[str]]]:
    """Run a board; the list is of the replicas whose workers were started."""
    backend = CountingBackend("rk3588")
    async with (
        loop_world(root, backends=(backend,), abilities=ABILITIES) as w,
        httpx2.AsyncClient(base_url=w.url, trust_env=False, verify=False, timeout=30) as client,
    ):
        yield w, client, backend.starts


async def assigned(w: LoopWorld, *names: str, **serving: object) -> tuple[AssignedReplica, ...]:
    """Give the board replicas of a placeholder that load on demand, and wait until they serve."""
    file = await w.push_body(simulated.MAGIC + b"model: Qwen2-0.5B\n")
    parameters = {"load": "OnDemand", **serving}
    made = tuple(
        replica(
            name, served_model_name=name, runtime="rkllm", dtype="w8a8", reference_model=MODEL, memory_bytes=MEMORY_BYTES, files=(file,),
            serving=ServingParameters(**parameters),  # type: ignore[arg-type]
        )
        for name in names
    )  # fmt: skip
    await w.assign(1, *made)
    await until(lambda: all(w.of_replica("Ready", name) == ("True", "OnDemand") for name in names))
    return made


async def ask(client: httpx2.AsyncClient, model: str) -> httpx2.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    return await client.post("/v1/chat/completions", json=body)


def test_many_requests_for_a_model_that_is_not_loaded_load_it_once_and_wait_in_the_bounded_queue(tmp_path: Path) -> None:
    """One has the place, maxQueued wait behind it, the next is refused at once; all that were let in are answered."""

    async def body() -> None:
        async with board(tmp_path) as (w, client, starts):
            (one,) = await assigned(w, "chat", max_queued=3)
            assert (w.supervisor.states(), w.of_replica("Loaded", "chat")) == ({}, ("False", "Unloaded"))
            assert [card["id"] for card in (await client.get("/v1/models")).json()["data"]] == ["chat"]
            answers = await asyncio.gather(*(ask(client, "chat") for _ in range(6)))
            assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 200, 429, 429]
            assert starts == [one.uid]
            assert w.of_replica("Ready", "chat") == ("True", "Serving")

    asyncio.run(body())


def test_an_idle_model_is_gone_from_memory_and_the_next_request_brings_it_back(tmp_path: Path) -> None:
    """Requests that come while its worker goes are answered too."""

    async def body() -> None:
        async with board(tmp_path) as (w, client, _):
            (one,) = await assigned(w, "chat", idle_unload_seconds=1)
            assert (await ask(client, "chat")).status_code == 200
            await until(lambda: w.supervisor.states() == {})
            await until(lambda: w.of_replica("Loaded", "chat") == ("False", "Unloaded"))
            assert w.of_replica("Ready", "chat") == ("True", "OnDemand")
            for _ in range(5):
                w.demand.unload(one.uid)  # which the next request may meet at any point of the worker's way out
                assert (await ask(client, "chat")).status_code == 200
            assert {entry.reason for entry in w.reports.log()} >= {"Unloaded", "ModelLoaded"}

    asyncio.run(body())


def test_a_model_makes_room_for_another_only_when_it_is_idle(tmp_path: Path) -> None:
    """Both do not fit; the second request waits for the first answer and is answered."""

    async def body() -> None:
        async with board(tmp_path) as (w, client, starts):
            first, second = await assigned(w, "a", "b")
            answers = await asyncio.gather(ask(client, "a"), ask(client, "b"))
            assert [answer.status_code for answer in answers] == [200, 200]
            assert (await ask(client, "a")).status_code == 200
            assert [uid for uid, state in w.supervisor.states().items() if state.phase == "Ready"] == [first.uid]
            assert starts == [first.uid, second.uid, first.uid]

    asyncio.run(body())


def test_a_model_that_cannot_be_loaded_answers_each_request_once_with_its_reason(tmp_path: Path) -> None:
    """No request waits for what will not come."""

    async def body() -> None:
        async with board(tmp_path) as (w, client, _):
            file = await w.push(1000)  # no placeholder: the simulated runtime refuses it
            bad = replica(
                "chat", runtime="rkllm", dtype="w8a8", reference_model=MODEL, files=(file,), serving=ServingParameters(load="OnDemand")
            )
            await w.assign(1, bad)
            await until(lambda: w.of_replica("Ready", "chat") == ("True", "OnDemand"))
            answer = await ask(client, "chat")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_loading")
            assert "is no placeholder" in answer.json()["error"]["message"]
            assert w.of_replica("Ready", "chat") == ("False", "LoadFailed")

    asyncio.run(body())


def test_a_library_that_is_not_used_is_told_once(tmp_path: Path) -> None:
    """An Event carries the sentence to the fleet."""

    async def body() -> None:
        async with loop_world(tmp_path, problems=("runtime library /x: it is no regular file",)) as w:
            await until(lambda: w.reports.state is not None)
            told = [entry for entry in w.reports.log() if entry.reason == "RuntimeLibraryRefused"]
            assert [(entry.type, entry.message) for entry in told] == [("Warning", "runtime library /x: it is no regular file")]

    asyncio.run(body())
