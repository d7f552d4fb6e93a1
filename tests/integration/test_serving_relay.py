"""What the agent does between a worker and a client, with a worker that waits where a model would not."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import openai
import pytest

from agent.serving.app import Serving
from agent.serving.routes import Route, Routes
from rkfleet.clock import SystemClock
from rkfleet.metrics import Metrics
from rkfleet.ops import serve_asgi
from tests.support.scripted_worker import ScriptedWorker, chunk

ASK = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
PROGRESS = chunk(prompt_progress={"total": 10, "cache": 0, "processed": 0, "time_ms": 0})


@contextlib.asynccontextmanager
async def relayed() -> AsyncIterator[tuple[ScriptedWorker, openai.AsyncOpenAI]]:
    async with asyncio.timeout(20), ScriptedWorker().run() as worker, serving(worker) as url, asking_at(url) as client:
        yield worker, client


@contextlib.asynccontextmanager
async def serving(worker: ScriptedWorker) -> AsyncIterator[str]:
    routes = Routes()
    routes.replace((Route(uid="u", namespace="default", name="m-0", served_model_name="m", endpoint=worker.endpoint, api_key="k"),))
    app = Serving(routes, Metrics("agent"), SystemClock())
    async with serve_asgi(app, "127.0.0.1", 0, shutdown_seconds=0.1) as listener:
        yield listener.url


def asking_at(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)


def test_the_first_token_is_out_before_the_second_exists() -> None:
    async def scenario() -> None:
        async with relayed() as (worker, client):
            asking = asyncio.ensure_future(client.chat.completions.create(**ASK, stream=True))
            await worker.say(PROGRESS)
            await worker.say(chunk("one"))
            stream = await asking
            assert (await anext(stream)).choices[0].delta.content == "one"
            await worker.say(chunk("two"))
            assert (await anext(stream)).choices[0].delta.content == "two"
            await stream.close()

    asyncio.run(scenario())


def test_the_worker_is_asked_for_a_stream_with_progress_and_for_nothing_unknown() -> None:
    async def scenario() -> None:
        async with relayed() as (worker, client):
            strange = {"n_predict": 9999, "id_slot": 3, "cache_prompt": False, "user": "me"}
            asking = asyncio.ensure_future(client.chat.completions.create(**ASK, temperature=0.5, extra_body=strange))
            await worker.say(chunk("one", finish_reason="stop", usage={"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}))
            await worker.say(b"[DONE]")
            assert (await asking).choices[0].message.content == "one"
            (asked,) = worker.asked
            assert openai_fields(asked) == {"messages", "temperature", "max_tokens", "stream", "stream_options", "return_progress"}

    def openai_fields(body: bytes) -> set[str]:
        import msgspec

        return set(msgspec.json.decode(body))

    asyncio.run(scenario())


def test_leaving_closes_the_connection_to_the_worker() -> None:
    async def scenario() -> None:
        async with relayed() as (worker, client):
            asking = asyncio.ensure_future(client.chat.completions.create(**ASK))
            await worker.say(PROGRESS)
            asking.cancel()
            await worker.left.wait()

    asyncio.run(scenario())


@pytest.mark.parametrize("ending", ["cut", "ended without a reason", "not a chunk", "error"])
def test_a_stream_that_breaks_ends_in_an_error_event(ending: str) -> None:
    async def scenario() -> openai.APIError:
        async with relayed() as (worker, client):
            asking = asyncio.ensure_future(client.chat.completions.create(**ASK, stream=True))
            await worker.say(chunk("one"))
            stream = await asking
            await anext(stream)
            match ending:
                case "cut":
                    worker.drop()
                case "ended without a reason":
                    await worker.end()
                case "not a chunk":
                    await worker.say(b"[1, 2]")
                case _:
                    await worker.say({"error": {"code": 500, "message": "compute error", "type": "server_error"}})
            with pytest.raises(openai.APIError) as caught:
                await anext(stream)
            return caught.value

    error = asyncio.run(scenario())
    assert error.code in {"worker_exited", "worker_protocol", "worker_failed"}


def test_a_worker_that_is_gone_before_it_answers_is_503() -> None:
    async def scenario() -> openai.APIStatusError:
        async with relayed() as (worker, client):
            asking = asyncio.ensure_future(client.chat.completions.create(**ASK, stream=True))
            await worker.say(PROGRESS)
            worker.drop()
            with pytest.raises(openai.APIStatusError) as caught:
                await asking
            return caught.value

    error = asyncio.run(scenario())
    assert (error.status_code, error.code) == (503, "worker_exited")
    assert "retry-after" in error.response.headers


def test_an_agent_that_stops_says_so_in_its_open_streams() -> None:
    async def scenario() -> openai.APIError:
        async with asyncio.timeout(20), ScriptedWorker().run() as worker, contextlib.AsyncExitStack() as clients:
            async with serving(worker) as url:
                client = await clients.enter_async_context(asking_at(url))
                asking = asyncio.ensure_future(client.chat.completions.create(**ASK, stream=True))
                await worker.say(chunk("one"))
                stream = await asking
                await anext(stream)
            with pytest.raises(openai.APIError) as caught:
                await anext(stream)
            return caught.value

    assert asyncio.run(scenario()).code == "agent_stopping"


def test_an_agent_that_stops_refuses_what_has_no_token_yet() -> None:
    async def scenario() -> openai.APIStatusError:
        async with asyncio.timeout(20), ScriptedWorker().run() as worker, contextlib.AsyncExitStack() as clients:
            async with serving(worker) as url:
                client = await clients.enter_async_context(asking_at(url))
                asking = asyncio.ensure_future(client.chat.completions.create(**ASK))
                await worker.say(PROGRESS)
            with pytest.raises(openai.APIStatusError) as caught:
                await asking
            return caught.value

    error = asyncio.run(scenario())
    assert (error.status_code, error.code) == (503, "agent_stopping")
