"""Simulated workers keep the contract of workers."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from agent.workers.base import WorkerSpec
from agent.workers.simulated import SimulatedBackend
from rkfleet import simulated
from rkfleet.benchmarks import load_table
from rkfleet.clock import SystemClock
from rkfleet.errors import Unavailable
from tests.contract.worker_suite import Running, WorkerSuite


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model.rkllm"
    path.write_bytes(simulated.MAGIC + b"model: Qwen2-0.5B\n")
    return path


@pytest.fixture(scope="module")
def backend() -> SimulatedBackend:
    return SimulatedBackend("rk3588", load_table(), clock=SystemClock(), new_api_key=lambda: "key", load_speedup=10.0)


class TestSimulated(WorkerSuite):
    runtime = "rkllm"
    words_for_1000_tokens = 570
    embeds = False  # what is simulated is time, not meaning

    @classmethod
    def spec(cls, model: Path, **changes: object) -> WorkerSpec:
        return msgspec.structs.replace(super().spec(model), **{"dtype": "w8a8", "reference_model": "Qwen2-0.5B", **changes})

    def test_a_variant_without_a_row_is_a_load_failure_that_names_what_there_is(self, backend: SimulatedBackend, model: Path) -> None:
        async def load() -> tuple[str, str]:
            async with self.started(backend, self.spec(model, dtype="w4a16")) as (worker, _):
                assert await worker.loaded() is None
                exit = await worker.exited()
                return str(exit.reason), exit.message

        reason, message = asyncio.run(load())
        assert reason == "LoadFailed"
        assert "no row for 'Qwen2-0.5B' w4a16 on rk3588" in message
        assert "w8a8 on rk3588 (1.3.0)" in message

    def test_a_stream_breaks_off_when_its_worker_ends(self, backend: SimulatedBackend, model: Path) -> None:
        """A killed worker looks as a killed process does: never an answer that only seems whole."""

        async def kill_at_first_event(running: Running) -> None:
            async with running.chat("Count to a thousand.", max_tokens=1000) as reply:
                async for _ in reply.events():
                    running.worker.kill("Killed", "by the test")

        async def end() -> Unavailable:
            async with self.loaded(backend, self.spec(model)) as running:
                with pytest.raises(Unavailable) as caught:
                    await kill_at_first_event(running)
                return caught.value

        assert asyncio.run(end()).details["code"] == "worker_exited"
