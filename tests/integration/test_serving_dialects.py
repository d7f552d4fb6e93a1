"""What OpenAI's and Ollama's own client packages get of a real model on llama.cpp: one worker with two places for all tests."""

import asyncio
import base64
import contextlib
import json
import math
import re
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import ollama
import openai
import pytest

from agent.serving.app import TENANT
from rkfleet.sample import ensure_sample
from tests.support.serving import BoardServing, Stage, on_stage, spec_of

pytestmark = pytest.mark.model

ROUTE = {"runtime": "llamacpp", "max_concurrent": 2, "dtype": "q4_1", "digest": "ab" * 32, "size_bytes": 98362432}
SEA = [{"role": "user", "content": "Tell me about the sea."}]
FIXED = {"temperature": 0, "seed": 7}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "old": {"type": "boolean"}},
    "required": ["city", "old"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "", "parameters": {"type": "object", "properties": {}}}}]


class Board(BoardServing):
    """A board with one loaded replica, and requests of tenants."""

    async def as_tenant(self, tenant: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask as `tenant`, as a door lets it in, and return the answer."""
        sent = [{"type": "http.request", "body": msgspec.json.encode(body)}]
        got: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return sent.pop() if sent else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            got.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], TENANT: tenant}
        await self.serving(scope, receive, send)
        return json.loads(got[1]["body"])


@pytest.fixture(scope="module")
def staged() -> Iterator[tuple[Stage, Board]]:
    model = asyncio.run(ensure_sample())

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[Board]:
        async with Board().run() as board:
            board.supervisor.ensure(spec_of(model, max_concurrent=2))
            await board.ready()
            yield board

    with on_stage(opened) as staged:
        yield staged


@pytest.fixture
def stage(staged: tuple[Stage, Board]) -> Stage:
    return staged[0]


@pytest.fixture
def board(staged: tuple[Stage, Board]) -> Board:
    staged[1].change_route(**ROUTE)
    return staged[1]


def cosine(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True)) / math.dist(left, [0] * len(left)) / math.dist(right, [0] * len(right))


# ---- embeddings


def test_embeddings_are_the_same_in_every_encoding_and_near_for_near_texts(stage: Stage, board: Board) -> None:
    async def ask() -> tuple[list[list[float]], list[float], str]:
        client = board.openai()
        texts = ["a cat sat on the mat", "a kitten sat on the rug", "quantum field theory"]
        listed = await client.embeddings.create(model="smollm2", input=texts, encoding_format="float")
        default = await client.embeddings.create(model="smollm2", input=texts[0])  # the client asks for base64 by itself
        tokens = await client.embeddings.create(model="smollm2", input=[[1, 2, 3], [1, 2, 3]])
        assert tokens.data[0].embedding == tokens.data[1].embedding
        assert tokens.usage.prompt_tokens == 6
        async with httpx2.AsyncClient(timeout=30) as http:
            raw = await http.post(f"{board.url}/v1/embeddings", json={"model": "smollm2", "input": texts[0], "encoding_format": "base64"})
        return [one.embedding for one in listed.data], default.data[0].embedding, raw.json()["data"][0]["embedding"]

    listed, default, encoded = stage.run(ask())
    assert len(listed) == 3
    assert default == pytest.approx(listed[0], abs=1e-4)  # another batch may round otherwise
    assert list(struct.unpack(f"<{len(default)}f", base64.b64decode(encoded))) == pytest.approx(listed[0], abs=1e-4)
    assert cosine(listed[0], listed[1]) > cosine(listed[0], listed[2]) + 0.1


def test_fewer_dimensions_are_the_first_ones_at_length_one(stage: Stage, board: Board) -> None:
    async def ask(**more: Any) -> list[float]:
        return (await board.openai().embeddings.create(model="smollm2", input="sea", **more)).data[0].embedding

    whole, some = stage.run(ask()), stage.run(ask(dimensions=64))
    assert math.hypot(*some) == pytest.approx(1, abs=1e-5)
    assert cosine(whole[:64], some) == pytest.approx(1, abs=1e-4)
    with pytest.raises(openai.BadRequestError) as caught:
        stage.run(ask(dimensions=100_000))
    assert caught.value.param == "dimensions"


@pytest.mark.parametrize("nothing", ["", [], ["a", ""], [[]], [["a"]], ["a", 1], {"a": 1}, None])
def test_nothing_to_embed_is_400(stage: Stage, board: Board, nothing: object) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        stage.run(board.openai().embeddings.create(model="smollm2", input=nothing))
    assert caught.value.param == "input"


def test_a_text_beyond_the_context_has_no_vector(stage: Stage, board: Board) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        stage.run(board.openai().embeddings.create(model="smollm2", input="word " * 3000))
    assert caught.value.code == "context_length_exceeded"


def test_embeddings_leave_chats_as_they_were(stage: Stage, board: Board) -> None:
    """A listener that does both answers the same texts before and after, and while it embeds."""

    async def chat() -> str:
        answer = await board.openai().chat.completions.create(model="smollm2", messages=SEA, max_tokens=12, **FIXED)
        return str(answer.choices[0].message.content)

    async def scenario() -> set[str]:
        before = await chat()
        meanwhile, _ = await asyncio.gather(chat(), board.openai().embeddings.create(model="smollm2", input=["sea"] * 8))
        return {before, meanwhile, await chat()}

    assert len(stage.run(scenario())) == 1


# ---- OpenAI's fields


def test_log_probabilities_come_with_each_token(stage: Stage, board: Board) -> None:
    ask = {"model": "smollm2", "messages": SEA, "max_tokens": 3, "logprobs": True, "top_logprobs": 2}
    answer = stage.run(board.openai().chat.completions.create(**ask))
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 3
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)


@pytest.mark.parametrize("wanted", ["json_object", "json_schema"])
def test_an_answer_has_the_format_that_is_asked_for(stage: Stage, board: Board, wanted: str) -> None:
    shape = {"type": wanted} if wanted == "json_object" else {"type": wanted, "json_schema": {"name": "city", "schema": CITY}}
    ask = {"model": "smollm2", "messages": [{"role": "user", "content": "A city as JSON"}], "max_tokens": 40, "response_format": shape}
    answer = stage.run(board.openai().chat.completions.create(**ask, **FIXED))
    if wanted == "json_schema":
        assert set(json.loads(answer.choices[0].message.content)) == {"city", "old"}
    else:
        assert answer.choices[0].message.content.lstrip().startswith("{")


def test_stop_ends_an_answer_and_a_template_switch_is_taken(stage: Stage, board: Board) -> None:
    ask = {"model": "smollm2", "messages": SEA, "max_tokens": 40, "stop": [" "], "extra_body": {"chat_template_kwargs": {"x": 1}}}
    answer = stage.run(board.openai().chat.completions.create(**ask, **FIXED))
    assert answer.choices[0].finish_reason == "stop"
    assert " " not in answer.choices[0].message.content


def test_completions_take_a_text_or_one_list_of_tokens(stage: Stage, board: Board) -> None:
    async def ask(**more: Any) -> Any:
        return await board.openai().completions.create(model="smollm2", max_tokens=3, **more)

    assert stage.run(ask(prompt=[1, 2, 3])).usage.prompt_tokens == 3
    for field, more in (
        ("prompt", {"prompt": ["a", "b"]}), ("prompt", {"prompt": [[1], [2]]}), ("prompt", {"prompt": []}),
        ("logprobs", {"prompt": "a", "logprobs": 2}), ("echo", {"prompt": "a", "echo": True}), ("suffix", {"prompt": "a", "suffix": "b"}),
        ("best_of", {"prompt": "a", "best_of": 2}), ("n", {"prompt": "a", "n": 2}),
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as caught:
            stage.run(ask(**more))
        assert caught.value.param == field, more


def test_images_are_refused_with_a_sentence_where_there_is_no_encoder(stage: Stage, board: Board) -> None:
    async def ask(url: str) -> openai.BadRequestError:
        content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
        with pytest.raises(openai.BadRequestError) as caught:
            await board.openai().chat.completions.create(model="smollm2", messages=[{"role": "user", "content": content}])
        return caught.value

    assert stage.run(ask("data:image/png;base64,AAAA")).code == "images_not_supported"
    assert stage.run(ask("http://10.0.0.1/private.png")).code == "invalid_image_url"


@pytest.mark.parametrize("dialect", ["openai", "ollama"])
def test_tools_are_refused_where_the_chat_template_drops_them(stage: Stage, board: Board, dialect: str) -> None:
    """SmolLM2's template has no place for tools: an answer would look as if the model chose to call none."""
    ask = {"model": "smollm2", "messages": SEA, "tools": TOOLS}
    with pytest.raises((openai.BadRequestError, ollama.ResponseError)) as caught:
        stage.run(board.openai().chat.completions.create(**ask) if dialect == "openai" else board.ollama().chat(**ask))
    assert "knows no tools" in str(caught.value)


# ---- tenants


def test_what_one_tenant_asked_is_never_taken_up_for_another(stage: Stage, board: Board) -> None:
    """llama.cpp skips what it has computed, which shows in cached_tokens and in time: only to who had it computed."""

    async def cached(tenant: str, **more: Any) -> int:
        body = {"model": "smollm2", "messages": [{"role": "user", "content": "river mountain " * 20}], "max_tokens": 1, **more}
        return (await board.as_tenant(tenant, body))["usage"]["prompt_tokens_details"]["cached_tokens"]

    async def scenario() -> list[int]:
        return [
            await cached("alice"),
            await cached("alice"),
            await cached("bob"),
            await cached("bob"),
            await cached("alice"),  # bob took the other place
            await cached("carol"),
            await cached("carol", prompt_cache_key="talk"),
        ]

    first, again, bob, bobs, back, carol, keyed = stage.run(scenario())
    assert (first, bob, carol, keyed) == (0, 0, 0, 0)
    assert min(again, bobs, back) > 20


# ---- Ollama


def test_ollamas_client_streams_by_line_and_ends_with_measured_durations(stage: Stage, board: Board) -> None:
    async def ask() -> list[ollama.ChatResponse]:
        options = {"num_predict": 6, **FIXED}
        return [one async for one in await board.ollama().chat(model="smollm2", messages=SEA, options=options, stream=True)]

    *pieces, last = stage.run(ask())
    whole = stage.run(board.ollama().chat(model="smollm2:latest", messages=SEA, options={"num_predict": 6, **FIXED}))
    assert "".join(one.message.content for one in pieces) == whole.message.content
    assert {one.done for one in pieces} == {False}
    assert (last.done, last.done_reason, last.eval_count, whole.model) == (True, "length", 6, "smollm2:latest")
    assert last.prompt_eval_count == whole.prompt_eval_count
    for answer in (last, whole):
        assert 0 < answer.prompt_eval_duration + answer.eval_duration + answer.load_duration <= answer.total_duration


def test_ollamas_stream_is_the_default_and_generate_has_its_own_shape(stage: Stage, board: Board) -> None:
    async def ask() -> tuple[httpx2.Response, ollama.GenerateResponse, ollama.GenerateResponse]:
        async with httpx2.AsyncClient(timeout=30) as http:
            body = {"model": "smollm2", "prompt": "Hello", "options": {"num_predict": 2}}
            streamed = await http.post(f"{board.url}/api/generate", json=body)
        client = board.ollama()
        shaped = await client.generate(model="smollm2", prompt="A city as JSON", format=CITY, options={"num_predict": 200, **FIXED})
        raw = await client.generate(model="smollm2", prompt="Once upon a", raw=True, options={"num_predict": 3})
        return streamed, shaped, raw

    streamed, shaped, raw = stage.run(ask())
    lines = [json.loads(line) for line in streamed.text.splitlines()]
    assert streamed.headers["content-type"] == "application/x-ndjson"
    assert [line["done"] for line in lines][-1] is True
    assert all("response" in line for line in lines)
    assert set(json.loads(shaped.response)) == {"city", "old"}
    assert raw.prompt_eval_count <= 4  # no template around it


def test_ollamas_lists_and_embeddings(stage: Stage, board: Board) -> None:
    async def scenario() -> None:
        client = board.ollama()
        (listed,) = (await client.list()).models
        assert (listed.model, listed.size, listed.digest) == ("smollm2:latest", 98362432, "ab" * 32)
        assert listed.details.quantization_level == "q4_1"
        assert [one.model for one in (await client.ps()).models] == ["smollm2:latest"]
        shown = await client.show("smollm2")
        assert shown.capabilities == ["completion", "embedding"]
        several = await client.embed(model="smollm2", input=["sea", "land"])
        one = await client.embeddings(model="smollm2", prompt="sea")
        assert several.prompt_eval_count >= 2
        assert several.total_duration > 0
        assert cosine(list(several.embeddings[0]), list(one.embedding)) == pytest.approx(1, abs=1e-4)
        async with httpx2.AsyncClient() as http:
            assert (await http.get(board.url)).text == "Ollama is running"
            assert (await http.head(board.url)).status_code == 200
            assert (await http.get(f"{board.url}/api/version")).json()["version"]
            assert (await http.get(f"{board.url}/replicas/default/chat-0/api/tags")).json()["models"][0]["name"] == "smollm2:latest"

    stage.run(scenario())


@pytest.mark.parametrize("verb", ["pull", "push", "create", "copy", "delete"])
def test_what_the_fleet_does_says_which_command_does_it(stage: Stage, board: Board, verb: str) -> None:
    async def ask() -> httpx2.Response:
        async with httpx2.AsyncClient() as http:
            return await http.post(f"{board.url}/api/{verb}", json={"model": "x"})

    answer = stage.run(ask())
    assert answer.status_code == 501
    assert "rkfleet " in answer.json()["error"]


# ---- the guide


def test_the_guide_for_clients_does_what_it_says(stage: Stage, board: Board, tmp_path: Path) -> None:
    """Every block runs as it stands, but for the address."""
    page = (Path(__file__).parents[2] / "docs/guides/clients.md").read_text().replace("http://127.0.0.1:7480", board.url)
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6

    async def run(*words: str) -> str:
        process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE, cwd=tmp_path)
        said, _ = await process.communicate()
        assert process.returncode == 0, words
        return said.decode()

    async def scenario() -> list[str]:
        shell = [await run("bash", "-ec", text) for language, text in blocks if language == "bash"]
        together = "\nprint(end='\\0')\n".join(text for language, text in blocks if language == "python")  # they share costly imports
        return [*shell, *(await run(sys.executable, "-c", together)).split("\0")]

    chat, lines, vectors, streamed, shaped, ollamas = stage.run(scenario())
    assert json.loads(chat)["usage"]["completion_tokens"] <= 12
    assert json.loads(lines.splitlines()[-1])["done"]
    assert [len(one["embedding"]) for one in json.loads(vectors)["data"]] == [64, 64]
    assert "completion_tokens=" in streamed
    assert "city" in json.loads(shaped)
    assert " tokens in " in ollamas
