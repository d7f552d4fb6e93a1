"""The listener of a worker on the NPU, spoken to in every wrong way: bounded, answered, and never the end of the worker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.workers import loopback
from tests.support import npu_worker
from tests.support.npu_worker import Running
from tests.support.serving import Stage, on_stage

ANSWER_SECONDS = 5.0  # Far above what any answer here takes, far below a hang.
CHAT = b'{"messages":[{"role":"user","content":"Hi"}],"max_tokens":2}'


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stage, Running]]:
    root = tmp_path_factory.mktemp("worker")
    spec = npu_worker.spec_of(npu_worker.model(root, tokens_per_s=50_000), npu_worker.npu("G4", root), max_output_tokens=8)

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[Running]:
        async with npu_worker.running(spec) as running:
            yield running

    with on_stage(opened) as staged:
        yield staged


async def exchange(endpoint: str, *pieces: bytes) -> bytes:
    """Send pieces of bytes one after the other and return all that comes back until the connection ends."""
    host, _, port = endpoint.removeprefix("http://").rpartition(":")
    async with asyncio.timeout(ANSWER_SECONDS):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            return await reader.read(-1)
        except ConnectionError:
            return b""
        finally:
            writer.close()


def head(running: Running, *lines: str, version: str = "1.1", length: int | None = len(CHAT), path: str = "/v1/chat/completions") -> bytes:
    more = [*lines, *([f"Content-Length: {length}"] if length is not None else [])]
    first = [f"POST {path} HTTP/{version}", "Host: x", f"Authorization: Bearer {running.api_key}"]
    return "".join(f"{line}\r\n" for line in (*first, *more, "")).encode()


def test_what_is_unusual_is_answered(staged: tuple[Stage, Running]) -> None:
    """A wrong content type, an older HTTP, a body in chunks or after a pause, and requests that nobody waits to be asked for."""
    stage, running = staged

    async def ask(*pieces: bytes) -> bytes:
        return await exchange(running.endpoint, *pieces)

    for wrong in ("Content-Type: text/html", "Content-Type: multipart/form-data; boundary=x", "Accept: image/png"):
        assert stage.run(ask(head(running, wrong) + CHAT)).startswith(b"HTTP/1.1 200")
    old = stage.run(ask(head(running, version="1.0") + CHAT))
    assert old.startswith(b"HTTP/1.1 200")
    assert old.endswith(b"data: [DONE]\n\n")  # an older client knows no chunks: the end of the connection is the end of the answer
    assert b"transfer-encoding" not in old.lower()
    chunked = head(running, "Transfer-Encoding: chunked", length=None), b"%x\r\n%s\r\n" % (len(CHAT), CHAT), b"0\r\n\r\n"
    assert stage.run(ask(*chunked)).startswith(b"HTTP/1.1 200")
    pipelined = stage.run(ask((head(running) + CHAT) * 3))
    assert (pipelined.count(b"HTTP/1.1 200"), pipelined.count(b"[DONE]")) == (1, 1)


def test_a_client_that_waits_to_be_told_to_go_on_is_told(staged: tuple[Stage, Running]) -> None:
    stage, running = staged

    async def ask() -> tuple[bytes, bytes]:
        host, _, port = running.endpoint.removeprefix("http://").rpartition(":")
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head(running, "Expect: 100-continue"))
            told = await reader.readuntil(b"\r\n\r\n")
            writer.write(CHAT)
            rest = await reader.read(-1)
            writer.close()
            return told, rest

    told, rest = stage.run(ask())
    assert told.startswith(b"HTTP/1.1 100")
    assert rest.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), b"400"),  # TLS
        (b"GET / HTTP/one\r\n\r\n", b"400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 3_000, b"431"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),  # no host
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"401"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_with_a_status(staged: tuple[Stage, Running], sent: bytes, status: bytes) -> None:
    stage, running = staged
    assert stage.run(exchange(running.endpoint, sent)).split()[1:2] == [status]
    assert stage.run(running.chat("Hi")).finish_reason


def test_a_body_that_never_ends_holds_a_connection_for_a_limited_time() -> None:
    async def answer(_request: loopback.Request, answer: loopback.Answer) -> None:
        await answer.begin(200, b"text/plain")
        await answer.end()

    async def ask() -> bytes:
        async with loopback.listen(answer, request_seconds_max=0.2) as endpoint:
            return await exchange(endpoint, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n", b"123")

    assert asyncio.run(ask()).startswith(b"HTTP/1.1 408")


# ---- bodies of every shape

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=6
)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "image_embeds", "video", "x"])},
    optional={"text": VALUES, "image_url": VALUES, "data": st.sampled_from(["", "AAAA", "AAAAAA==", "!"]), "tokens": VALUES},
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "tool", "assistant", ""]) | VALUES},
    optional={"content": st.text() | st.lists(PARTS | VALUES, max_size=3) | VALUES, "tool_calls": VALUES, "name": VALUES},
)
TOOLS = st.lists(
    st.fixed_dictionaries({"type": st.just("function")}, optional={"function": st.dictionaries(st.just("name"), VALUES) | VALUES}),
    max_size=2,
)
FIELDS = (
    "temperature", "top_p", "top_k", "repeat_penalty", "mirostat", "mirostat_tau", "min_p", "seed", "logit_bias", "stop", "tool_choice",
    "parallel_tool_calls", "response_format", "logprobs", "top_logprobs", "n", "adapter", "tenant", "prompt_cache_key", "think", "raw",
    "chat_template_kwargs", "reasoning_effort", "max_completion_tokens", "prompt_embeds", "encoding_format", "dimensions",
)  # fmt: skip
BODIES = st.fixed_dictionaries(
    {"max_tokens": st.just(1) | SCALARS},
    optional={
        "messages": st.lists(MESSAGES, max_size=3) | VALUES,
        "prompt": st.text() | st.lists(st.integers(-1, 1000), max_size=4) | VALUES,
        "input": st.text() | st.lists(st.text(), max_size=2) | VALUES,
        "tools": TOOLS | VALUES,
        **dict.fromkeys(FIELDS, VALUES),
    },
)
PATHS = st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/logits", "/v1/none"])
NESTED = b'{"messages":' + b"[" * 20_000


def status_of(said: bytes) -> int:
    assert said.startswith(b"HTTP/1.1 "), said[:80]
    return int(said.split()[1])


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=PATHS, body=BODIES.map(msgspec.json.encode) | st.binary(max_size=40) | st.just(NESTED))
def test_no_body_is_the_worker_s_fault_or_its_end(staged: tuple[Stage, Running], path: str, body: bytes) -> None:
    """Whatever is sent is answered or is a mistake of who sent it, and says so in a sentence; the process lives."""
    stage, running = staged
    said = stage.run(exchange(running.endpoint, head(running, length=len(body), path=path) + body))
    status = status_of(said)
    assert status < 500, said
    if status != 200:
        error: Any = msgspec.json.decode(said.partition(b"{")[1] + said.partition(b"{")[2].rpartition(b"}")[0] + b"}")["error"]
        assert error["message"]
        assert error["code"] == status
    else:
        assert b'"server_error"' not in said, said
    assert not running.worker._exited.done()
