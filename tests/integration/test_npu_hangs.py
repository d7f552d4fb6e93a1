"""A runtime that hangs, on a whole board: who is told, how the end of its worker is called, and that the next request is answered.

The worker has limits that a test can wait for; everything else is the shipped board with the simulated runtime.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from agent.workers.backends import ChildBackend
from agent.workers.libraries import Library
from rkfleet.assignment import AssignedReplica
from rkfleet.kinds.board import Runtime
from tests.integration.test_npu_board import SCRIPT, last_exit, npu
from tests.support.agents import is_alive
from tests.support.loops import LoopWorld
from tests.support.npu_board import npu_board
from tests.support.runtimes import keys
from tests.support.sessions import until

LIMITS = {"grace_seconds": 0.6, "prefill_tokens_per_second": 1000, "token_seconds": 0.6, "abort_seconds": 0.6}
HI: Any = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}


class Board:
    """A board with one loaded model on the NPU."""

    def __init__(self, world: LoopWorld, client: openai.AsyncOpenAI, script: Path, one: AssignedReplica) -> None:
        self.world = world
        self.client = client
        self.script = script
        self.uid = one.uid

    @property
    def pid(self) -> int:
        return self.world.supervisor.states()[self.uid].pid

    async def until_hung(self, pid: int, words: str) -> None:
        """Wait until that worker's end is told; the next one finds a runtime that does not hang."""
        await until(lambda: last_exit(self.world, self.uid)[0] == "Hung")
        message = last_exit(self.world, self.uid)[1]
        assert "the runtime hangs: no sign of life for longer than" in message
        assert words in message
        assert not is_alive(pid)

    async def until_answered(self) -> None:
        self.script.write_text("")
        states, served = self.world.supervisor.states, self.world.served
        await until(lambda: states()[self.uid].phase == "Ready" and served[-1][0].endpoint == states()[self.uid].endpoint)
        answer = await self.client.chat.completions.create(**HI, max_tokens=8)
        assert answer.choices[0].finish_reason == "length"
        assert states()[self.uid].restarts == 1


@contextlib.asynccontextmanager
async def board(root: Path, **limits: float) -> AsyncIterator[Board]:
    script = root / "script"
    script.write_text("")
    options = msgspec.json.encode({"limits": {**LIMITS, **limits}, "beat_seconds": 0.1}).decode()

    def impatient(library: Library, environ: Mapping[str, str]) -> ChildBackend:
        runtime = Runtime(name="rkllm", version=library.version, backend="rkllm")
        return ChildBackend(runtime, environ=environ, new_api_key=lambda: "k", program=("-m", "tests.support.npu_child", options))

    async with (
        npu_board(root, "1.3.0", environ={SCRIPT: str(script)}, backend=impatient) as (w, _),
        openai.AsyncOpenAI(base_url=f"{w.url}/v1", api_key="any", max_retries=0) as client,
    ):
        one = await npu(w, "chat")
        await w.assign(1, one)
        await until(lambda: w.of_replica("Ready", "chat") == ("True", "Serving"))
        yield Board(w, client, script, one)


@pytest.mark.parametrize(
    ("at", "words", "stream"),
    [(0, "reading a prompt of about", True), (3, "between two tokens", False), (3, "between two tokens", True)],
)
def test_a_runtime_that_hangs_ends_its_request_in_one_error_and_the_next_is_answered(
    tmp_path: Path, at: int, words: str, stream: bool
) -> None:
    """Before the first token and in the middle of an answer; the exit has its name and the sentence that says what took too long."""

    async def body() -> None:
        async with board(tmp_path) as b:
            pid = b.pid
            b.script.write_text(keys(hang_at=at))
            said = ""
            with pytest.raises(openai.APIError) as caught:  # noqa: PT012 (a stream fails on its way)
                if stream:
                    async for chunk in await b.client.chat.completions.create(**HI, stream=True):
                        said += "".join(choice.delta.content or "" for choice in chunk.choices)
                else:
                    await b.client.chat.completions.create(**HI)
            assert caught.value.code == "worker_exited"
            begun = stream and at > 0
            assert isinstance(caught.value, openai.InternalServerError) == (not begun)
            assert bool(said) == begun
            await b.until_hung(pid, words)
            await b.until_answered()

    asyncio.run(body())


def test_a_worker_that_ignores_an_abort_is_ended_and_the_next_request_is_answered(tmp_path: Path) -> None:
    """Its client left long before the limit between two tokens, so only the abort can be what it is ended for."""

    async def body() -> None:
        async with board(tmp_path, token_seconds=60) as b:
            pid = b.pid
            b.script.write_text(keys(hang_at=2, hang_ignores_abort=1))  # an abort follows the first token, so it never comes too early
            async with await b.client.chat.completions.create(**HI, stream=True) as chunks:
                async for chunk in chunks:
                    if chunk.choices[0].delta.content:
                        break
            await b.until_hung(pid, "ending an aborted run")
            await b.until_answered()

    asyncio.run(body())
