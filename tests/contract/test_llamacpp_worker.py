"""Workers of llama.cpp keep the contract of workers."""

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest

from agent.serving import listener, openai
from agent.workers.backends import ChildBackend
from rkfleet.sample import ensure_sample
from tests.contract.worker_suite import GONE_SECONDS, ProcessWorkerSuite
from tests.support.agents import is_alive
from tests.support.serving import llamacpp, until

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model() -> Path:
    return asyncio.run(ensure_sample())


@pytest.fixture(scope="module")
def backend() -> ChildBackend:
    return llamacpp()


class TestLlamaCpp(ProcessWorkerSuite):
    runtime = "llamacpp"

    def test_a_placeholder_for_simulated_boards_is_refused(self, backend: ChildBackend, tmp_path: Path) -> None:
        async def load() -> str:
            async with self.started(backend, self.spec(path)) as (worker, _):
                return (await worker.exited()).message

        path = tmp_path / "model.rkllm"
        path.write_bytes(b"RKFLEET-SIMULATED\nmodel: x\n")
        assert "placeholder for simulated boards" in asyncio.run(load())

    def test_a_truncated_model_is_a_load_failure_in_the_words_of_llama_cpp_which_are_logged(
        self, backend: ChildBackend, model: Path, tmp_path: Path
    ) -> None:
        async def load() -> tuple[str, list[str]]:
            lines: list[str] = []
            async with self.started(backend, self.spec(path), lines.append) as (worker, _):
                return (await worker.exited()).message, lines

        path = tmp_path / "model.gguf"
        with model.open("rb") as whole:
            path.write_bytes(whole.read(8 << 20))
        message, lines = asyncio.run(load())
        assert "data is not within the file bounds" in message
        assert any("data is not within the file bounds" in line for line in lines)

    @pytest.mark.parametrize("shift", [True, False])
    def test_a_full_context_ends_the_answer_or_forgets_its_beginning_as_declared(
        self, backend: ChildBackend, model: Path, shift: bool
    ) -> None:
        """`serving.contextOverflow` acts; the runtime rounds a context up to 256 tokens."""

        async def count() -> int:
            spec = self.spec(model, context_tokens=256, shift=shift, keep_tokens=8 if shift else 0)
            asked = {
                "prompt": "one two " * 90,
                "max_tokens": 100,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            async with (
                self.loaded(backend, spec) as running,
                listener.ask(running.endpoint, running.api_key, "/v1/completions", msgspec.json.encode(asked)) as reply,
            ):
                events = [openai.decode_event(data) async for data in reply.events() if data != b"[DONE]"]
            usage = next(one.usage for one in reversed(events) if one.usage is not None)
            return usage.prompt_tokens + usage.completion_tokens

        assert (asyncio.run(count()) > 256) == shift

    @pytest.mark.parametrize("moment", ["started", "loaded"])
    def test_a_worker_dies_with_its_agent(self, model: Path, moment: str) -> None:
        """Also while it loads, when llama.cpp holds Python's lock and nothing in Python could notice."""

        async def orphan() -> int:
            agent = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.support.worker_parent", str(model), moment, stdout=asyncio.subprocess.PIPE
            )
            pid = int(await agent.stdout.readline())
            agent.kill()
            await agent.wait()
            await until(lambda: not is_alive(pid), seconds=GONE_SECONDS)
            return pid

        assert not is_alive(asyncio.run(orphan()))
