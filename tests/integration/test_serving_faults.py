"""Faults that servers of this field have been seen with, each caused here by a worker that does what makes it, and absent.

Numbers are the threads or the places in which they were found.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator

import httpx2
import msgspec
import ollama
import openai
import pytest

from agent.serving import forward
from rkfleet import metric_names as names
from tests.support.scripted_serving import ASK, Demands, progress, scripted
from tests.support.scripted_worker import chunk


def vector(numbers: list[float], count: int = 1) -> bytes:
    return msgspec.json.encode({"data": [{"embedding": numbers}] * count, "usage": {"prompt_tokens": 2}})


def fields(body: bytes) -> dict[str, object]:
    return msgspec.json.decode(body, type=dict[str, object])


# ---- errors are typed, and belong to their own request


@pytest.mark.parametrize("dialect", ["openai", "ollama"])
def test_a_run_that_fails_is_an_error_and_never_a_finished_answer(dialect: str) -> None:
    """An error in the middle is not an answer with the last request's counters."""

    async def scenario() -> str:
        async with scripted() as board:
            ask = board.openai().chat.completions.create(**ASK) if dialect == "openai" else board.ollama().chat(**ASK)
            asking = asyncio.ensure_future(ask)
            await board.worker.say(chunk("half"))
            await board.worker.say({"error": {"code": 500, "message": "run failed: -1", "type": "server_error"}})
            with pytest.raises((openai.InternalServerError, ollama.ResponseError)) as caught:
                await asking
            return str(caught.value)

    assert "the worker failed: run failed: -1" in asyncio.run(scenario())


def test_text_that_looks_like_an_error_is_text() -> None:
    """No sentinel strings: what a model says is never taken for an error, nor an error for text."""

    async def scenario() -> str:
        async with scripted() as board:
            said = '{"error": "<RKLLM_TASK_ERROR>"}'
            answer = await board.answered(asyncio.ensure_future(board.ollama().chat(**ASK)), chunk(said))
            return str(answer.message.content)

    assert asyncio.run(scenario()) == '{"error": "<RKLLM_TASK_ERROR>"}'


def test_an_answer_begins_with_nothing_of_the_one_before_that_was_given_up() -> None:
    """Half a tool call and half a sentence of a cancelled request are nowhere in the next."""

    async def scenario() -> ollama.ChatResponse:
        async with scripted() as board:
            first = asyncio.ensure_future(board.ollama().chat(**ASK))
            await board.worker.say(chunk("secret"))
            first.cancel()
            await board.worker.left.wait()
            board.worker.reset()
            return await board.answered(asyncio.ensure_future(board.ollama().chat(**ASK)), chunk("fresh"))

    answer = asyncio.run(scenario())
    assert answer.message.content == "fresh"
    assert answer.message.tool_calls is None


# ---- embeddings


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (vector([0.0, 0.0]), "invalid_embedding"),
        (vector([]), "invalid_embedding"),
        (vector([1.0, 2.0], count=2), "worker_protocol"),
        (vector([1.0], count=0), "worker_protocol"),
        (b'{"data": [{"embedding": [1e39]}]}', "invalid_embedding"),
        (b'{"data": [{"embedding": "AAA"}]}', "worker_protocol"),
        (b"{}", "worker_protocol"),
    ],
)
def test_no_vector_is_answered_that_is_none(reply: bytes, code: str) -> None:
    """rkllama #117, ollama #17878: zeros, or another request's vector, with status 200."""

    async def scenario() -> openai.APIStatusError:
        async with scripted() as board:
            client = board.openai()
            board.worker.replies = [reply]
            with pytest.raises(openai.InternalServerError) as caught:
                await client.embeddings.create(model="m", input="Hello")
            return caught.value

    assert asyncio.run(scenario()).code == code


def test_each_text_has_the_vector_of_its_own_question() -> None:
    """Texts are asked for one by one, in order; a failure in the middle answers none of them."""

    async def scenario() -> tuple[list[list[float]], list[object]]:
        async with scripted() as board:
            client = board.openai()
            board.worker.replies = [vector([1.0, 0.0]), vector([0.0, 2.0])]
            answer = await client.embeddings.create(model="m", input=["a", "b"])
            board.worker.replies = [vector([1.0, 0.0]), b'{"error": {"code": 400, "message": "no"}}']
            with pytest.raises(openai.APIStatusError):
                await client.embeddings.create(model="m", input=["a", "b"])
            return [one.embedding for one in answer.data], [fields(body)["input"] for body in board.worker.asked]

    assert asyncio.run(scenario()) == ([[1.0, 0.0], [0.0, 2.0]], ["a", "b", "a", "b"])


# ---- deadlines and long prompts


def test_a_long_prefill_is_not_cut_and_shows_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """rkllama #169: a fixed limit ended healthy prefills. Comments keep the connection alive, and clients skip them."""
    monkeypatch.setattr(forward, "HEARTBEAT_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(forward, "HEARTBEAT_SECONDS", 0.0)

    async def scenario() -> tuple[bytes, bytes]:
        row = {"reference_model": "Qwen2-1.5B", "dtype": "w8a8", "soc": "rk3588"}
        async with scripted(**row, context_tokens=16384) as board, httpx2.AsyncClient(timeout=None) as client:
            saying = asyncio.ensure_future(board.worker.say(progress(8000, 1200)))
            url, body = f"{board.url}/v1/chat/completions", {**ASK, "stream": True}
            async with client.stream("POST", url, json=body) as answer:
                pieces = answer.aiter_bytes()
                await saying
                early = await anext(pieces)  # before there is any output
                rest = asyncio.ensure_future(whole(pieces))
                return early, await board.answered(rest, progress(8000, 8000), chunk("sea"))

    async def whole(pieces: AsyncIterator[bytes]) -> bytes:
        return b"".join([piece async for piece in pieces])

    early, rest = asyncio.run(scenario())
    assert early == b": prefill 1200/8000\n\n"
    assert b"sea" in rest
    assert rest.endswith(b"data: [DONE]\n\n")


def test_a_prompt_that_cannot_be_in_time_is_413_at_once_with_the_estimate() -> None:
    """The board's curve begins with the benchmark row that the replica refers to."""

    async def scenario() -> tuple[dict[str, object], int]:
        async with scripted(reference_model="Qwen2-1.5B", dtype="w8a8", soc="rk3588") as board:
            long = {"model": "m", "messages": [{"role": "user", "content": "river " * 8000}]}
            answer = await board.post("/v1/chat/completions", long, x_rkfleet_deadline_seconds="5")
            assert answer.status_code == 413
            told = await board.post("/api/chat", long, x_stainless_read_timeout="5.0")
            assert (told.status_code, told.json()["code"]) == (413, "prompt_too_long_for_deadline")
            return answer.json()["error"], len(board.worker.asked)

    error, asked = asyncio.run(scenario())
    assert error["code"] == "prompt_too_long_for_deadline"
    assert error["estimate_seconds"] > error["deadline_seconds"] == 5
    assert f"{error['estimate_seconds']:.0f} s" in error["message"]
    assert asked == 0


def test_a_queue_that_is_too_long_for_the_deadline_is_429_with_the_time_to_wait() -> None:
    async def scenario() -> openai.APIStatusError:
        async with scripted() as board:
            client = board.openai()
            running = asyncio.ensure_future(client.chat.completions.create(**ASK))
            await board.worker.say(progress())
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(**ASK, extra_headers={"x-rkfleet-deadline-seconds": "0.5"})
            await board.answered(running, chunk("one"))
            return caught.value

    error = asyncio.run(scenario())
    assert error.code == "deadline_before_turn"
    assert int(error.response.headers["retry-after"]) >= 1
    assert error.body["queue_seconds"] >= 0.5


def test_a_deadline_that_passes_without_output_is_504_and_frees_the_worker() -> None:
    async def scenario() -> tuple[openai.APIStatusError, openai.APIStatusError]:
        async with scripted() as board:
            client = board.openai()
            headers = {"x-rkfleet-deadline-seconds": "0.2"}
            with pytest.raises(openai.APIStatusError) as caught:
                await client.chat.completions.create(**ASK, stream=True, extra_headers=headers)
            await board.worker.left.wait()
            with pytest.raises(openai.BadRequestError) as bad:
                await client.chat.completions.create(**ASK, extra_headers={"x-rkfleet-deadline-seconds": "soon"})
            return caught.value, bad.value

    late, bad = asyncio.run(scenario())
    assert (late.status_code, late.code) == (504, "deadline_exceeded")
    assert (bad.code, bad.param) == ("invalid_value", "x-rkfleet-deadline-seconds")


def test_openai_clients_tell_their_read_timeout() -> None:
    """The header that the deadline is read from is what the real client sends."""

    async def scenario() -> int:
        async with scripted(reference_model="Qwen2-1.5B", dtype="w8a8", soc="rk3588") as board:
            client = board.openai(timeout=5.0)
            with pytest.raises(openai.APIStatusError) as caught:
                await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "river " * 8000}])
            return caught.value.status_code

    assert asyncio.run(scenario()) == 413


# ---- streams


def test_pieces_of_a_tool_call_are_not_held_back_with_tools_in_the_request() -> None:
    """Text before a call streams at once; Ollama's clients get the call whole, OpenAI's in the pieces that it came in."""
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]

    def part(**function: str) -> dict[str, object]:
        event = chunk()
        event["choices"][0]["delta"] = {"tool_calls": [{"index": 0, "function": function}]}  # type: ignore[index]
        return event

    async def scenario() -> list[ollama.ChatResponse]:
        async with scripted() as board:
            stream = aiter(await board.ollama().chat(**ASK, tools=tools, stream=True))
            got = []
            first = asyncio.ensure_future(anext(stream))
            await board.worker.say(chunk("Let me see."))
            got.append(await first)  # before the rest exists
            rest = asyncio.ensure_future(collect(stream))
            await board.answered(rest, part(name="weather", arguments='{"city":'), part(arguments=' "Paris"}'))
            return got + rest.result()

    async def collect(stream: object) -> list[ollama.ChatResponse]:
        return [one async for one in stream]  # type: ignore[attr-defined]

    text, call, last = asyncio.run(scenario())
    assert text.message.content == "Let me see."
    assert [(one.function.name, one.function.arguments) for one in call.message.tool_calls] == [("weather", {"city": "Paris"})]
    assert (last.done, last.done_reason) == (True, "stop")


def test_a_stream_that_breaks_ends_in_an_error_in_the_words_of_its_dialect() -> None:
    async def scenario() -> ollama.ResponseError:
        async with scripted() as board:
            stream = aiter(await board.ollama().chat(**ASK, stream=True))
            first = asyncio.ensure_future(anext(stream))
            await board.worker.say(chunk("one"))
            await first
            board.worker.drop()
            with pytest.raises(ollama.ResponseError) as caught:
                await anext(stream)
            return caught.value

    assert "the worker ended while it had the request" in str(asyncio.run(scenario()))


# ---- figures


def test_durations_are_measured_and_left_out_where_there_is_nothing_to_measure() -> None:
    """An answer without output has no prefill time: nothing is made up."""

    async def scenario() -> tuple[ollama.ChatResponse, ollama.ChatResponse]:
        async with scripted() as board:
            full = await board.answered(asyncio.ensure_future(board.ollama().chat(**ASK)), progress(), chunk("a"), chunk("b"))
            board.worker.reset()
            return full, await board.answered(asyncio.ensure_future(board.ollama().chat(**ASK)))

    full, empty = asyncio.run(scenario())
    assert full.prompt_eval_duration + full.eval_duration <= full.total_duration
    assert min(full.prompt_eval_duration, full.eval_duration) > 0
    assert (full.load_duration, full.prompt_eval_count, full.eval_count) == (0, 10, 1)
    assert (empty.prompt_eval_duration, empty.eval_duration) == (None, None)
    assert empty.total_duration > 0


# ---- nothing leaks


def test_no_log_holds_what_users_write_or_models_say(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def scenario() -> None:
        async with scripted() as board:
            ask = {"model": "m", "messages": [{"role": "user", "content": "my-secret-question"}]}
            await board.answered(asyncio.ensure_future(board.ollama().chat(**ask)), chunk("my-secret-answer"))
            board.worker.reset()
            asking = asyncio.ensure_future(board.ollama().chat(**ask))
            await board.worker.say(chunk("my-secret-answer"))
            board.worker.drop()
            with pytest.raises(ollama.ResponseError):
                await asking

    asyncio.run(scenario())
    ours = [record for record in caplog.records if record.name.startswith(("agent", "rkfleet"))]
    assert ours
    assert not [record for record in ours if "my-secret" in record.getMessage() + str(record.__dict__)]


@pytest.mark.parametrize("name", ["../../etc/passwd", "m/../m", "m:../x", "/m", "", "m\x00", "m:", "x" * 5000])
def test_a_model_name_is_a_name_and_no_path(name: str) -> None:
    async def scenario() -> int:
        async with scripted() as board:
            answers = [await board.post(path, {**ASK, "model": name}) for path in ("/v1/chat/completions", "/api/chat")]
            return max(len(answer.content) for answer in answers if answer.status_code == 404 and board.worker.asked == [])

    assert asyncio.run(scenario()) < 1000


# ---- tenants


def test_runtimes_on_the_npu_are_told_whose_prompt_it_is_and_clients_have_no_say() -> None:
    async def scenario() -> list[dict[str, object]]:
        async with scripted(runtime="rkllm", adapters=("sql",)) as board:
            for ask in (
                {"model": "m", "tenant": "somebody", "adapter": "other"},
                {"model": "m:sql", "prompt_cache_key": "talk-1"},
                {"model": "m:latest"},
            ):
                asking = asyncio.ensure_future(board.post("/v1/chat/completions", {**ASK, **ask}, x_rkfleet_tenant="somebody"))
                await board.answered(asking, chunk("x"))
                board.worker.reset()
            return [fields(body) for body in board.worker.asked]

    plain, adapted, latest = asyncio.run(scenario())
    assert {name: plain.get(name) for name in ("tenant", "adapter", "prompt_cache_key")} == {
        "tenant": "local", "adapter": None, "prompt_cache_key": None,
    }  # fmt: skip
    assert (adapted["tenant"], adapted["adapter"], adapted["prompt_cache_key"]) == ("local", "sql", "talk-1")
    assert "adapter" not in latest


# ---- keep_alive


@pytest.mark.parametrize(("value", "seconds"), [("5m", 300.0), (-1, math.inf), ("1h30m", 5400.0), (0, 0.0), (None, None)])
def test_keep_alive_reaches_the_loop(value: object, seconds: float | None) -> None:
    async def scenario() -> list[tuple[object, ...]]:
        demands = Demands()
        async with scripted(demands) as board:
            body = {**ASK, "keep_alive": value, "stream": False}
            await board.answered(asyncio.ensure_future(board.post("/api/chat", body)), chunk("x"))
            return demands.told

    assert asyncio.run(scenario()) == [("want", "u"), ("touch", "u", seconds)]


def test_a_request_for_an_unloaded_model_has_it_loaded_and_waits() -> None:
    """The time shows as load_duration; an empty prompt only loads, and with keep_alive 0 unloads."""

    async def scenario() -> tuple[ollama.ChatResponse, ollama.GenerateResponse, ollama.GenerateResponse, list[tuple[object, ...]]]:
        demands = Demands(lambda: board.route(on_demand=True))
        async with scripted(demands, on_demand=True, endpoint="") as board:
            answer = await board.answered(asyncio.ensure_future(board.ollama().chat(**ASK)), chunk("x"))
            loaded = await board.ollama().generate(model="m", keep_alive="1m")
            unloaded = await board.ollama().generate(model="m", keep_alive=0)
            return answer, loaded, unloaded, demands.told

    answer, loaded, unloaded, told = asyncio.run(scenario())
    assert 0 < answer.load_duration <= answer.total_duration
    assert (loaded.done_reason, unloaded.done_reason) == ("load", "unload")
    assert set(told[:-4]) == {("want", "u")}
    assert told[-4:] == [("touch", "u", None), ("want", "u"), ("touch", "u", 60.0), ("unload", "u")]


def test_an_idle_model_that_is_declared_to_stay_is_not_said_to_be_unloaded() -> None:
    async def scenario() -> str:
        async with scripted() as board:
            with pytest.raises(ollama.ResponseError) as caught:
                await board.ollama().generate(model="m", keep_alive=0)
            return str(caught.value)

    assert "serving.load: OnDemand" in asyncio.run(scenario())


# ---- what has no effect is said


def test_parameters_without_effect_are_named_in_a_header_and_counted() -> None:
    async def scenario() -> tuple[list[str], str]:
        async with scripted() as board:
            told = []
            for stream in (False, True):
                body = {**ASK, "stream": stream, "options": {"num_ctx": 9, "made\r\nup": 1, "temperature": 1}}
                asking = asyncio.ensure_future(board.post("/api/chat", body))
                await board.worker.say(progress(ignored=["temperature", "min_p"]))
                told.append((await board.answered(asking, chunk("x"))).headers["x-rkfleet-ignored"])
                board.worker.reset()
            return told, board.metrics.text().decode()

    told, metrics = asyncio.run(scenario())
    assert told == ["options.num_ctx, options.temperature, options.min_p"] * 2
    assert f'{names.PARAMETERS_IGNORED.name}{{model_name="m",namespace="default",parameter="options.min_p"}} 2.0' in metrics


# ---- ids


@pytest.mark.parametrize(("given", "taken"), [("abc-1", True), ("a b", False), ("x" * 129, False), ("", False), ('"', False)])
def test_a_request_has_one_id_from_end_to_end(given: str, taken: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> tuple[str, str, bytes]:
        async with scripted() as board:
            asking = asyncio.ensure_future(board.post("/v1/chat/completions", ASK, x_request_id=given))
            await board.worker.say(progress())
            board.worker.drop()
            answer = await asking
            return answer.headers["x-request-id"], answer.json()["error"]["request_id"], board.worker.heads[0]

    header, error, asked = asyncio.run(scenario())
    assert (header == given) == taken
    assert header == error
    assert f"X-Request-Id: {header}\r\n".encode() in asked
    assert [record.__dict__["request_id"] for record in caplog.records if record.message == "request failed"] == [header]


# ---- hostile bodies


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/api/chat", "/api/generate", "/api/embed"])
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"model": "m", "messages": ' + b"[" * 100_000,
        b'{"model": "m", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b', "input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": '
        + b"[" * 5000
        + b"]" * 5000
        + b"}]}]}",
        b'{"model": {"a": 1}}',
        b'"text"',
        b"null",
        b"\xff",
        b"",
    ],
    ids=range(9),
)
def test_no_body_is_more_than_a_refusal(path: str, body: bytes) -> None:
    async def scenario() -> tuple[int, bool]:
        async with scripted() as board, httpx2.AsyncClient() as client:
            answer = await client.post(board.url + path, content=body)
            return answer.status_code, board.worker.asked == []

    status, unasked = asyncio.run(scenario())
    assert (400 <= status < 500) or (path in ("/api/chat", "/api/generate") and status == 200)
    assert unasked


def test_made_up_names_do_not_get_into_headers() -> None:
    async def scenario() -> httpx2.Response:
        async with scripted() as board:
            board.worker.replies = [vector([1.0])]
            return await board.post("/api/embed", {"model": "m", "input": "x", "options": {"a\r\nx-evil: 1": 1, "num_ctx": 1}})

    answer = asyncio.run(scenario())
    assert answer.headers["x-rkfleet-ignored"] == "options.num_ctx"
    assert "x-evil" not in answer.headers


@pytest.mark.parametrize(("code", "status"), [(400, 400), (404, 400), (429, 503), (501, 400), (503, 503), (500, 500), (401, 500)])
def test_a_refusal_of_the_worker_keeps_its_kind(code: int, status: int) -> None:
    async def scenario() -> int:
        async with scripted() as board:
            asking = asyncio.ensure_future(board.post("/v1/chat/completions", ASK))
            await board.worker.say({"error": {"code": code, "message": "no"}})
            return (await asking).status_code

    assert asyncio.run(scenario()) == status
