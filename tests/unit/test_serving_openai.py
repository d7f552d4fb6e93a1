"""Requests and answers of the OpenAI API as values."""

import msgspec
import pytest

from agent.serving import ollama, openai
from agent.serving.request import Timing
from rkfleet.errors import BadRequest, Internal, ResourceExhausted, Unavailable


def parse(**fields: object) -> openai.Request:
    return openai.parse_request("chat", msgspec.json.encode({"model": "m", "messages": [], **fields}))


def event(**fields: object) -> tuple[bytes, openai.Event]:
    data = msgspec.json.encode({"id": "c1", "created": 1, "object": "chat.completion.chunk", "model": "file", **fields})
    return data, openai.decode_event(data)


def piece(delta: dict[str, object], reason: str | None = None) -> tuple[bytes, openai.Event]:
    return event(choices=[{"index": 0, "delta": delta, "finish_reason": reason}])


@pytest.mark.parametrize(
    ("fields", "limit"),
    [({}, 50), ({"max_tokens": None}, 50), ({"max_tokens": 7}, 7), ({"max_tokens": 70}, 50), ({"max_completion_tokens": 7}, 7),
     ({"max_tokens": 9, "max_completion_tokens": 7}, 7)],
)  # fmt: skip
def test_the_worker_is_never_asked_for_more_than_the_longest_answer(fields: dict[str, object], limit: int) -> None:
    assert msgspec.json.decode(openai.worker_request(parse(**fields), 50))["max_tokens"] == limit


def test_only_known_fields_reach_the_worker_and_nulls_do_not() -> None:
    request = parse(temperature=0.5, seed=None, stop=["x"], n_predict=9, id_slot=1, lora=[], stream=False, user="me")
    assert set(msgspec.json.decode(openai.worker_request(request, 50))) == {
        "messages", "temperature", "stop", "max_tokens", "stream", "stream_options", "return_progress",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        ("chat", {"n": 3}, "n"),
        ("chat", {"max_tokens": -1}, "max_tokens"),
        ("chat", {"max_completion_tokens": 0}, "max_completion_tokens"),
        ("completion", {}, "prompt"),
        ("completion", {"prompt": ["a", "b"]}, "prompt"),
    ],
)
def test_a_field_at_fault_is_named(kind: openai.Kind, fields: dict[str, object], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        openai.parse_request(kind, msgspec.json.encode({"model": "m", "messages": [], **fields}))
    assert caught.value.details["param"] == param


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b'{"messages": []}', b'{"model": 3, "messages": []}', b'{"model": "m"'])
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        openai.parse_request("chat", body)


def test_a_format_that_would_hold_up_everybody_is_refused() -> None:
    """The runtime checks each token against every alternative, and hears no cancellation meanwhile."""
    large = {"anyOf": [{"const": f"c{number}"} for number in range(2000)]}
    with pytest.raises(BadRequest, match="at most 16384 are taken"):
        parse(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": large}})
    assert "response_format" in parse(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}).passed
    with pytest.raises(BadRequest, match="at most 16384 are taken"):
        ollama.parse_asked("chat", msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "x"}], "format": large}))


def test_a_stream_hides_the_worker_and_keeps_everything_else() -> None:
    answer = openai.Streamed(parse(stream=True))
    sent = answer.add(*event(choices=[{"index": 0, "delta": {"content": "é"}, "logprobs": {"content": []}}], timings={"prompt_ms": 1}))
    assert sent.startswith(b"data: ")
    assert sent.endswith(b"\n\n")
    fields = msgspec.json.decode(sent[6:])
    assert fields["model"] == "m"
    assert fields["choices"] == [{"index": 0, "delta": {"content": "é"}, "logprobs": {"content": []}}]
    assert "timings" not in fields
    assert answer.add(*event(choices=[{"index": 0, "delta": {}}], prompt_progress={"total": 3})) == b""
    assert answer.add(*event(choices=[], usage={"prompt_tokens": 1})) == b""


def test_tool_calls_that_come_in_parts_are_gathered() -> None:
    answer = openai.Gathered(parse())
    for delta in (
        {"role": "assistant", "content": None},
        {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Paris"}'}}, {"index": 1, "id": "b", "function": {"name": "time"}}]},
    ):
        answer.add(*piece(delta))
    answer.add(*piece({}, "tool_calls"))
    (choice,) = msgspec.json.decode(answer.ending(Timing(total_seconds=0.0)))["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}},
        {"id": "b", "type": "function", "function": {"name": "time", "arguments": ""}},
    ]


def test_reasoning_and_log_probabilities_are_gathered() -> None:
    answer = openai.Gathered(parse())
    answer.add(*piece({"reasoning_content": "hm "}))
    answer.add(*piece({"reasoning_content": "yes"}))
    for token in ("a", "b"):
        answer.add(*event(choices=[{"index": 0, "delta": {"content": token}, "logprobs": {"content": [{"token": token}]}}]))
    (choice,) = msgspec.json.decode(answer.ending(Timing(total_seconds=0.0)))["choices"]
    assert choice["message"] == {"role": "assistant", "content": "ab", "reasoning_content": "hm yes"}
    assert choice["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}


@pytest.mark.parametrize(
    ("delta", "content"),
    [({"content": "x"}, True), ({"content": ""}, False), ({"role": "assistant", "content": None}, False),
     ({"reasoning_content": "x"}, True), ({"tool_calls": [{"index": 0}]}, True), ({}, False)],
)  # fmt: skip
def test_the_first_token_is_the_first_output_of_any_kind(delta: dict[str, object], content: bool) -> None:
    assert piece(delta)[1].has_content is content


def test_an_answer_that_is_cut_ends_like_one_that_ended() -> None:
    data, _ = piece({"content": "x"})
    ending, usage = openai.length_events(data, openai.Usage(prompt_tokens=5, completion_tokens=3, total_tokens=8))
    assert openai.decode_event(ending).finish_reason == "length"
    assert openai.decode_event(usage).usage == openai.Usage(prompt_tokens=5, completion_tokens=3, total_tokens=8)
    assert msgspec.json.decode(usage)["id"] == "c1"


@pytest.mark.parametrize(
    ("body", "error", "code"),
    [
        (b'{"error":{"code":400,"type":"exceed_context_size_error","n_prompt_tokens":9}}', BadRequest, "context_length_exceeded"),
        (b'{"error":{"code":400,"message":"bad","type":"invalid_request_error"}}', BadRequest, "invalid_request"),
        (b'{"error":{"code":401,"message":"Invalid API Key"}}', Internal, "worker_failed"),
        (b'{"error":{"code":500,"message":"compute"}}', Internal, "worker_failed"),
        (b"<html>", Internal, "worker_failed"),
    ],
)  # fmt: skip
def test_a_refusal_of_the_worker_becomes_one_for_the_client(body: bytes, error: type[Exception], code: str) -> None:
    translated = openai.worker_error(body, 8)
    assert type(translated) is error
    assert translated.details["code"] == code


@pytest.mark.parametrize(
    ("error", "kind"),
    [(BadRequest("no", code="c"), "invalid_request_error"), (ResourceExhausted("no", code="c"), "rate_limit_error"),
     (Unavailable("no", code="c"), "server_error")],
)  # fmt: skip
def test_errors_have_openai_s_form(error: BadRequest, kind: str) -> None:
    assert msgspec.json.decode(openai.error_body(error)) == {"error": {"message": "no", "type": kind, "param": None, "code": "c"}}
