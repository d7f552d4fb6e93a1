"""What a worker on the NPU keeps from one run to the next, and what failing and cancelled runs leave, with the simulated library."""

import asyncio
import contextlib
import fcntl
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agent.workers.base import Exit
from agent.workers.rkllm.caches import IN_USE
from agent.workers.rkllm.library import SUPPORTS
from agent.workers.rkllm.releases import Generation
from rkfleet.http1 import ConnectionLost
from tests.support.npu_setup import CHATML, WEATHER, Setup, refused
from tests.support.npu_worker import Refused, Reply, Running
from tests.support.serving import undisturbed, until

FREE_SECONDS = 0.05  # from the token at which a client left until the NPU is free


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


# ---- the cache and saved prompts


@pytest.mark.parametrize(("generation", "template"), [("G2", None), ("G3", CHATML), ("G4", None)])
def test_a_conversation_goes_on_in_the_cache(setup: Setup, generation: Generation, template: str | None) -> None:
    async def talk(running: Running) -> tuple[Reply, Reply]:
        first = await running.chat("one two three", tenant="ada")
        answer = {"role": "assistant", "content": first.text}
        return first, await running.chat("one two three", answer, "four", tenant="ada")

    first, second = setup.run(setup.spec(generation, template=template), talk)
    assert second.cached_tokens in {first.usage["total_tokens"], first.usage["total_tokens"] - 1}
    assert second.usage["prompt_tokens"] > second.cached_tokens


@pytest.mark.parametrize("generation", ["G1", "G2", "G4"])
def test_a_saved_prompt_outlives_its_worker_and_belongs_to_one_tenant(setup: Setup, generation: Generation) -> None:
    spec = setup.spec(generation, template=CHATML, cache_dir=str(setup.directory / "caches"), cache_bytes=1 << 20)
    long = " ".join(f"word{number}" for number in range(50))

    def ask(tenant: str, key: str = "k") -> Reply:
        return setup.chat(spec, long, tenant=tenant, prompt_cache_key=key)

    assert ask("ada").cached_tokens == 0
    assert ask("ada").cached_tokens >= 50
    assert ask("bob").cached_tokens == 0
    assert ask("ada", "other").cached_tokens == 0
    assert len(list((setup.directory / "caches").iterdir())) == 3


def test_a_saved_prompt_that_the_library_refuses_is_replaced_and_the_request_answered(setup: Setup) -> None:
    caches = setup.directory / "caches"
    spec = setup.spec(cache_dir=str(caches), cache_bytes=1 << 20)

    async def ask(running: Running) -> list[Reply]:
        replies = [await running.chat("hello there", prompt_cache_key="k", tenant="ada")]
        next(caches.iterdir()).write_bytes(b"damaged")
        replies += [await running.chat("hello there", prompt_cache_key="k", tenant="ada") for _ in range(2)]
        return replies

    first, after, later = setup.run(spec, ask)
    assert [one.finish_reason for one in (first, after, later)] == ["stop"] * 3
    assert (after.cached_tokens, later.cached_tokens > 0) == (0, True)


def test_a_saved_prompt_that_ends_the_process_with_it_does_so_once(setup: Setup) -> None:
    """The next process deletes it instead of dying of the same request; a request meanwhile is answered without."""
    caches = setup.directory / "caches"
    spec = setup.spec(cache_dir=str(caches), cache_bytes=1 << 20)
    setup.chat(spec, "hello there", prompt_cache_key="k")

    async def crash(running: Running) -> str:
        setup.says(crash_at=0)
        with contextlib.suppress(Refused, ConnectionLost):
            await running.chat("hello there", prompt_cache_key="k")
        return (await running.worker.exited()).reason or ""

    assert setup.run(spec, crash) == "Crashed"
    setup.says()
    assert [path.name for path in caches.iterdir()] == [IN_USE]
    assert setup.chat(spec, "hello there", prompt_cache_key="k").cached_tokens == 0
    assert setup.chat(spec, "hello there", prompt_cache_key="k").cached_tokens > 0


def test_a_disk_without_room_costs_the_saved_prompt_and_not_the_answer(setup: Setup) -> None:
    """A library that finds the disk full fails its run."""
    spec = setup.spec(cache_dir=str(setup.directory / "caches"), cache_bytes=1 << 60)

    async def ask(running: Running) -> list[str]:
        assert (await running.chat("hello there", prompt_cache_key="k")).finish_reason == "stop"
        return running.lines

    assert any("a prompt was not saved: the disk has less room" in line for line in setup.run(spec, ask))
    assert list((setup.directory / "caches").iterdir()) == []


def test_a_run_that_failed_saves_nothing_and_the_next_run_writes_nowhere(setup: Setup) -> None:
    caches = setup.directory / "caches"

    async def ask(running: Running) -> list[str]:
        setup.says(error_at=1, error_code=0)
        with contextlib.suppress(Refused):
            await running.chat("hello there", prompt_cache_key="k")
        setup.says()
        await running.chat("hello there")
        return [one.name for one in caches.iterdir()]

    assert setup.run(setup.spec(cache_dir=str(caches), cache_bytes=1 << 20), ask) == []


@pytest.mark.parametrize("shift", [False, True])
def test_a_full_context_ends_the_answer_or_forgets_its_beginning_as_declared(setup: Setup, shift: bool) -> None:
    spec = setup.spec("G3", model={"reply_tokens": 99}, context_tokens=100, shift=shift, keep_tokens=4)

    async def ask(running: Running) -> Reply:
        await running.chat(" ".join(f"word{number}" for number in range(40)), max_tokens=1)  # how long a token is here
        return await running.chat("hello there")

    reply = setup.run(spec, ask)
    if shift:
        assert (reply.usage["completion_tokens"], reply.finish_reason) == (99, "stop")
        assert reply.usage["total_tokens"] > 100
    else:
        assert reply.finish_reason == "length"
        assert 80 <= reply.usage["total_tokens"] <= 100


# ---- failures of a run


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ({"run_code": -1}, "rkllm run failed"),
        ({"error_at": 3}, "the run fails after 3 tokens"),
        ({"error_at": 3, "error_code": 0}, "the run fails after 3 tokens"),
        ({"matmul_failures": 100}, "matmul(w8a8) run failed"),
    ],
)
def test_a_run_that_failed_is_an_error_with_the_words_of_the_library_and_the_next_is_whole(
    setup: Setup, script: dict[str, Any], words: str
) -> None:
    """Whether the library returned it, told it by the callback only, or printed it and went on with garbage."""

    async def ask(running: Running) -> tuple[str, Reply]:
        setup.says(**script)
        try:
            reply = await running.chat("hello")
            assert reply.error is not None
            message = str(reply.error["message"])
        except Refused as error:
            message = str(error.error["message"])
        setup.says()
        return message, await running.chat("hello")

    message, after = setup.run(setup.spec(), ask)
    assert words in message
    assert (after.usage["completion_tokens"], after.finish_reason) == (32, "stop")
    assert after.cached_tokens == 0


def test_nobody_is_answered_from_a_cache_that_cannot_be_cleared(setup: Setup) -> None:
    """Anyone else is refused rather than let into it, until it can be cleared again."""

    async def ask(running: Running) -> tuple[Refused, Reply]:
        await running.chat("secretword", tenant="ada")
        setup.says(clear_code=-1)
        error = await refused(running.chat("mine", tenant="bob"))
        setup.says()
        return error, await running.chat("mine", tenant="bob")

    error, after = setup.run(setup.spec(model={"reply": "echo"}), ask)
    assert (error.status, "cannot be cleared" in error.error["message"]) == (503, True)
    assert "mine" in after.text
    assert "secretword" not in after.text


def test_a_refusal_between_two_runs_is_no_failure_of_the_next(setup: Setup) -> None:
    caches = setup.directory / "caches"

    async def ask(running: Running) -> list[Reply]:
        replies = []
        for _ in range(15):
            replies.append(await running.chat("hello there", prompt_cache_key="k"))
            next(caches.iterdir()).write_bytes(b"damaged")
            await running.chat("something else")
        return replies

    replies = setup.run(setup.spec(cache_dir=str(caches), cache_bytes=1 << 20), ask)
    assert [reply.error for reply in replies] == [None] * 15


def test_a_crash_tells_the_last_words_of_the_library(setup: Setup) -> None:
    async def ask(running: Running) -> Exit:
        setup.says(crash_at=0, matmul_failures=1)
        with contextlib.suppress(Refused):
            await running.chat("hello")
        return await running.worker.exited()  # type: ignore[no-any-return]

    async def crash(running: Running) -> Exit:
        with contextlib.suppress(Exception):
            return await ask(running)
        return await running.worker.exited()  # type: ignore[no-any-return]

    exit = setup.run(setup.spec(), crash)
    assert exit.reason == "Crashed"
    assert "SIGSEGV" in exit.message
    assert "matmul(w8a8) run failed" in exit.message


@pytest.mark.parametrize("leaves", [False, True])
def test_a_run_that_hangs_ends_the_worker_with_that_reason(setup: Setup, leaves: bool) -> None:
    """By itself, or when it does not end after its client left."""
    limits = {"grace_seconds": 0.3, "token_seconds": 0.3 if not leaves else 60, "abort_seconds": 0.3}

    async def hang(running: Running) -> Exit:
        setup.says(hang_at=3, hang_ignores_abort=1)
        with contextlib.suppress(Exception):
            async with running.stream("hello") as reply:
                events = reply.events()
                async for data in events:
                    if leaves and b'"content"' in data:
                        break
        return await running.worker.exited()  # type: ignore[no-any-return]

    exit = setup.run(setup.spec(), hang, {"limits": limits, "beat_seconds": 0.1})
    assert exit.reason == "Hung"
    assert ("ending an aborted run" if leaves else "between two tokens") in exit.message


# ---- cancelling and the board's lock


def test_a_client_that_left_frees_the_npu_with_the_current_token(setup: Setup) -> None:
    """Seen by another user of the NPU, who waits for the board's lock."""

    async def free_after(running: Running) -> float:
        async with running.stream("hello", max_tokens=400) as reply:
            events = reply.events()
            async for data in events:
                if b'"content"' in data:
                    break
            freed: list[float] = []
            waiting = threading.Thread(target=lambda: freed.append(take(setup.directory / "npu.lock")))
            waiting.start()
            await events.aclose()
        left_at = time.perf_counter()
        await asyncio.to_thread(waiting.join)
        return freed[0] - left_at

    spec = setup.spec(model={"tokens_per_s": 20, "reply_tokens": 400})
    token_seconds = 1 / 20
    assert undisturbed(lambda: setup.run(spec, free_after), FREE_SECONDS) < FREE_SECONDS + token_seconds


def take(path: Path) -> float:
    """Wait for a lock, give it back, and return when that was."""
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return time.perf_counter()


def test_a_late_cancel_never_touches_the_next_request(setup: Setup) -> None:
    """Clients leave at any moment, also exactly at the end; whoever comes next gets a whole answer from its first token."""

    async def ask(running: Running) -> None:
        for leave_after in itertools.islice(itertools.cycle(range(9)), 90):
            async with running.stream("hello", max_tokens=5) as reply:
                events = reply.events()
                for _ in range(leave_after):
                    if await anext(events, None) is None:
                        break
            answer = await running.chat("and now", max_tokens=4)
            assert (answer.usage["completion_tokens"], answer.finish_reason) == (4, "length")
            assert answer.text.startswith("[simulated runtime")

    setup.run(setup.spec(model={"ttft_ms": 0, "tokens_per_s": 20000}), ask)


def test_a_request_that_left_while_another_program_had_the_npu_never_runs(setup: Setup) -> None:
    async def seen(running: Running) -> None:
        """Return when the worker's loop, which answers this, has seen what was sent to it before."""
        for _ in range(5):
            await refused(running.post("/v1/nothing", {}))

    async def ask(running: Running) -> list[str]:
        with (setup.directory / "npu.lock").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            leaving = asyncio.ensure_future(running.post("/v1/completions", {"prompt": "one"}, {"x-request-id": "leaves"}))
            await seen(running)
            staying = asyncio.ensure_future(running.post("/v1/completions", {"prompt": "two"}, {"x-request-id": "stays"}))
            await seen(running)
            assert not leaving.done()
            assert not staying.done()
            leaving.cancel()
            await asyncio.wait((leaving,))
            await seen(running)
        await staying
        await until(lambda: any("stays" in line for line in running.lines), seconds=5)
        return running.lines

    lines = setup.run(setup.spec(), ask)
    assert not [line for line in lines if "leaves" in line]


# ---- logs


def test_log_lines_have_the_request_s_id_and_nothing_that_anybody_wrote(setup: Setup) -> None:
    async def ask(running: Running) -> tuple[list[str], Refused]:
        secret = {"role": "user", "content": "secretword"}
        await running.post(
            "/v1/chat/completions", {"messages": [secret], "tools": [WEATHER], "tenant": "secretword"}, {"x-request-id": "r-17"}
        )
        await running.post("/v1/completions", {"prompt": "secretword"}, {"x-request-id": "bad\tid"})
        error = await refused(running.post("/v1/completions", {"prompt": "a" * 9, "adapter": "secretword"}, {"x-request-id": "r-18"}))
        await until(lambda: any("request r-17" in line for line in running.lines), seconds=5)
        return running.lines, error

    lines, error = setup.run(setup.spec(model={"reply": "echo"}), ask)
    assert not [line for line in lines if "secretword" in line or "bad\tid" in line]
    assert error.error["request_id"] == "r-18"


def test_supports_is_what_this_file_believes(setup: Setup) -> None:
    """The words that branches of the worker ask for exist in the table of the bindings."""
    known = set().union(*SUPPORTS.values())
    asked = {"sampling", "max_new_tokens", "keep_history", "clear_kv_cache", "chat_template", "built_in_chat_template", "function_tools"}
    assert asked | {"enable_thinking", "role", "images", "logits", "hidden", "cpus", "embed_flash", "keep_tokens"} <= known
