"""The OpenAI API as values: what clients may ask, what workers are asked, and how a worker's events become an answer.

In: request bodies of clients and SSE events of a worker's listener. Out: request bodies for the worker and bytes for the client. It has no
I/O and no time. Called by `agent/serving/proxy.py`.

A worker is always asked for a stream, also when the client wants one JSON object: a stream shows progress during prefill, so that a
client that left is noticed there, and it gives every answer the same instants to measure. `Gathered` puts the pieces together again.

Only fields that are named here reach the worker. Runtimes know many more, some of which would undo limits (`n_predict`, `id_slot`);
unknown fields are ignored, as OpenAI's clients expect. Source: https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, Protocol

import msgspec

from rkfleet.errors import BadRequest, FleetError, Internal

__all__ = [
    "DONE", "Answer", "Event", "Gathered", "Kind", "Request", "Streamed", "Usage", "context_exceeded", "decode_event", "error_body",
    "error_event", "length_events", "model_card", "parse_request", "worker_error", "worker_request",
]  # fmt: skip

Kind = Literal["chat", "completion"]

DONE: Final = b"data: [DONE]\n\n"

_SAMPLING: Final = frozenset(
    {
        "temperature", "top_p", "top_k", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty", "repeat_penalty", "logit_bias",
    }
)  # fmt: skip
_PASSED: Final[Mapping[Kind, frozenset[str]]] = {
    "chat": _SAMPLING
    | {"messages", "tools", "tool_choice", "parallel_tool_calls", "response_format", "logprobs", "top_logprobs", "reasoning_effort"},
    "completion": _SAMPLING | {"prompt"},
}
_REQUIRED: Final[Mapping[Kind, str]] = {"chat": "messages", "completion": "prompt"}
_PRIVATE: Final = ("timings", "prompt_progress", "__verbose")  # what llama.cpp adds to OpenAI's chunks


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class _Understood(msgspec.Struct, frozen=True):
    """The fields that the agent itself acts on."""

    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None


class Request(msgspec.Struct, frozen=True):
    """A request that may be sent to a worker.

    Attributes:
        max_tokens: The client's own limit, or None.
        passed: Fields that go to the worker as they came.
    """

    kind: Kind
    model: str
    stream: bool
    include_usage: bool
    max_tokens: int | None
    passed: Mapping[str, msgspec.Raw]


def parse_request(kind: Kind, body: bytes) -> Request:
    """Read a client's request.

    Raises:
        BadRequest: The body is not a request; `details["param"]` names the field where one is at fault.
    """
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        understood = msgspec.json.decode(body, type=_Understood)
    except msgspec.ValidationError as error:
        raise BadRequest(f"request body: {error}", code="invalid_value") from error
    except msgspec.DecodeError as error:
        raise BadRequest(f"request body is not JSON: {error}", code="invalid_json") from error
    needed = _REQUIRED[kind]
    if needed not in fields:
        raise BadRequest(f"request body has no field {needed}", code="missing_required_parameter", param=needed)
    if kind == "completion" and not bytes(fields[needed]).startswith(b'"'):
        raise BadRequest("prompt must be one string; token lists and several prompts are not served", code="invalid_value", param=needed)
    if understood.n not in (None, 1):
        raise BadRequest(f"n is {understood.n}; one answer per request is served", code="invalid_value", param="n")
    limit_field = "max_completion_tokens" if understood.max_completion_tokens is not None else "max_tokens"
    limit: int | None = getattr(understood, limit_field)
    if limit is not None and limit < 1:
        raise BadRequest(f"{limit_field} is {limit}; at least 1 is needed", code="invalid_value", param=limit_field)
    return Request(
        kind=kind,
        model=understood.model,
        stream=bool(understood.stream),
        include_usage=understood.stream_options is not None and understood.stream_options.include_usage,
        max_tokens=limit,
        passed={name: value for name, value in fields.items() if name in _PASSED[kind] and bytes(value) != b"null"},
    )


def worker_request(request: Request, max_output_tokens: int) -> bytes:
    """Return the body for the worker: always a stream with progress and usage, never above `max_output_tokens`."""
    return msgspec.json.encode(
        {
            **request.passed,
            "max_tokens": min(request.max_tokens or max_output_tokens, max_output_tokens),
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,
        }
    )


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the worker counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class _Progress(msgspec.Struct, frozen=True):
    total: int = 0


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[Any, ...] | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()
    text: str = ""
    finish_reason: str | None = None


class _WorkerError(msgspec.Struct, frozen=True):
    code: int = 500
    message: str = ""
    type: str = ""
    n_prompt_tokens: int = 0
    n_ctx: int = 0


class Event(msgspec.Struct, frozen=True):
    """One SSE event of a worker, as far as the agent acts on it."""

    choices: tuple[_Choice, ...] = ()
    usage: Usage | None = None
    prompt_progress: _Progress | None = None
    error: _WorkerError | None = None

    @property
    def has_content(self) -> bool:
        """Whether the event carries output: text, reasoning or a part of a tool call."""
        return any(one.text or one.delta.content or one.delta.reasoning_content or one.delta.tool_calls for one in self.choices)

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended, in the event that says so."""
        return next((one.finish_reason for one in self.choices if one.finish_reason), None)


def decode_event(data: bytes) -> Event:
    """Read the data of one SSE event.

    Raises:
        Internal: The worker did not keep to the API.
    """
    try:
        return msgspec.json.decode(data, type=Event)
    except msgspec.MsgspecError as error:
        raise Internal("the worker sent an event that is no chunk of an answer", code="worker_protocol") from error


def length_events(data: bytes, usage: Usage) -> tuple[bytes, bytes]:
    """Return the two events that end an answer with finish reason `length`, made after the event `data` of that answer."""
    fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    for name in (*_PRIVATE, "usage"):
        fields.pop(name, None)
    ending = {"index": 0, "finish_reason": "length"}
    choice = {**ending, "text": ""} if b'"text_completion"' in bytes(fields.get("object", b"")) else {**ending, "delta": {}}
    return msgspec.json.encode({**fields, "choices": [choice]}), msgspec.json.encode({**fields, "choices": [], "usage": usage})


class Answer(Protocol):
    """What the client gets, made event by event."""

    def add(self, data: bytes, event: Event) -> bytes:
        """Return what can be sent to the client after this event; empty for nothing yet."""
        ...


class Streamed:
    """An answer as server-sent events: each event of the worker goes on at once, under the served model's name."""

    def __init__(self, request: Request) -> None:
        self._model: Final = msgspec.Raw(msgspec.json.encode(request.model))
        self._include_usage: Final = request.include_usage

    def add(self, data: bytes, event: Event) -> bytes:
        """Return the event for the client, empty if it is none of the client's business."""
        if event.prompt_progress is not None or (not event.choices and not self._include_usage):
            return b""
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        for name in _PRIVATE if self._include_usage else (*_PRIVATE, "usage"):
            fields.pop(name, None)
        fields["model"] = self._model
        return b"data: " + msgspec.json.encode(fields) + b"\n\n"


class Gathered:
    """An answer as one JSON object, complete when the worker's stream has ended."""

    def __init__(self, request: Request) -> None:
        self._kind: Final = request.kind
        self._head: Final[dict[str, Any]] = {}
        self._model: Final = request.model
        self._message: Final[dict[str, Any]] = {"role": "assistant", "content": ""}
        self._tool_calls: Final[dict[int, dict[str, Any]]] = {}
        self._logprobs: Final[list[Any]] = []
        self._finish_reason: str | None = None
        self._usage: dict[str, Any] | None = None

    def add(self, data: bytes, event: Event) -> bytes:
        """Take the event in; nothing can be sent before the end."""
        if event.prompt_progress is not None:
            return b""
        fields: dict[str, Any] = msgspec.json.decode(data)
        for name in ("id", "created", "system_fingerprint"):
            if name in fields:
                self._head[name] = fields[name]
        self._usage = fields.get("usage") or self._usage
        for choice in fields.get("choices", ()):
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            self._logprobs.extend((choice.get("logprobs") or {}).get("content") or ())
            self._take(choice.get("delta") or {"content": choice.get("text")})
        return b""

    def _take(self, delta: dict[str, Any]) -> None:
        for name in ("content", "reasoning_content"):
            if delta.get(name):
                self._message[name] = self._message.get(name, "") + delta[name]
        for part in delta.get("tool_calls") or ():
            call = self._tool_calls.setdefault(
                part.get("index", 0), {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            )
            call["id"] = part.get("id") or call["id"]
            for name, text in (part.get("function") or {}).items():
                call["function"][name] = call["function"].get(name, "") + (text or "")

    def body(self) -> bytes:
        """Return the whole answer."""
        logprobs = {"content": self._logprobs} if self._logprobs else None
        ending = {"index": 0, "logprobs": logprobs, "finish_reason": self._finish_reason}
        if self._kind == "completion":
            name, choice = "text_completion", {"text": self._message["content"], **ending}
        else:
            calls = {"tool_calls": [call for _, call in sorted(self._tool_calls.items())]} if self._tool_calls else {}
            name, choice = "chat.completion", {"message": {**self._message, **calls}, **ending}
        return msgspec.json.encode({**self._head, "object": name, "model": self._model, "choices": [choice], "usage": self._usage})


def worker_error(body: bytes, context_tokens: int) -> FleetError:
    """Return a worker's refusal as an error for the client."""
    try:
        error = msgspec.json.decode(body, type=Event).error or _WorkerError()
    except msgspec.MsgspecError:
        error = _WorkerError(message="the worker refused the request and did not say why")
    if error.type == "exceed_context_size_error":
        return context_exceeded(error.n_prompt_tokens, context_tokens)
    if 400 <= error.code < 500 and error.code not in (401, 403):
        return BadRequest(error.message, code="invalid_request")
    return Internal(f"the worker failed: {error.message}", code="worker_failed")


def context_exceeded(prompt_tokens: int, context_tokens: int) -> BadRequest:
    """Return the error for a prompt that does not fit."""
    return BadRequest(
        f"the prompt has {prompt_tokens} tokens and the context of this model holds {context_tokens}; shorten the prompt",
        code="context_length_exceeded",
    )


def error_body(error: FleetError) -> bytes:
    """Return an error as OpenAI's clients read it."""
    kind = "invalid_request_error" if error.http_status < 500 and error.http_status != 429 else "server_error"
    return msgspec.json.encode(
        {
            "error": {
                "message": error.message,
                "type": "rate_limit_error" if error.http_status == 429 else kind,
                "param": error.details.get("param"),
                "code": error.details.get("code"),
            }
        }
    )


def error_event(error: FleetError) -> bytes:
    """Return an error as the last event of a stream that has begun."""
    return b"data: " + error_body(error) + b"\n\n"


def model_card(name: str, context_tokens: int, *, simulated: bool = False) -> dict[str, Any]:
    """Return one entry of `/v1/models`. Creation time is unknown here and 0; `context_window` is what several clients look for.

    A simulated board says so in a field of its own, which is absent elsewhere.
    """
    card = {"id": name, "object": "model", "created": 0, "owned_by": "rkfleet", "context_window": context_tokens}
    return {**card, "simulated": True} if simulated else card
