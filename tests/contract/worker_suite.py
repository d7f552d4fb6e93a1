"""What every worker backend must keep. A backend's test module subclasses `WorkerSuite` and has two fixtures: the `backend` and a
`model` file that it loads.

The suite talks to workers as the agent does: it starts them through the backend, asks their listener over HTTP, and closes connections.
One loaded worker serves all tests that do not end it.
"""

import array
import asyncio
import contextlib
import itertools
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from agent.serving import events, listener, openai, vectors
from agent.workers.base import Backend, Exit, Worker, WorkerSpec
from rkfleet.errors import BadRequest, Unavailable
from tests.support.serving import Stage, on_stage, undisturbed, until

CANCEL_SECONDS = 1.0  # the product's promise: a request that nobody waits for is gone within a second
GONE_SECONDS = 2.0  # a worker is gone that long after it was stopped or its agent ended
CONTEXT_TOKENS = 2048
WORDS = ("river", "mountain", "tree", "house", "garden", "stone", "cloud", "morning", "winter", "letter", "window", "candle")


class Running:
    """A loaded worker and how to ask it."""

    def __init__(self, worker: Worker, endpoint: str, api_key: str, beats: list[float]) -> None:
        self.worker = worker
        self.endpoint = endpoint
        self.api_key = api_key
        self.beats = beats

    @contextlib.asynccontextmanager
    async def chat(self, prompt: str, max_tokens: int = 8, api_key: str | None = None) -> AsyncIterator[listener.Reply]:
        body = msgspec.json.encode({"model": "any", "messages": [{"role": "user", "content": prompt}]})
        asked = openai.worker_request(openai.parse_request("chat", body), max_tokens)
        key = self.api_key if api_key is None else api_key
        async with listener.ask(self.endpoint, key, "/v1/chat/completions", asked) as reply:
            yield reply

    async def events(self, prompt: str, max_tokens: int = 8) -> list[openai.Event]:
        async with self.chat(prompt, max_tokens) as reply:
            assert reply.status == 200
            return [openai.decode_event(data) async for data in reply.events() if data != b"[DONE]"]


async def first_content(events: AsyncIterator[bytes]) -> None:
    """Read on until the first token."""
    async for data in events:
        if openai.decode_event(data).has_content:
            return
    pytest.fail("the answer ended without content")


class WorkerSuite:
    """The contract. The test module has fixtures `backend` and `model`, the subclass says the runtime's name.

    Attributes:
        places: Requests that a worker answers at the same time, where more than one is possible; a backend that cannot sets the tests of
            two requests to None and has its own.
        counts_before: Whether the prompt's length is known exactly before it is run.
    """

    runtime: ClassVar[str]
    places: ClassVar[int] = 2
    counts_before: ClassVar[bool] = True
    words_for_1000_tokens: ClassVar[int] = 1000
    embeds: ClassVar[bool] = True  # whether the backend has vectors; one that has none refuses, in a sentence

    @pytest.fixture(scope="class")
    @classmethod
    def shared(cls, backend: Backend, model: Path) -> Iterator[tuple[Stage, Running]]:
        """One loaded worker with all its places, for the tests that leave it as it is."""
        with on_stage(lambda: cls.loaded(backend, cls.spec(model, max_concurrent=cls.places))) as staged:
            yield staged

    @classmethod
    def spec(cls, model: Path, **changes: object) -> WorkerSpec:
        spec = WorkerSpec(
            uid="u", namespace="default", name="chat-0", key="k", runtime=cls.runtime, model_path=str(model), context_tokens=CONTEXT_TOKENS
        )
        return msgspec.structs.replace(spec, **changes)

    @classmethod
    @contextlib.asynccontextmanager
    async def started(
        cls, backend: Backend, spec: WorkerSpec, log: Callable[[str], None] = lambda _text: None
    ) -> AsyncIterator[tuple[Worker, list[float]]]:
        beats: list[float] = []
        async with asyncio.TaskGroup() as tasks:
            worker = await backend.start(spec, tasks, lambda: beats.append(time.perf_counter()), log)
            try:
                yield worker, beats
            finally:
                worker.kill(None, "the test is over")

    @classmethod
    @contextlib.asynccontextmanager
    async def loaded(cls, backend: Backend, spec: WorkerSpec) -> AsyncIterator[Running]:
        async with cls.started(backend, spec) as (worker, beats), asyncio.timeout(60):
            listening = await worker.loaded()
            assert listening is not None
            yield Running(worker, listening.endpoint, listening.api_key, beats)

    def long_prompt(self, seed: int) -> str:
        return " ".join(random.Random(seed).choices(WORDS, k=self.words_for_1000_tokens))

    # ---- answers

    def test_an_answer_is_progress_then_pieces_then_a_reason_and_the_usage(self, shared: tuple[Stage, Running]) -> None:
        stage, running = shared
        events = stage.run(running.events("Say hello.", max_tokens=5))
        progress = list(itertools.takewhile(lambda event: event.prompt_progress is not None, events))
        assert progress, "no progress before the first token: a client that leaves during prefill would not be noticed"
        total = progress[0].prompt_progress.total
        pieces = [event for event in events if event.has_content]
        assert 1 <= len(pieces) <= 5
        assert [event.finish_reason for event in events if event.finish_reason] == ["length"]
        usage = next(event.usage for event in events if event.usage)
        assert usage.completion_tokens == 5
        assert total > 0
        assert not self.counts_before or usage.prompt_tokens == total

    def test_the_listener_refuses_whoever_does_not_have_its_key(self, shared: tuple[Stage, Running]) -> None:
        async def ask() -> int:
            async with running.chat("Hello", api_key="guessed") as reply:
                return reply.status

        stage, running = shared
        assert stage.run(ask()) == 401

    def test_a_prompt_beyond_the_context_is_refused_with_its_length(self, shared: tuple[Stage, Running]) -> None:
        async def ask() -> tuple[int, bytes]:
            async with running.chat(" ".join([self.long_prompt(1)] * 3)) as reply:
                return reply.status, await reply.body()

        stage, running = shared
        status, body = stage.run(ask())
        error = openai.worker_error(body, CONTEXT_TOKENS)
        assert (status, error.details["code"]) == (400, "context_length_exceeded")
        assert str(CONTEXT_TOKENS) in error.message

    def test_two_requests_are_answered_at_the_same_time(self, shared: tuple[Stage, Running]) -> None:
        async def meet(prompt: str, gate: asyncio.Barrier) -> None:
            async with running.chat(prompt, max_tokens=64) as reply, contextlib.aclosing(reply.events()) as events:
                await first_content(events)
                await gate.wait()  # passed only while the other one is being answered too

        async def both() -> None:
            gate = asyncio.Barrier(2)
            async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
                tasks.create_task(meet("Count to ten.", gate))
                tasks.create_task(meet("Name ten trees.", gate))

        stage, running = shared
        stage.run(both())

    def test_a_loaded_worker_beats(self, shared: tuple[Stage, Running]) -> None:
        stage, running = shared
        stage.run(until(lambda: running.beats))

    # ---- embeddings

    def test_a_text_and_its_tokens_have_vectors_and_different_texts_different_ones(self, shared: tuple[Stage, Running]) -> None:
        async def ask(text: object) -> tuple[bytes, int]:
            body = vectors.vector_request(msgspec.Raw(msgspec.json.encode(text)), {})
            async with listener.ask(running.endpoint, running.api_key, "/v1/embeddings", body) as reply:
                answer = await reply.body()
                if reply.status != 200:
                    raise events.worker_error(answer, CONTEXT_TOKENS)
                return vectors.vector_of(answer)

        stage, running = shared
        if not self.embeds:
            with pytest.raises(BadRequest, match="not served"):
                stage.run(ask("The sea"))
            return
        sea, land, again = stage.run(ask("The sea")), stage.run(ask("The land is green")), stage.run(ask("The sea"))
        assert array.array("f", again[0]).tolist() == pytest.approx(array.array("f", sea[0]).tolist(), abs=1e-4)
        assert sea[0] != land[0]
        assert len(sea[0]) == len(land[0])
        assert 0 < sea[1] < land[1]
        assert stage.run(ask([1, 2, 3]))[1] == 3
        with pytest.raises(BadRequest):
            stage.run(ask(" ".join([self.long_prompt(4)] * 3)))

    # ---- cancel

    @pytest.mark.parametrize("after", ["head", "some tokens"])
    def test_a_closed_connection_frees_the_worker_within_a_second(self, backend: Backend, model: Path, after: str) -> None:
        """Also during prefill of 1,000 tokens, and with one place, so that the next request shows when the place is free."""

        async def leave_and_ask() -> float:
            async with self.loaded(backend, self.spec(model)) as running:
                prompt = self.long_prompt(2) if after == "head" else "Count to a thousand."
                async with running.chat(prompt, max_tokens=1000) as reply, contextlib.aclosing(reply.events()) as events:
                    async for data in events:
                        event = openai.decode_event(data)
                        if event.has_content or (after == "head" and event.prompt_progress is not None):
                            break
                left_at = time.perf_counter()
                async with running.chat("Hi") as reply, contextlib.aclosing(reply.events()) as events:
                    await anext(events)  # progress comes at once when the request gets the place
                return time.perf_counter() - left_at

        assert undisturbed(lambda: asyncio.run(leave_and_ask()), CANCEL_SECONDS) < CANCEL_SECONDS

    def test_a_closed_connection_is_noticed_while_another_request_is_answered(self, shared: tuple[Stage, Running]) -> None:
        async def leave_and_ask() -> float:
            async with running.chat("Count to a thousand.", max_tokens=1000) as other, contextlib.aclosing(other.events()) as pieces:
                await first_content(pieces)
                async with running.chat(self.long_prompt(3)) as reply, contextlib.aclosing(reply.events()) as events:
                    await anext(events)
                left_at = time.perf_counter()
                async with running.chat("Hi") as reply, contextlib.aclosing(reply.events()) as events:
                    await anext(events)
                return time.perf_counter() - left_at

        stage, running = shared
        assert undisturbed(lambda: stage.run(leave_and_ask()), CANCEL_SECONDS) < CANCEL_SECONDS

    # ---- ends

    def test_a_stopped_worker_is_gone_soon_and_gives_no_reason(self, backend: Backend, model: Path) -> None:
        async def stop() -> tuple[Exit, float]:
            async with self.loaded(backend, self.spec(model)) as running:
                asked_at = time.perf_counter()
                running.worker.stop()
                exit = await running.worker.exited()
                taken = time.perf_counter() - asked_at
                with pytest.raises(Unavailable):
                    await running.events("Hello")
                return exit, taken

        exit, taken = asyncio.run(stop())
        assert exit.reason is None
        assert taken < GONE_SECONDS

    def test_a_worker_that_is_stopped_while_it_loads_is_gone_soon(self, backend: Backend, model: Path) -> None:
        async def stop() -> tuple[Exit, float]:
            async with self.started(backend, self.spec(model)) as (worker, _):
                asked_at = time.perf_counter()
                worker.stop()
                assert await worker.loaded() is None
                return await worker.exited(), time.perf_counter() - asked_at

        exit, taken = asyncio.run(stop())
        assert exit.reason is None
        assert taken < GONE_SECONDS

    def test_a_file_that_is_no_model_is_a_load_failure_with_a_sentence(self, backend: Backend, tmp_path: Path) -> None:
        async def load(path: Path) -> Exit:
            async with self.started(backend, self.spec(path)) as (worker, _):
                assert await worker.loaded() is None
                return await worker.exited()

        path = tmp_path / "model.bin"
        path.write_bytes(b"not a model\n" * 100)
        exit = asyncio.run(load(path))
        assert exit.reason == "LoadFailed"
        assert str(path) in exit.message


class ProcessWorkerSuite(WorkerSuite):
    """What a backend must keep besides whose workers are processes of their own."""

    @pytest.mark.parametrize(("number", "reason"), [(signal.SIGKILL, "Killed"), (signal.SIGSEGV, "Crashed")])
    def test_the_reason_of_an_exit_tells_a_kill_from_a_crash(
        self, backend: Backend, model: Path, number: signal.Signals, reason: str
    ) -> None:
        async def end() -> Exit:
            async with self.loaded(backend, self.spec(model)) as running:
                os.kill(running.worker.pid, number)
                return await running.worker.exited()

        exit = asyncio.run(end())
        assert exit.reason == reason
        assert number.name in exit.message

    def test_a_stream_ends_in_an_error_when_its_worker_is_killed(self, backend: Backend, model: Path) -> None:
        async def kill_at_first_content(running: Running) -> None:
            async with running.chat("Count to a thousand.", max_tokens=1000) as reply:
                async for data in reply.events():
                    if openai.decode_event(data).has_content:
                        running.worker.kill("Killed", "by the test")

        async def end() -> Unavailable:
            async with self.loaded(backend, self.spec(model)) as running:
                with pytest.raises(Unavailable) as caught:
                    await kill_at_first_content(running)
                return caught.value

        assert asyncio.run(end()).details["code"] == "worker_exited"
