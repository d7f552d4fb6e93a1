"""A board with an NPU runtime: the shipped agent's parts, and real worker processes that map a runtime library that needs no NPU."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from rkfleet.assignment import AssignedReplica, ServingParameters
from tests.support.agents import is_alive
from tests.support.assignments import replica
from tests.support.loops import LoopWorld
from tests.support.npu_board import npu_board
from tests.support.runtimes import keys
from tests.support.sessions import until

SCRIPT = "RKLLM_SIMULATION"  # Names a file that the library reads at each call.


@contextlib.asynccontextmanager
async def board(root: Path, *versions: str) -> AsyncIterator[tuple[LoopWorld, httpx2.AsyncClient, Path]]:
    """Run a board with these versions of the runtime; the path is that of the script of what goes wrong."""
    script = root / "script"
    script.write_text("")
    async with npu_board(root, *versions, environ={SCRIPT: str(script)}) as (w, client):
        yield w, client, script


async def npu(w: LoopWorld, name: str, **serving: Any) -> AssignedReplica:
    """Return a replica of a model that the simulated library loads."""
    file = await w.push_body(("RKLLMFAKE\n" + keys(ttft_ms=1, tokens_per_s=2000, memory_mb=100)).encode())
    return replica(
        name, served_model_name=name, runtime="rkllm", dtype="w8a8", soc="rk3588", files=(msgspec.structs.replace(file, path="m.rkllm"),),
        memory_bytes=200 << 20, serving=ServingParameters(context_tokens=512, **serving),
    )  # fmt: skip


async def ask(client: httpx2.AsyncClient, model: str, tokens: int = 8) -> httpx2.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": tokens}
    return await client.post("/v1/chat/completions", json=body)


def last_exit(w: LoopWorld, uid: str) -> tuple[str, str]:
    state = w.supervisor.states().get(uid)
    return (state.last_exit.reason, state.last_exit.message) if state and state.last_exit else ("", "")


def test_two_versions_of_the_library_run_side_by_side_and_a_model_moves_between_them(tmp_path: Path) -> None:
    """One process each; the other version is another worker, and going back is too. Nothing else restarts."""

    async def body() -> None:
        async with board(tmp_path, "1.2.3", "1.3.0") as (w, client, _):
            old, new = await npu(w, "old", runtime_version="<1.3"), await npu(w, "new")
            await w.assign(1, old, new)
            await until(lambda: w.of_replica("Ready", "old") == w.of_replica("Ready", "new") == ("True", "Serving"))
            for name, mark in (("old", "[simulated runtime 1.2.3 G3]"), ("new", "[simulated runtime 1.3.0 G4]")):
                assert mark in (await ask(client, name)).json()["choices"][0]["message"]["content"]
            before = w.supervisor.states()
            assert {before[old.uid].domain, before[new.uid].domain} == {0, 1}
            await w.assign(2, await npu(w, "old", runtime_version=">=1.3"), new)
            await until(lambda: w.supervisor.states()[old.uid].key != before[old.uid].key)
            await until(lambda: w.of_replica("Ready", "old") == ("True", "Serving"))
            assert "1.3.0 G4" in (await ask(client, "old")).json()["choices"][0]["message"]["content"]
            assert w.supervisor.states()[new.uid] == before[new.uid]

    asyncio.run(body())


@pytest.mark.parametrize(
    ("fault", "reason", "words"),
    [
        ({"init_code": -1}, "LoadFailed", "rkllm"),
        ({"npu_memory": 12}, "OutOfMemory", "allocate"),
        ({"init_exit": 3}, "Crashed", "exit status 3"),
    ],
)
def test_a_model_that_does_not_load_says_how_and_loads_once_the_cause_is_gone(
    tmp_path: Path, fault: dict[str, int], reason: str, words: str
) -> None:
    """Each way has its reason; starts are spaced out, and the repaired board comes back by itself."""

    async def body() -> None:
        async with board(tmp_path, "1.3.0") as (w, client, script):
            script.write_text(keys(**fault))
            one = await npu(w, "chat")
            await w.assign(1, one)
            await until(lambda: last_exit(w, one.uid)[0] == reason)
            assert words in last_exit(w, one.uid)[1]
            state = w.supervisor.states()[one.uid]
            assert state.restarts < 4
            script.write_text("")
            await until(lambda: w.of_replica("Ready", "chat") == ("True", "Serving"))
            assert (await ask(client, "chat")).status_code == 200

    asyncio.run(body())


def test_a_crash_at_a_token_ends_its_request_in_one_error_and_the_next_is_answered(tmp_path: Path) -> None:
    """A stream that has begun ends with an error event; SIGSEGV is the reason of the exit."""

    async def body() -> None:
        async with board(tmp_path, "1.3.0") as (w, client, script):
            one = await npu(w, "chat")
            await w.assign(1, one)
            await until(lambda: w.of_replica("Ready", "chat") == ("True", "Serving"))
            script.write_text(keys(crash_at=3))
            body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "stream": True}
            answer = await client.post("/v1/chat/completions", json=body)
            errors = [line for line in answer.text.splitlines() if '"error"' in line]
            assert len(errors) == 1
            assert "worker_exited" in errors[0]
            await until(lambda: last_exit(w, one.uid)[0] == "Crashed")
            assert last_exit(w, one.uid)[1].startswith("the worker crashed with SIGSEGV")
            script.write_text("")
            states = w.supervisor.states
            await until(lambda: states()[one.uid].phase == "Ready" and w.served[-1][0].endpoint == states()[one.uid].endpoint)
            assert (await ask(client, "chat")).status_code == 200

    asyncio.run(body())


def test_an_idle_npu_model_is_a_process_that_is_gone_and_saved_prompts_go_with_the_replica(tmp_path: Path) -> None:
    """Memory of the NPU is freed by the end of the process. Directories of nobody are removed."""

    async def body() -> None:
        async with board(tmp_path, "1.3.0") as (w, client, _):
            caches = tmp_path / "agent" / "prompt-cache"
            (caches / "of-nobody").mkdir(parents=True)
            one = await npu(w, "chat", load="OnDemand", idle_unload_seconds=1, prompt_cache_bytes=1 << 20)
            await w.assign(1, one)
            await until(lambda: w.of_replica("Ready", "chat") == ("True", "OnDemand"))
            await until(lambda: not (caches / "of-nobody").exists())
            asking = asyncio.create_task(ask(client, "chat"))
            await until(lambda: (state := w.supervisor.states().get(one.uid)) is not None and state.pid > 0)
            pid = w.supervisor.states()[one.uid].pid
            assert (await asking).status_code == 200
            assert [path.name for path in caches.iterdir()] == [f"{one.files[0].digest.removeprefix('sha256:')}-1.3.0"]
            await until(lambda: not is_alive(pid))
            await until(lambda: w.of_replica("Loaded", "chat") == ("False", "Unloaded"))
            await w.assign(2)
            await until(lambda: list(caches.iterdir()) == [])

    asyncio.run(body())
