"""Workers of the NPU runtime keep the contract of workers, with a simulated library of every generation."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from agent.workers.backends import ChildBackend
from agent.workers.base import WorkerSpec
from tests.contract.worker_suite import ProcessWorkerSuite, Running, first_content
from tests.support import npu_worker
from tests.support.serving import Stage, until


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return npu_worker.model(tmp_path_factory.mktemp("model"), ttft_ms=5, tokens_per_s=200, reply_tokens=1000)


@pytest.fixture(scope="module")
def backend() -> ChildBackend:
    return npu_worker.backend()


class RkllmSuite(ProcessWorkerSuite):
    """One request at a time: what the contract says of two is said here."""

    runtime = "rkllm"
    places = 1
    counts_before = False
    generation: Any
    template: str | None = None

    test_two_requests_are_answered_at_the_same_time = None
    test_a_closed_connection_is_noticed_while_another_request_is_answered = None

    @classmethod
    def spec(cls, model: Path, **changes: object) -> WorkerSpec:
        npu = npu_worker.npu(cls.generation, model.parent, template=cls.template)
        return super().spec(model, **{"npu": npu, "max_output_tokens": 1000, **changes})

    def test_requests_wait_for_their_turn_and_one_that_left_meanwhile_never_runs(self, shared: tuple[Stage, Running]) -> None:
        """The one that runs is not disturbed, and the next one gets the place when it ends."""

        async def meet() -> int:
            async with running.chat("Count.", max_tokens=40) as first, contextlib.aclosing(first.events()) as pieces:
                await first_content(pieces)
                leaving = asyncio.ensure_future(running.events("Nobody waits for this.", max_tokens=1000))
                waiting = asyncio.ensure_future(running.events("And then?", max_tokens=3))
                async for _ in pieces:
                    leaving.cancel()
                    await asyncio.wait((leaving,))
                events = await waiting
                return next(event.usage.completion_tokens for event in events if event.usage)

        stage, running = shared
        assert stage.run(asyncio.wait_for(meet(), 5)) == 3


class TestG1(RkllmSuite):
    generation = "G1"
    template = npu_worker.TEMPLATE


class TestG2(RkllmSuite):
    generation = "G2"


class TestG3(RkllmSuite):
    generation = "G3"
    template = npu_worker.TEMPLATE


class TestG4(RkllmSuite):
    generation = "G4"


def test_more_than_one_request_at_a_time_is_refused_with_what_to_set(tmp_path: Path) -> None:
    spec = npu_worker.spec_of(npu_worker.model(tmp_path), npu_worker.npu("G4", tmp_path), max_concurrent=2)
    exit = asyncio.run(npu_worker.exit_of_load(spec))
    assert exit.reason == "LoadFailed"
    assert "one request at a time, not 2; set serving.maxConcurrent: 1" in exit.message


def test_nothing_of_a_worker_is_left_when_its_agent_is_gone(tmp_path: Path) -> None:
    """Neither the process nor what stands between it and its log."""

    async def orphan() -> None:
        async with npu_worker.running(npu_worker.spec_of(npu_worker.model(tmp_path), npu_worker.npu("G4", tmp_path))) as running:
            pid = running.worker.pid
            children = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
            assert len(children) == 1
            running.worker.stop()
            await running.worker.exited()
            await until(lambda: not any(Path(f"/proc/{one}").exists() for one in (pid, *children)), seconds=2)

    asyncio.run(orphan())
