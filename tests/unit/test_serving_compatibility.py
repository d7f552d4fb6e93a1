"""The table of request fields says what the code does, and leaves nothing out."""

from typing import Any

import msgspec
import pytest

from agent.serving import ollama, openai
from agent.serving.compatibility import FIELDS, Field
from agent.serving.request import CHAT_FIELDS, COMPLETION_FIELDS, EmbeddingRequest, Request
from rkfleet.errors import BadRequest

NEEDED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "x", "messages": [{"role": "user", "content": "x"}]},
    "/v1/completions": {"model": "x", "prompt": "x"},
    "/v1/embeddings": {"model": "x", "input": "x"},
    "/api/chat": {"model": "x", "messages": [{"role": "user", "content": "x"}], "logprobs": False},
    "/api/generate": {"model": "x", "prompt": "x"},
    "/api/embed": {"model": "x", "input": "x"},
}


def read(path: str, fields: dict[str, Any]) -> tuple[Request | EmbeddingRequest, object]:
    """Return what the dialect makes of a body: the request, and what else it acts on."""
    body = msgspec.json.encode(fields)
    match path:
        case "/v1/chat/completions":
            return openai.parse_request("chat", body), None
        case "/v1/completions":
            return openai.parse_request("completion", body), None
        case "/v1/embeddings":
            return openai.parse_embeddings(body), None
        case "/api/embed":
            return ollama.parse_embed(body, "input")
        case _:
            asked = ollama.parse_asked("chat" if path == "/api/chat" else "generate", body)
            assert asked.request is not None
            return asked.request, asked.keep_seconds


def with_field(field: Field) -> dict[str, Any]:
    fields = dict(NEEDED[field.path])
    outer, _, inner = field.name.partition(".")
    if field.name == "top_logprobs":
        fields["logprobs"] = True
    return {**fields, outer: {inner: field.example} if inner else field.example}


def worker_fields(request: Request | EmbeddingRequest) -> object:
    if isinstance(request, EmbeddingRequest):
        return [msgspec.json.decode(one) for one in request.inputs]
    return {name: msgspec.json.decode(value) for name, value in request.passed.items()}


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: f"{field.path} {field.name}")
def test_a_field_does_what_the_table_says(field: Field) -> None:
    fields = with_field(field)
    plain = {name: value for name, value in fields.items() if name in NEEDED[field.path] and name != field.name.partition(".")[0]}
    without, beside = read(field.path, {**NEEDED[field.path], **plain})
    match field.llamacpp:
        case "refused":
            with pytest.raises(BadRequest) as caught:
                read(field.path, fields)
            assert caught.value.details["param"] == field.name
        case "yes":
            request, _ = read(field.path, fields)
            assert worker_fields(request) != worker_fields(without)
        case "named":
            request, _ = read(field.path, fields)
            assert any(name.startswith(field.name) for name in request.ignored)
            assert worker_fields(request) == worker_fields(without)
        case "board":
            request, also = read(field.path, fields)
            assert (request, also) != (without, beside)


def test_the_table_leaves_out_no_field_that_is_read() -> None:
    def known(path: str) -> set[str]:
        return {field.name for field in FIELDS if field.path == path}

    understood = set(openai._Understood.__struct_fields__)
    assert known("/v1/chat/completions") == CHAT_FIELDS | understood | set(openai._REFUSED["chat"])
    assert known("/v1/completions") == COMPLETION_FIELDS | understood | set(openai._REFUSED["completion"])
    assert known("/v1/embeddings") == {*openai._AskedEmbeddings.__struct_fields__, "input"}
    both = {"model", "stream", "format", "think", "logprobs", "top_logprobs", "keep_alive"}
    options = {f"options.{name}" for name in ollama._PASSED_OPTIONS | {"num_predict", "num_ctx", "mirostat"}}
    assert known("/api/chat") == both | options | {"messages", "tools"}
    assert known("/api/generate") == both | options | {"prompt", "system", "images", "raw"} | set(ollama._REFUSED["generate"])
    assert both | {"messages", "tools", "prompt", "system", "images", "raw", "options"} == set(ollama._Understood.__struct_fields__)
    assert known("/api/embed") == {*ollama._AskedEmbed.__struct_fields__, "input"}
