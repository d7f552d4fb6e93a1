"""The board's OpenAI endpoint over real workers of llama.cpp, asked by the real openai package."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from rkfleet import metric_names as names
from rkfleet.sample import ensure_sample
from tests.support.serving import BoardServing, Stage, on_stage, spec_of, undisturbed, until

pytestmark = pytest.mark.model

CANCEL_SECONDS = 1.0
ASK = {"model": "smollm2", "messages": [{"role": "user", "content": "Tell me about the sea."}]}
LONG = {"model": "smollm2", "messages": [{"role": "user", "content": "river mountain tree house garden " * 200}]}
LONG_TOKENS_MIN = 1000  # Of this prompt; one that comes after it has a few dozen.


class Board(BoardServing):
    """A board with one loaded replica, `default/chat-0`, uid `uid-0`."""

    def sample(self, entry: names.Metric, suffix: str = "", **labels: str) -> float:
        wanted = f"{entry.name}{suffix}"
        found = 0.0
        for line in self.metrics.text().decode().splitlines():
            name = line.partition("{")[0].partition(" ")[0]
            if name == wanted and all(f'{key}="{value}"' in line for key, value in labels.items()):
                found += float(line.rpartition(" ")[2])
        return found


@pytest.fixture(scope="module")
def staged() -> Iterator[tuple[Stage, Board]]:
    model = asyncio.run(ensure_sample())

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[Board]:
        async with Board().run() as board:
            board.supervisor.ensure(spec_of(model))
            await board.ready()
            yield board

    with on_stage(opened) as (stage, board):
        yield stage, board


@pytest.fixture
def stage(staged: tuple[Stage, Board]) -> Stage:
    return staged[0]


@pytest.fixture
def board(staged: tuple[Stage, Board]) -> Iterator[Board]:
    board = staged[1]
    yield board
    board.change_route()


# ---- answers


def test_an_answer_comes_under_the_served_name_with_its_usage(stage: Stage, board: Board) -> None:
    answer = stage.run(board.openai().chat.completions.create(**ASK, max_tokens=6))
    assert answer.model == "smollm2"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens == 6


@pytest.mark.parametrize("include_usage", [True, False])
def test_a_stream_has_its_usage_only_when_asked_for(stage: Stage, board: Board, include_usage: bool) -> None:
    async def ask() -> list[object]:
        options = {"stream_options": {"include_usage": True}} if include_usage else {}
        return [chunk async for chunk in await board.openai().chat.completions.create(**ASK, max_tokens=6, stream=True, **options)]

    chunks = stage.run(ask())
    assert {chunk.model for chunk in chunks} == {"smollm2"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == ([6] if include_usage else [])
    assert [len(chunk.choices) for chunk in chunks[-1:]] == [0 if include_usage else 1]


def test_the_same_seed_streams_what_it_answers_whole(stage: Stage, board: Board) -> None:
    async def ask() -> tuple[str, str]:
        ask = {**ASK, "max_tokens": 12, "seed": 7, "temperature": 0}
        whole = await board.openai().chat.completions.create(**ask)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in await board.openai().chat.completions.create(**ask, stream=True)]
        return whole.choices[0].message.content, "".join(pieces)

    whole, streamed = stage.run(ask())
    assert streamed == whole


def test_a_replica_has_its_own_base_url_and_completions(stage: Stage, board: Board) -> None:
    answer = stage.run(
        board.openai("/replicas/default/chat-0").completions.create(model="smollm2", prompt="Once upon a time", max_tokens=4)
    )
    assert (answer.object, answer.model, answer.usage.completion_tokens) == ("text_completion", "smollm2", 4)
    assert answer.choices[0].text


def test_models_lists_what_answers_now(stage: Stage, board: Board) -> None:
    async def listed() -> list[str]:
        return [model.id for model in (await board.openai().models.list()).data]

    assert stage.run(listed()) == ["smollm2"]
    assert stage.run(board.openai().models.retrieve("smollm2")).id == "smollm2"
    board.change_route(draining=True)
    assert stage.run(listed()) == []


# ---- limits


@pytest.mark.parametrize("asked", [{}, {"max_tokens": 100}, {"max_completion_tokens": 100}, {"extra_body": {"n_predict": 100}}])
def test_no_answer_is_longer_than_max_output_tokens(stage: Stage, board: Board, asked: dict[str, object]) -> None:
    board.change_route(max_output_tokens=3)
    answer = stage.run(board.openai().chat.completions.create(**ASK, **asked))
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (3, "length")


def test_a_prompt_beyond_the_context_is_refused_before_it_is_computed(stage: Stage, board: Board) -> None:
    board.change_route(context_tokens=64)
    with pytest.raises(openai.BadRequestError) as caught:
        stage.run(board.openai().chat.completions.create(**LONG, stream=True))
    assert caught.value.code == "context_length_exceeded"
    assert "64" in str(caught.value)


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_fills_the_context_ends_there(stage: Stage, board: Board, stream: bool) -> None:
    async def ask() -> tuple[int, str]:
        client = board.openai()
        if not stream:
            answer = await client.chat.completions.create(**ASK)
            return answer.usage.total_tokens, answer.choices[0].finish_reason
        chunks = [one async for one in await client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})]
        return chunks[-1].usage.total_tokens, chunks[-2].choices[0].finish_reason

    board.change_route(context_tokens=48)
    assert stage.run(ask()) == (48, "length")


def test_a_full_queue_answers_429_with_a_time_to_come_back(stage: Stage, board: Board) -> None:
    async def fill() -> openai.RateLimitError:
        client = board.openai()
        async with asyncio.TaskGroup() as tasks:
            open_requests = [tasks.create_task(client.chat.completions.create(**LONG, max_tokens=2)) for _ in range(2)]
            await until(lambda: board.serving.in_flight("uid-0") == 2)
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(**ASK)
            for task in open_requests:
                task.cancel()
        await until(lambda: board.serving.in_flight("uid-0") == 0)
        return caught.value

    board.change_route(max_concurrent=1, max_queued=1)
    error = stage.run(fill())
    assert error.code == "queue_full"
    assert int(error.response.headers["retry-after"]) >= 1
    assert "maxQueued" in error.message


# ---- refusals


def test_an_unknown_model_is_404(stage: Stage, board: Board) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        stage.run(board.openai().chat.completions.create(**{**ASK, "model": "gpt-4"}))
    assert caught.value.code == "model_not_found"
    assert "smollm2" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "path", "code"),
    [
        ({"draining": True}, "", "replica_draining"),
        ({"endpoint": "", "waiting_reason": "8 of 98 MB are fetched"}, "", "model_loading"),
        ({}, "/replicas/default/moved-away-0", "replica_not_here"),
    ],
)
def test_what_another_replica_may_answer_is_503_with_a_code(
    stage: Stage, board: Board, change: dict[str, object], path: str, code: str
) -> None:
    rejected = board.sample(names.REQUESTS, outcome="rejected")
    board.change_route(**change)
    with pytest.raises(openai.InternalServerError) as caught:
        stage.run(board.openai(path).chat.completions.create(**ASK))
    assert (caught.value.status_code, caught.value.code) == (503, code)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert board.sample(names.REQUESTS, outcome="rejected") == rejected + (code != "replica_not_here")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b'{"model": "smollm2"}', 400, "missing_required_parameter"),
        (b'{"messages": []}', 400, "invalid_value"),
        (b'{"model": "smollm2", "messages": [], "n": 2}', 400, "invalid_value"),
        (b'{"model": "smollm2", "messages": "hello"}', 400, "invalid_request"),
        (b'{"model": "smollm2", "messages": [], "max_tokens": 0}', 400, "invalid_value"),
    ],
)
def test_a_request_that_cannot_be_answered_is_400_and_says_why(stage: Stage, board: Board, body: bytes, status: int, code: str) -> None:
    async def post() -> httpx2.Response:
        async with httpx2.AsyncClient() as client:
            return await client.post(f"{board.url}/v1/chat/completions", content=body)

    response = stage.run(post())
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.json()["error"]["type"] == "invalid_request_error"


# ---- cancel


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_during_prefill_frees_the_worker_within_a_second(stage: Stage, board: Board, stream: bool) -> None:
    async def leave_and_ask(after_seconds: float) -> float | None:
        """Return how long the next request took; None when the worker had not begun with the prompt that was given up."""
        client = board.openai()
        cancelled = board.sample(names.REQUESTS, outcome="cancelled")
        prompts = board.sample(names.PROMPT_TOKENS)
        leaving = asyncio.ensure_future(client.chat.completions.create(**LONG, stream=stream))
        await until(lambda: board.sample(names.REQUESTS_RUNNING) == 1)
        await asyncio.wait((leaving,), timeout=after_seconds)  # into the prefill, which takes seconds
        leaving.cancel()
        left_at = time.perf_counter()
        await until(lambda: board.serving.in_flight("uid-0") == 0)
        assert board.sample(names.REQUESTS, outcome="cancelled") == cancelled + 1
        await client.chat.completions.create(**{**ASK, "messages": [{"role": "user", "content": "Hi"}]}, max_tokens=1)
        took = time.perf_counter() - left_at
        return took if board.sample(names.PROMPT_TOKENS) > prompts + LONG_TOKENS_MIN else None

    def measure() -> float:
        in_prefill = (took for seconds in (0.2, 0.6, 1.8) if (took := stage.run(leave_and_ask(seconds))) is not None)
        return next(in_prefill)

    board.change_route(max_concurrent=1)
    limit = CANCEL_SECONDS + 1.0  # the next request's own prefill takes up to one more
    assert undisturbed(measure, limit) < limit
    stage.run(until(lambda: board.sample(names.REQUESTS_RUNNING) == 0))


# ---- metrics


def test_metrics_count_what_was_asked(stage: Stage, board: Board) -> None:
    labels = {"namespace": "default", "model_name": "smollm2"}

    def counted() -> dict[str, float]:
        return {
            "answers": board.sample(names.REQUESTS, **labels, outcome="length"),
            "output": board.sample(names.GENERATION_TOKENS, **labels),
            "prompt": board.sample(names.PROMPT_TOKENS, **labels),
            "gaps": board.sample(names.INTER_TOKEN_LATENCY, "_count", **labels),
            **{
                entry.name: board.sample(entry, "_count", **labels)
                for entry in (
                    names.TIME_TO_FIRST_TOKEN, names.TIME_PER_OUTPUT_TOKEN, names.E2E_REQUEST_LATENCY,
                    names.QUEUE_TIME, names.PREFILL_TIME, names.DECODE_TIME,
                )
            },
        }  # fmt: skip

    async def ask() -> int:
        prompt_tokens = 0
        for stream in (False, True, False):
            options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
            answer = await board.openai().chat.completions.create(**ASK, max_tokens=5, temperature=0, **options)
            usages = [one.usage async for one in answer if one.usage] if stream else [answer.usage]
            prompt_tokens += usages[0].prompt_tokens
        return prompt_tokens

    before = counted()
    prompt_tokens = stage.run(ask())
    stage.run(until(lambda: counted()["answers"] == before["answers"] + 3))  # the last is counted after the client has it
    grown = {name: value - before[name] for name, value in counted().items()}
    assert grown.pop("gaps") == pytest.approx(12, abs=3)  # a token may hold half a character and bring no content
    assert grown.pop("prompt") == prompt_tokens
    assert grown.pop("output") == 15
    assert set(grown.values()) == {3.0}
    measured = board.serving.measured("uid-0")
    assert measured.time_to_first_token_seconds > 0
    assert measured.decode_tokens_per_second > 0


# ---- workers


def test_a_killed_worker_ends_streams_in_an_error_and_comes_back(stage: Stage, board: Board) -> None:
    async def kill_in_stream() -> None:
        stream = await board.openai().chat.completions.create(**ASK, max_tokens=500, stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content and (state := board.state()):
                with contextlib.suppress(ProcessLookupError):  # What came before the kill is read after it.
                    os.kill(state.pid, signal.SIGKILL)

    async def scenario() -> None:
        killed = (await board.ready()).pid
        with pytest.raises(openai.APIError) as caught:
            await kill_in_stream()
        assert caught.value.code == "worker_exited"
        await until(lambda: board.state().phase == "Ready" and board.state().pid != killed)
        state = board.state()
        assert (state.restarts, state.last_exit.reason) == (1, "Killed")
        assert (await board.openai().chat.completions.create(**ASK, max_tokens=2)).usage.completion_tokens == 2

    stage.run(scenario())
    assert board.sample(names.WORKER_EXITS, runtime="llamacpp", reason="Killed") == 1


def test_two_workers_on_two_cores_share_them(stage: Stage, board: Board, tmp_path: Path) -> None:
    async def tokens_per_second(path: str) -> float:
        stream = await board.openai(path).chat.completions.create(**ASK, max_tokens=24, stream=True)
        stamps = [time.perf_counter() async for chunk in stream if chunk.choices[0].delta.content]
        return (len(stamps) - 1) / (stamps[-1] - stamps[0])

    async def both() -> tuple[float, list[float]]:
        board.supervisor.ensure(spec_of(await ensure_sample(), uid="uid-1", name="chat-1", key="key-1"))
        await board.ready("uid-1")
        alone = await tokens_per_second("/replicas/default/chat-0")
        together = await asyncio.gather(*(tokens_per_second(f"/replicas/default/chat-{number}") for number in (0, 1)))
        board.supervisor.stop("uid-1")
        await until(lambda: board.state("uid-1") is None)
        return alone, together

    alone, together = stage.run(both())
    assert min(together) > alone / 4, f"{together} tokens/s together, {alone} alone"
