"""A simulated worker's time is the row's: to the first token, between tokens, and when requests share the NPU."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest

from agent.workers import loopback, timing
from agent.workers.base import WorkerSpec
from agent.workers.simulated import Engine, count_tokens
from rkfleet.benchmarks import load_table
from rkfleet.clock import give_way
from tests.support.clocks import ManualClock

ROW = load_table().get("Qwen2-1.5B", "w8a8", "rk3588")
SPEC = WorkerSpec(
    uid="u", namespace="default", name="chat-0", key="k", runtime="rkllm", model_path="/m", dtype="w8a8", reference_model="Qwen2-1.5B"
)
LATE_SECONDS = 0.0011  # What an event loop adds to a sleep.


class LateClock(ManualClock):
    """Every sleep ends a little late, as real ones do."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds + LATE_SECONDS)


class Recorder:
    """Takes an answer and notes when each token came."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.status = 0
        self.events: list[dict[str, Any]] = []
        self.token_times: list[float] = []
        self.text = ""

    async def begin(self, status: int, content_type: bytes) -> None:
        self.status = status

    async def piece(self, data: bytes) -> None:
        for event in data.split(b"\n\n"):
            if event.startswith(b"data: {"):
                self._note(msgspec.json.decode(event[6:]))
            elif event.startswith(b"{"):
                self.events.append(msgspec.json.decode(event))

    def _note(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        for choice in event.get("choices", ()):
            if text := choice.get("delta", {}).get("content") or choice.get("text"):
                self.token_times.append(self._clock.monotonic())
                self.text += text

    async def end(self) -> None:
        pass


def request(content: str = "Hi", *, path: str = "/v1/chat/completions", key: str = "key", **fields: Any) -> loopback.Request:
    said = {"messages": [{"role": "user", "content": content}]} if "chat" in path else {"prompt": content}
    head = loopback.h11.Request(method="POST", target=path, headers=[("host", "x"), ("authorization", f"Bearer {key}")])
    return loopback.Request(head, msgspec.json.encode({**said, "return_progress": True, **fields}))


async def passing(clock: ManualClock, work: Coroutine[Any, Any, Any]) -> None:
    """Let time pass, sleeper by sleeper, until the work is done."""
    task = asyncio.ensure_future(work)
    while not task.done():
        for _ in range(8):
            await give_way()
        if clock._sleepers and not task.done():
            clock.advance(clock._sleepers[0][0] - clock.monotonic())
    task.result()


def answer(*requests: loopback.Request, clock: ManualClock | None = None, **spec: Any) -> list[Recorder]:
    """Return the answers to requests that come at the same moment."""
    clock = clock or LateClock()

    async def body() -> list[Recorder]:
        engine = Engine(msgspec.structs.replace(SPEC, **spec), ROW, "rk3588", timing.Npu(), clock, api_key="key")
        recorders = [Recorder(clock) for _ in requests]
        together = (engine.answer(one, recorder) for one, recorder in zip(requests, recorders, strict=True))  # type: ignore[arg-type]

        async def all_of_them() -> None:
            await asyncio.gather(*together)

        await passing(clock, all_of_them())
        return recorders

    return asyncio.run(body())


def rate(times: list[float]) -> float:
    return (len(times) - 1) / (times[-1] - times[0])


def test_tokens_come_at_the_rate_of_the_row_although_every_sleep_is_late() -> None:
    """A schedule that added its sleeps up would be 1.8% slow with these."""
    (said,) = answer(request(max_tokens=200))
    assert len(said.token_times) == 200
    assert rate(said.token_times) == pytest.approx(ROW.tokens_per_second, rel=0.001)


def test_the_first_token_comes_after_the_time_of_the_row() -> None:
    """For every prompt up to the length that the vendor measured with; the late wake-ups of the steps do not add up."""
    (said,) = answer(request(max_tokens=2))
    assert said.token_times[0] == pytest.approx(ROW.time_to_first_token_seconds, abs=2 * LATE_SECONDS)


def test_a_longer_prompt_takes_longer_in_proportion() -> None:
    """640 tokens are ten times the 64 of the row."""
    assert sum(timing.prefill_steps(ROW, 640)) == pytest.approx(10 * ROW.time_to_first_token_seconds)
    assert sum(timing.prefill_steps(ROW, 10)) == pytest.approx(ROW.time_to_first_token_seconds)
    assert max(timing.prefill_steps(ROW, 4000)) <= timing.PREFILL_STEP_SECONDS_MAX
    words = "x" * 4 * (640 - 4)
    (said,) = answer(request(words, max_tokens=2))
    assert said.token_times[0] == pytest.approx(10 * ROW.time_to_first_token_seconds, abs=0.005)


def test_requests_that_run_together_share_the_npu() -> None:
    """A board gives out as many tokens per second as its row says, however many ask."""
    two = answer(request(max_tokens=100), request(max_tokens=100), max_concurrent=2)
    first, last = min(one.token_times[0] for one in two), max(one.token_times[-1] for one in two)
    assert 199 / (last - first) == pytest.approx(ROW.tokens_per_second, rel=0.02)
    assert all(rate(one.token_times) == pytest.approx(ROW.tokens_per_second / 2, rel=0.03) for one in two)


def test_a_request_without_a_place_waits_for_one() -> None:
    """With one place the second begins its prefill when the first has ended."""
    one, two = answer(request(max_tokens=10), request(max_tokens=10))
    assert two.token_times[0] >= one.token_times[-1] + ROW.time_to_first_token_seconds


def test_every_answer_says_that_it_is_simulated_and_the_same_question_has_the_same_answer() -> None:
    """With the chip and the quantization, on both paths."""
    said, again = (answer(request(max_tokens=20))[0].text for _ in range(2))
    (completion,) = answer(request(path="/v1/completions", max_tokens=20))
    assert said == again == completion.text
    assert said.startswith("[simulated rk3588 w8a8] ")


def test_an_answer_ends_where_the_context_does() -> None:
    """The usage counts what was sent, and the reason is length."""
    (said,) = answer(request("x" * 40, max_tokens=500), context_tokens=64)
    usage = said.events[-1]["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == 64
    assert len(said.token_times) == usage["completion_tokens"]
    assert [event["choices"][0]["finish_reason"] for event in said.events[-2:-1]] == ["length"]


def test_tokens_of_a_prompt_are_counted_over_all_of_its_text() -> None:
    """Bytes by four, rounded up, and four for each message; parts of a list count as their text."""
    assert count_tokens("12345") == 2
    parts = [{"type": "text", "text": "1234"}, {"type": "image_url", "image_url": {"url": "x"}}]
    head = loopback.h11.Request(method="POST", target="/v1/chat/completions", headers=[("host", "x"), ("authorization", "Bearer key")])
    body = msgspec.json.encode({"messages": [{"role": "user", "content": parts}], "max_tokens": 1, "return_progress": True})
    (said,) = answer(loopback.Request(head, body))
    assert said.events[0]["prompt_progress"]["total"] == 5


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (request(key="guessed"), 401),
        (request(path="/v1/embeddings"), 404),
        (request(max_tokens="many"), 400),
        (request("x" * 4 * 1024), 400),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_sentence(asked: loopback.Request, status: int) -> None:
    """In llama.cpp's form, which the agent reads."""
    (said,) = answer(asked)
    assert said.status == status
    assert said.events[0]["error"]["code"] == status
    assert said.events[0]["error"]["message"]


def test_loading_takes_as_long_as_reading_the_weights() -> None:
    """2.47 GiB at 1 GiB/s, and faster when asked to."""
    assert timing.load_seconds(ROW) == pytest.approx(2.47)
    assert timing.load_seconds(ROW, speedup=10) == pytest.approx(0.247)


def test_two_models_on_one_board_share_its_npu() -> None:
    """Two workers of a board are as fast together as one alone, because the row was measured on all cores."""
    clock = LateClock()

    async def body() -> list[Recorder]:
        npu = timing.Npu()
        engines = [Engine(SPEC, ROW, "rk3588", npu, clock, api_key="key") for _ in range(2)]
        recorders = [Recorder(clock) for _ in engines]

        async def both() -> None:
            asked = (engine.answer(request(max_tokens=60), said) for engine, said in zip(engines, recorders, strict=True))  # type: ignore[arg-type]
            await asyncio.gather(*asked)

        await passing(clock, both())
        return recorders

    two = asyncio.run(body())
    assert all(rate(one.token_times) == pytest.approx(ROW.tokens_per_second / 2, rel=0.03) for one in two)


def test_a_full_context_ends_the_answer_unless_the_context_shifts() -> None:
    """`serving.contextOverflow` acts on simulated boards too."""
    prompt = "x" * 4 * 60
    (stopped,) = answer(request(prompt, max_tokens=100), context_tokens=100)
    (shifted,) = answer(request(prompt, max_tokens=100), context_tokens=100, shift=True)
    assert (len(stopped.token_times), len(shifted.token_times)) == (36, 100)
