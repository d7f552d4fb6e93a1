"""Requests and answers of the Ollama API as values."""

import math
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from agent.serving import ollama, openai
from agent.serving.request import Timing
from rkfleet.errors import BadRequest, ResourceExhausted

SHAPE = {"type": "object"}
SAMPLING = {"temperature": 0.5, "top_k": 3, "stop": ["x"], "repeat_penalty": 1.1}
PNG = "iVBORw0KGgoAAAANSUhEUg=="


def parse(question: ollama.Question = "chat", **fields: object) -> ollama.Asked:
    return ollama.parse_asked(question, msgspec.json.encode({"model": "m", **fields}))


def passed(question: ollama.Question = "chat", **fields: object) -> dict[str, Any]:
    request = parse(question, **fields).request
    assert request is not None
    return {name: msgspec.json.decode(value) for name, value in request.passed.items()}


def chat(*messages: dict[str, object], **fields: object) -> dict[str, Any]:
    return passed(messages=list(messages) or [{"role": "user", "content": "hi"}], **fields)


def test_a_conversation_with_tools_and_images_becomes_openais() -> None:
    calls = [{"function": {"name": name, "arguments": {"city": name}}} for name in ("a", "b")]
    messages = chat(
        {"role": "user", "content": "look", "images": [PNG]},
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": calls},
        {"role": "tool", "content": "2", "tool_name": "b"},
        {"role": "tool", "content": "1"},
    )["messages"]
    assert messages[0]["content"] == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
    ]
    first, second = messages[1]["tool_calls"]
    assert (first["function"], messages[1]["reasoning_content"]) == ({"name": "a", "arguments": '{"city":"a"}'}, "hm")
    assert [message["tool_call_id"] for message in messages[2:]] == [second["id"], first["id"]]


@pytest.mark.parametrize(
    ("fields", "becomes"),
    [
        ({"format": "json"}, {"response_format": {"type": "json_object"}}),
        ({"format": SHAPE}, {"response_format": {"type": "json_schema", "json_schema": {"name": "format", "schema": SHAPE}}}),
        ({"format": ""}, {}),
        ({"think": False}, {"chat_template_kwargs": {"enable_thinking": False}}),
        ({"think": "high"}, {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": True}}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"options": SAMPLING}, SAMPLING),
    ],
)  # fmt: skip
def test_fields_become_openais(fields: dict[str, object], becomes: dict[str, object]) -> None:
    plain = chat()
    assert {name: value for name, value in chat(**fields).items() if name not in plain} == becomes  # type: ignore[arg-type]


@pytest.mark.parametrize(("predict", "limit"), [(7, 7), (-1, None), (-2, None), (None, None)])
def test_num_predict_is_the_limit(predict: int | None, limit: int | None) -> None:
    request = parse(messages=[{"role": "user", "content": "x"}], options={"num_predict": predict, "num_ctx": 4, "mirostat": 1}).request
    assert request is not None
    assert (request.max_tokens, request.ignored, request.stream) == (limit, ("options.num_ctx", "options.mirostat"), True)


@pytest.mark.parametrize(
    ("question", "fields", "param"),
    [
        ("generate", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("generate", {"prompt": "x", "template": "y"}, "template"),
        ("generate", {"prompt": "x", "context": [1]}, "context"),
        ("generate", {"prompt": "x", "raw": True, "system": "y"}, "system"),
        ("generate", {"prompt": "x", "images": ["!"]}, "images"),
        ("generate", {"prompt": "x", "images": ["AAAAAAAA"]}, "images"),
        ("chat", {"messages": [{"role": "user", "content": "x"}], "format": "yaml"}, "format"),
        ("chat", {"messages": [{"role": "user", "content": "x"}], "think": "deeply"}, "think"),
        ("chat", {"messages": [{"role": "user", "content": "x"}], "options": {"num_predict": 0}}, "options.num_predict"),
        ("chat", {"messages": [{"role": "user", "content": "x"}], "options": {"num_predict": "a"}}, "options.num_predict"),
        ("chat", {"messages": [{"role": "user", "content": "x"}], "keep_alive": "soon"}, "keep_alive"),
        ("chat", {"messages": "hello"}, None),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(question: ollama.Question, fields: dict[str, object], param: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(question, **fields)
    assert caught.value.details.get("param") == param


@pytest.mark.parametrize(("question", "fields"), [("chat", {}), ("chat", {"messages": []}), ("generate", {}), ("generate", {"prompt": ""})])
def test_an_empty_prompt_asks_for_loading_only(question: ollama.Question, fields: dict[str, object]) -> None:
    assert parse(question, **fields, keep_alive=0) == ollama.Asked(model="m", request=None, keep_seconds=0.0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("", None), (0, 0), ("0", 0), (-1, math.inf), ("-1m", math.inf), ("1h2m3s", 3723), ("250ms", 0.25), ("1.5h", 5400),
        (9e99, math.inf),
    ],
)  # fmt: skip
def test_keep_alive_is_seconds_or_a_duration(value: float | str | None, seconds: float | None) -> None:
    assert ollama.keep_seconds(value) == seconds


def test_a_tool_call_whose_arguments_are_no_object_is_handed_on_as_it_was_written() -> None:
    request = parse(messages=[{"role": "user", "content": "x"}], stream=False).request
    assert request is not None
    answer = ollama.OllamaAnswer(request, "chat", lambda: datetime(2026, 1, 1, tzinfo=UTC))
    delta = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "[1"}}]}
    data = msgspec.json.encode({"choices": [{"delta": delta, "finish_reason": "tool_calls"}]})
    assert answer.add(data, openai.decode_event(data)) == b""
    whole = msgspec.json.decode(answer.ending(Timing(total_seconds=1.5)))
    assert whole == {
        "model": "m", "created_at": "2026-01-01T00:00:00Z", "done": True, "done_reason": "stop",
        "message": {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"arguments": "[1"}}}]},
        "total_duration": 1_500_000_000, "load_duration": 0, "prompt_eval_count": 0, "eval_count": 0,
    }  # fmt: skip


def test_an_error_is_a_text_with_its_estimates_beside_it() -> None:
    error = ResourceExhausted("wait", 3, code="deadline_before_turn", queue_seconds=4.5)
    said = ollama.Ollama().error_event(error, "id-1")
    assert said.endswith(b"\n")
    assert msgspec.json.decode(said) == {"error": "wait", "code": "deadline_before_turn", "request_id": "id-1", "queue_seconds": 4.5}
