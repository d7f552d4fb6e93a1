"""What OpenAI's and Ollama's own client packages get of a board with an NPU: its loop, its serving, and a real worker process.

The runtime is the simulated one. It answers as its script says, or with everything that it was told, which shows what reached the model.
The model has a template, a LoRA and an image encoder in a process of its own.
"""

from __future__ import annotations

import base64
import contextlib
import math
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import ollama
import openai
import pytest

from rkfleet.assignment import ServingParameters
from tests.integration.test_image_encoder import STAND_IN
from tests.support.assignments import replica
from tests.support.loops import LoopWorld
from tests.support.npu_board import npu_board
from tests.support.runtimes import WIDTH, keys
from tests.support.serving import Stage, on_stage
from tests.support.sessions import until
from tests.unit.test_images import data_url, picture

ROOT = Path(__file__).parents[2]
TEMPLATE = (
    "{% for one in messages %}<|{{ one.role }}|>{{ one.content }}<|end|>{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}<|assistant|>{% if enable_thinking %}<think>{% endif %}"
)
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = '</think><tool_call>\\n{"name": "weather", "arguments": {"city": "Köln"}}\\n</tool_call>'
THOUGHT = "Let me see.</think>\\n\\nIt rains."
IMAGE_TOKENS = 4


class Board:
    """A board with one loaded replica, the script of its model, and clients that are closed with it."""

    def __init__(self, world: LoopWorld, script: Path, http: httpx2.AsyncClient, clients: contextlib.AsyncExitStack) -> None:
        self.world = world
        self.http = http
        self.openai = openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key="any", max_retries=0)
        self.ollama = ollama.AsyncClient(host=world.url)
        clients.push_async_callback(self.openai.close)
        clients.push_async_callback(self.ollama.close)
        self._script = script

    def says(self, text: str) -> None:
        """Let the model answer with this text."""
        self._script.write_text(keys(reply="text", reply_text=text.replace(" ", "\\x20")))

    def echoes(self) -> None:
        """Let the model answer with what it was told."""
        self._script.write_text(keys(reply="echo"))


@contextlib.asynccontextmanager
async def opened(root: Path) -> AsyncIterator[Board]:
    script = root / "script"
    script.write_text("")
    environ = {"RKLLM_SIMULATION": str(script), "PYTHONPATH": f"{STAND_IN}:{ROOT}", "FAKE_RKNN_LOG": str(root / "log")}
    async with contextlib.AsyncExitStack() as clients:
        w, http = await clients.enter_async_context(npu_board(root, "1.3.0", environ=environ))
        bodies = {
            "m.rkllm": ("weight", "RKLLMFAKE\n" + keys(ttft_ms=1, tokens_per_s=20_000, memory_mb=100, width=WIDTH)),
            "law.rkllm": ("adapter", "RKLLMFAKE\n" + keys(width=WIDTH)),
            "t.jinja": ("template", TEMPLATE),
            "eyes.rknn": ("encoder", msgspec.json.encode({"tokens": IMAGE_TOKENS, "size": WIDTH}).decode()),
            "config.json": ("config", msgspec.json.encode({"vision": {"imageSize": [56, 28]}}).decode()),
        }
        files = [msgspec.structs.replace(await w.push_body(text.encode()), path=path, role=role) for path, (role, text) in bodies.items()]
        one = replica(
            "chat", served_model_name="chat", runtime="rkllm", dtype="w8a8", soc="rk3588", files=tuple(files), memory_bytes=200 << 20,
            serving=ServingParameters(context_tokens=2048, prompt_cache_bytes=1 << 20),
        )  # fmt: skip
        await w.assign(1, one)
        await until(lambda: w.of_replica("Ready", "chat") == ("True", "Serving"))
        yield Board(w, script, http, clients)


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stage, Board]]:
    with on_stage(lambda: opened(tmp_path_factory.mktemp("board"))) as staged:
        yield staged


@pytest.fixture
def stage(staged: tuple[Stage, Board]) -> Stage:
    return staged[0]


@pytest.fixture
def board(staged: tuple[Stage, Board]) -> Board:
    staged[1].echoes()
    return staged[1]


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


# ---- images


def test_images_of_both_dialects_reach_the_model_by_way_of_the_encoder(stage: Stage, board: Board) -> None:
    """Each takes its tokens of the prompt; the same image is the same to the model in either dialect."""
    red, blue = picture(colour="red"), picture(colour="blue")

    async def by_openai(image: bytes) -> tuple[str, int]:
        parts: Any = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": data_url(image)}}]
        answer = await board.openai.chat.completions.create(model="chat", messages=[{"role": "user", "content": parts}])
        assert answer.usage is not None
        return answer.choices[0].message.reasoning_content, answer.usage.prompt_tokens  # type: ignore[attr-defined]

    async def by_ollama(image: bytes) -> tuple[str, int]:
        message = {"role": "user", "content": "What is it?", "images": [base64.b64encode(image).decode()]}
        answer = await board.ollama.chat("chat", [message])
        return answer.message.thinking or "", answer.prompt_eval_count or 0

    async def generated(image: bytes) -> str:
        answer = await board.ollama.generate("chat", "What is it?", images=[base64.b64encode(image).decode()])
        return answer.thinking or ""

    async def ask() -> None:
        one, other = await by_openai(red), await by_openai(blue)
        assert one[0] != other[0]
        assert one == await by_ollama(red)
        assert one[0] == await generated(red)
        plain = await board.openai.chat.completions.create(model="chat", messages=user("What is it?"))
        assert plain.usage is not None
        assert one[1] >= plain.usage.prompt_tokens + IMAGE_TOKENS

    stage.run(ask())


def test_embeddings_of_images_are_not_taken_from_clients(stage: Stage, board: Board) -> None:
    """The library would read beyond them. A letter may be written as its number."""

    async def ask(kind: str) -> httpx2.Response:
        body = '{"model":"chat","messages":[{"role":"user","content":[{"type":"KIND","data":"AAAA","tokens":1}]}]}'.replace("KIND", kind)
        return await board.http.post("/v1/chat/completions", content=body)

    for kind in ("image_embeds", "image_emb\\u0065ds", "\\u0069mage_embeds"):
        answer = stage.run(ask(kind))
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
        assert "send the image itself" in answer.json()["error"]["message"]


# ---- tools and thoughts


def test_a_tool_call_is_streamed_and_its_result_goes_on(stage: Stage, board: Board) -> None:
    """Name and arguments come in pieces that put together are what the model wrote; the result is told to it in the next request."""

    async def ask() -> None:
        board.says(CALL)
        chunks = await board.openai.chat.completions.create(model="chat", messages=user("Weather?"), tools=[WEATHER], stream=True)
        name, arguments, ids, reasons = "", "", set(), set()
        async for chunk in chunks:
            for choice in chunk.choices:
                reasons.add(choice.finish_reason)
                for piece in choice.delta.tool_calls or ():
                    assert piece.function is not None
                    ids.add(piece.id)
                    name += piece.function.name or ""
                    arguments += piece.function.arguments or ""
        assert (name, msgspec.json.decode(arguments), reasons) == ("weather", {"city": "Köln"}, {None, "tool_calls"})
        (id,) = ids - {None}
        board.echoes()
        call = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        told: Any = [*user("Weather?"), {"role": "assistant", "content": "", "tool_calls": [call]}]
        told.append({"role": "tool", "tool_call_id": id, "content": "12 degrees"})
        answer = await board.openai.chat.completions.create(model="chat", messages=told, tools=[WEATHER])
        assert "<|tool|>12 degrees" in answer.choices[0].message.reasoning_content  # type: ignore[attr-defined]

    stage.run(ask())


def test_ollamas_client_gets_tool_calls_as_objects(stage: Stage, board: Board) -> None:
    async def ask() -> Any:
        board.says(CALL)
        parts = [part async for part in await board.ollama.chat("chat", user("Weather?"), tools=[WEATHER], stream=True)]
        return [call.function for part in parts for call in part.message.tool_calls or ()], parts[-1].done

    (function,), done = stage.run(ask())
    assert (function.name, function.arguments, done) == ("weather", {"city": "Köln"}, True)


def test_thoughts_come_apart_in_both_dialects_and_can_be_switched_off(stage: Stage, board: Board) -> None:
    async def ask() -> None:
        board.says(THOUGHT)
        create = board.openai.chat.completions.create
        message: Any = (await create(model="chat", messages=user("Weather?"))).choices[0].message
        assert (message.content, message.reasoning_content.partition("]")[2]) == ("It rains.", "Let me see.")
        streamed: Any = [
            chunk.choices[0].delta async for chunk in await create(model="chat", messages=user("Weather?"), stream=True) if chunk.choices
        ]
        assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in streamed).endswith("Let me see.")
        assert "".join(delta.content or "" for delta in streamed) == "It rains."
        for think in (True, "low"):
            thought = (await board.ollama.chat("chat", user("Weather?"), think=think)).message
            assert (thought.content, (thought.thinking or "").partition("]")[2]) == ("It rains.", "Let me see.")
        generated = await board.ollama.generate("chat", "Weather?", think=True)
        assert (generated.response, (generated.thinking or "").partition("]")[2]) == ("It rains.", "Let me see.")

        board.says("It rains.")
        off: Any = {"chat_template_kwargs": {"enable_thinking": False}}
        for extra in (off, {"reasoning_effort": "none"}):
            message = (await create(model="chat", messages=user("Weather?"), extra_body=extra)).choices[0].message
            assert message.content.endswith("It rains.")
            assert not hasattr(message, "reasoning_content")
        calm = (await board.ollama.chat("chat", user("Weather?"), think=False)).message
        assert (calm.content or "").endswith("It rains.")
        assert calm.thinking is None

    stage.run(ask())


# ---- adapters, caches, numbers


def test_an_adapter_is_a_model_name_in_both_dialects(stage: Stage, board: Board) -> None:
    async def ask() -> None:
        listed = {model.id async for model in board.openai.models.list()}
        assert listed == {"chat", "chat:law"}
        for name, mark in (("chat:law", True), ("chat", False), ("chat:latest", False)):
            answer: Any = await board.openai.chat.completions.create(model=name, messages=user("Hi"))
            assert ("[adapter law]" in answer.choices[0].message.reasoning_content) == mark, name
            assert answer.model == name
            said = await board.ollama.chat(name, user("Hi"))
            assert ("[adapter law]" in (said.message.thinking or "")) == mark, name
        with pytest.raises(openai.NotFoundError, match="chat:tax"):
            await board.openai.chat.completions.create(model="chat:tax", messages=user("Hi"))
        with pytest.raises(ollama.ResponseError, match="chat:tax"):
            await board.ollama.chat("chat:tax", user("Hi"))

    stage.run(ask())


def test_a_prompt_is_found_again_by_its_key_and_not_without(stage: Stage, board: Board) -> None:
    """Another request in between empties the cache; what was saved under the key is read back."""
    long = " ".join(f"word{number}" for number in range(80))

    async def cached(text: str, **more: Any) -> int:
        answer = await board.openai.chat.completions.create(model="chat", messages=user(text), **more)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    async def ask() -> None:
        assert await cached(long, prompt_cache_key="talk") == 0
        await cached("something else")
        assert await cached(long, prompt_cache_key="other") == 0
        await cached("something else")
        assert await cached(long, prompt_cache_key="talk") >= 80

    stage.run(ask())


def test_embeddings_are_the_same_numbers_in_every_encoding(stage: Stage, board: Board) -> None:
    async def ask() -> None:
        texts = ["one text", "another"]
        floats = await board.openai.embeddings.create(model="chat", input=texts, encoding_format="float")
        raw = await board.http.post("/v1/embeddings", json={"model": "chat", "input": texts, "encoding_format": "base64"})
        unpacked = [struct.unpack(f"<{WIDTH}f", base64.b64decode(one["embedding"])) for one in raw.json()["data"]]
        by_default = await board.openai.embeddings.create(model="chat", input=texts)  # the client asks for base64 by itself
        by_ollama = await board.ollama.embed("chat", texts)
        assert len(unpacked) == 2
        for index, vector in enumerate(unpacked):
            assert math.dist(vector, [0] * WIDTH) == pytest.approx(1, abs=1e-5)
            for other in (floats.data[index].embedding, by_default.data[index].embedding, by_ollama.embeddings[index]):
                assert other == pytest.approx(vector, abs=1e-6)
        old = await board.ollama.embeddings("chat", "one text")
        assert old.embedding == pytest.approx(unpacked[0], abs=1e-6)
        assert unpacked[0] != unpacked[1]
        assert floats.usage.prompt_tokens > 0

    stage.run(ask())


def test_logits_have_a_number_for_each_word(stage: Stage, board: Board) -> None:
    """The same prompt has the same ones; what is no prompt, or is sent with another method, is refused."""

    async def ask(body: object) -> httpx2.Response:
        return await board.http.post("/v1/logits", json=body)

    async def all() -> None:
        first, again, other = [await ask({"model": "chat", "prompt": text}) for text in ("one", "one", "two")]
        assert first.status_code == 200, first.text
        assert first.json()["object"] == "logits"
        assert len(base64.b64decode(first.json()["logits"])) == 4 * first.json()["vocab_size"] > 0
        assert first.json()["logits"] == again.json()["logits"] != other.json()["logits"]
        assert first.json()["usage"]["prompt_tokens"] > 0
        tokens = await ask({"model": "chat", "prompt": [1, 2, 3]})
        assert (tokens.status_code, tokens.json()["usage"]["prompt_tokens"]) == (200, 3)
        for wrong in ({"model": "chat"}, {"model": "chat", "prompt": [""]}, {"model": "chat", "prompt": ""}):
            assert (await ask(wrong)).status_code == 400
        assert (await ask({"model": "none", "prompt": "x"})).status_code == 404
        assert (await board.http.get("/v1/logits")).status_code == 405

    stage.run(all())
