"""What a worker says, event by event, as far as the agent acts on it.

In: the data of one server-sent event of a worker's listener, or the body of its refusal. Out: an `Event`, or the error that clients get.
Called by `agent/serving/proxy.py` and by the answers of each dialect. It has no I/O and no time.

Workers speak OpenAI's chunks with llama.cpp's additions, whatever dialect the client speaks (`agent.workers.base.Backend`).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from rkfleet.errors import BadRequest, FleetError, Internal, Unavailable

__all__ = ["PRIVATE", "Choice", "Event", "Usage", "context_exceeded", "decode_event", "length_events", "worker_error"]

PRIVATE: Final = ("timings", "prompt_progress", "ignored", "__verbose")  # what workers add to OpenAI's chunks

LATER_SECONDS: Final = 2
_LATER: Final = (429, 503)  # The worker cannot now, for a reason of its own; another replica may.
_NOT_SUPPORTED: Final = 501  # llama.cpp's status for a question that this model or its load parameters have no answer to


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the worker counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: _Details | None = None

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that the worker had computed before."""
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else 0


class _Progress(msgspec.Struct, frozen=True):
    total: int = 0
    processed: int = 0
    cache: int = 0


class _Function(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, frozen=True):
    """A piece of a tool call; pieces with the same index belong together."""

    index: int = 0
    id: str | None = None
    function: _Function | None = None


class Delta(msgspec.Struct, frozen=True):
    """A piece of an answer."""

    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None


class TokenLogprob(msgspec.Struct, frozen=True):
    """One token of the answer with its log probability and those of its rivals."""

    token: str = ""
    logprob: float = 0.0
    bytes: tuple[int, ...] | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()


class _Logprobs(msgspec.Struct, frozen=True):
    content: tuple[TokenLogprob, ...] | None = None


class Choice(msgspec.Struct, frozen=True):
    """The one choice of a chunk."""

    delta: Delta = Delta()
    text: str = ""
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _WorkerError(msgspec.Struct, frozen=True):
    code: int = 500
    message: str = ""
    type: str = ""
    param: str | None = None
    n_prompt_tokens: int = 0
    n_ctx: int = 0


class Event(msgspec.Struct, frozen=True):
    """One SSE event of a worker.

    Attributes:
        ignored: Parameters of the request that the runtime has no use for; only in the first event.
    """

    choices: tuple[Choice, ...] = ()
    usage: Usage | None = None
    prompt_progress: _Progress | None = None
    ignored: tuple[str, ...] = ()
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
    for name in (*PRIVATE, "usage"):
        fields.pop(name, None)
    ending: dict[str, Any] = {"index": 0, "finish_reason": "length"}
    choice = {**ending, "text": ""} if b'"text_completion"' in bytes(fields.get("object", b"")) else {**ending, "delta": {}}
    counted = {name: value for name, value in msgspec.to_builtins(usage).items() if value is not None}
    return msgspec.json.encode({**fields, "choices": [choice]}), msgspec.json.encode({**fields, "choices": [], "usage": counted})


def worker_error(body: bytes, context_tokens: int) -> FleetError:
    """Return a worker's refusal as an error for the client."""
    try:
        error = msgspec.json.decode(body, type=Event).error or _WorkerError()
    except msgspec.MsgspecError:
        error = _WorkerError(message="the worker refused the request and did not say why")
    if error.type == "exceed_context_size_error":
        return context_exceeded(error.n_prompt_tokens, context_tokens)
    if error.code == _NOT_SUPPORTED:
        return BadRequest(f"this replica cannot do that: {error.message}", code="not_supported")
    if error.code in _LATER:
        return Unavailable(error.message, retry_after_seconds=LATER_SECONDS, code="worker_busy")
    if 400 <= error.code < 500 and error.code not in (401, 403):
        return BadRequest(error.message, code="invalid_request", param=error.param)
    return Internal(f"the worker failed: {error.message}", code="worker_failed")


def context_exceeded(prompt_tokens: int, context_tokens: int) -> BadRequest:
    """Return the error for a prompt that does not fit."""
    return BadRequest(
        f"the prompt has {prompt_tokens} tokens and the context of this model holds {context_tokens}; shorten the prompt",
        code="context_length_exceeded",
    )
