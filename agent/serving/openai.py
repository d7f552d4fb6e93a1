"""The OpenAI API as values: what its clients may ask, and how a worker's events become their answers.

In: request bodies of clients and events of a worker. Out: `Request`s, and bytes for the client. It has no I/O and no time. Called by
`agent/serving/openai_api.py`. Source: https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from agent.serving.events import PRIVATE, Event, Usage, context_exceeded, decode_event, length_events, worker_error
from agent.serving.request import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    INPUTS_MAX,
    Answer,
    EmbeddingRequest,
    Kind,
    Logits,
    LogitsRequest,
    Request,
    Timing,
    check_images,
    check_limit,
    read_body,
    refuse,
    worker_request,
)
from rkfleet.errors import BadRequest, FleetError

__all__ = [
    "DONE", "Answer", "Event", "Gathered", "Kind", "OpenAi", "Request", "Streamed", "Usage", "context_exceeded", "decode_event",
    "embeddings_body", "error_body", "error_event", "length_events", "logits_body", "model_card", "parse_embeddings", "parse_logits",
    "parse_request", "worker_error", "worker_request",
]  # fmt: skip

DONE: Final = b"data: [DONE]\n\n"
EVENT_STREAM: Final = b"text/event-stream"

_FIELDS: Final[Mapping[Kind, frozenset[str]]] = {"chat": CHAT_FIELDS, "completion": COMPLETION_FIELDS}
_REQUIRED: Final[Mapping[Kind, str]] = {"chat": "messages", "completion": "prompt"}
_REFUSED: Final[Mapping[Kind, Mapping[str, str]]] = {
    "chat": {"audio": "answers are text", "functions": "it was replaced by tools; send tools"},
    "completion": {
        "logprobs": "log probabilities come with chat completions (logprobs, top_logprobs)",
        "echo": "the answer holds what the model wrote; put the prompt before it yourself",
        "suffix": "no runtime here fills in the middle",
    },
}
CACHE_KEY_CHARACTERS_MAX: Final = 256  # OpenAI says 64; a hash of anything fits.


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
    best_of: int | None = None
    prompt_cache_key: str | None = None


class _AskedEmbeddings(msgspec.Struct, frozen=True):
    model: str
    encoding_format: str | None = None
    dimensions: int | None = None


class _AskedLogits(msgspec.Struct, frozen=True):
    model: str


def parse_request(kind: Kind, body: bytes) -> Request:
    """Read a client's request.

    Raises:
        BadRequest: The body is not a request; `details["param"]` names the field where one is at fault.
    """
    fields, understood = read_body(body, _Understood)
    needed = _REQUIRED[kind]
    if needed not in fields:
        raise BadRequest(f"request body has no field {needed}", code="missing_required_parameter", param=needed)
    refuse(fields, _REFUSED[kind])
    for name in ("n", "best_of"):
        if getattr(understood, name) not in (None, 1):
            raise BadRequest(f"{name} is {getattr(understood, name)}; one answer per request is served", code="invalid_value", param=name)
    if kind == "completion":
        _check_prompt(bytes(fields[needed]))
    else:
        check_images(bytes(fields[needed]))
    cache_key = understood.prompt_cache_key or ""
    if len(cache_key) > CACHE_KEY_CHARACTERS_MAX:
        raise BadRequest(
            f"prompt_cache_key has {len(cache_key)} characters, at most {CACHE_KEY_CHARACTERS_MAX} are served",
            code="invalid_value",
            param="prompt_cache_key",
        )
    limit_field = "max_completion_tokens" if understood.max_completion_tokens is not None else "max_tokens"
    return Request(
        kind=kind,
        model=understood.model,
        stream=bool(understood.stream),
        include_usage=understood.stream_options is not None and understood.stream_options.include_usage,
        max_tokens=check_limit(limit_field, getattr(understood, limit_field)),
        passed={name: value for name, value in fields.items() if name in _FIELDS[kind] and bytes(value) != b"null"},
        prompt_cache_key=cache_key,
    )


def _check_prompt(prompt: bytes) -> None:
    """Let one string or one list of token ids pass.

    Raises:
        BadRequest: It is something else.
    """
    if prompt.startswith(b'"'):
        return
    try:
        tokens = msgspec.json.decode(prompt, type=list[int])
    except msgspec.MsgspecError as error:
        raise BadRequest(
            "prompt must be one string or one list of token ids; several prompts in one request are not served",
            code="invalid_value",
            param="prompt",
        ) from error
    if not tokens:
        raise BadRequest("prompt is an empty list of tokens", code="invalid_value", param="prompt")


def parse_embeddings(body: bytes) -> EmbeddingRequest:
    """Read a request for vectors.

    Raises:
        BadRequest: It is not one; `details["param"]` names the field where one is at fault.
    """
    fields, understood = read_body(body, _AskedEmbeddings)
    if "input" not in fields:
        raise BadRequest("request body has no field input", code="missing_required_parameter", param="input")
    if understood.encoding_format not in (None, "float", "base64"):
        raise BadRequest(
            f"encoding_format is {understood.encoding_format!r}; float and base64 are served", code="invalid_value", param="encoding_format"
        )
    if understood.dimensions is not None and understood.dimensions < 1:
        raise BadRequest(f"dimensions is {understood.dimensions}; at least 1 is needed", code="invalid_value", param="dimensions")
    return EmbeddingRequest(
        model=understood.model,
        inputs=split_inputs(fields["input"], "input"),
        dimensions=understood.dimensions,
        base64=understood.encoding_format == "base64",
    )


def split_inputs(value: msgspec.Raw, field: str) -> tuple[msgspec.Raw, ...]:
    """Return the inputs of an embeddings request one by one: a text, a list of token ids, or a list of either.

    Raises:
        BadRequest: It is something else, empty, or more than INPUTS_MAX.
    """
    whole = bytes(value).strip()
    try:
        read = msgspec.json.decode(whole, type=str | list[int | str | list[int]])
        if isinstance(read, list) and read and not all(isinstance(one, int) for one in read):
            inputs = tuple(msgspec.json.decode(whole, type=list[msgspec.Raw]))
            kinds = {type(one) for one in read}
            if len(kinds) != 1:
                raise BadRequest(f"{field} mixes texts and tokens; send lists of one kind", code="invalid_value", param=field)
        else:
            inputs = (msgspec.Raw(whole),)
    except msgspec.MsgspecError as error:
        raise BadRequest(
            f"{field} must be a text, a list of texts, a list of token ids or a list of such lists: {error}",
            code="invalid_value",
            param=field,
        ) from error
    if not read or any(bytes(one).strip() in (b'""', b"[]") for one in inputs):
        raise BadRequest(f"{field} is empty; there is nothing to embed", code="invalid_value", param=field)
    if len(inputs) > INPUTS_MAX:
        raise BadRequest(f"{field} has {len(inputs)} entries; at most {INPUTS_MAX} are served", code="invalid_value", param=field)
    return inputs


def embeddings_body(request: EmbeddingRequest, vectors: tuple[bytes, ...], prompt_tokens: int) -> bytes:
    """Return the answer to a request for vectors; each vector is little-endian float32."""
    import array  # noqa: PLC0415 (only boards that serve embeddings need it)

    def shown(vector: bytes) -> str | list[float]:
        return base64.b64encode(vector).decode() if request.base64 else array.array("f", vector).tolist()

    data = [{"object": "embedding", "index": index, "embedding": shown(vector)} for index, vector in enumerate(vectors)]
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": request.model, "usage": usage})


def parse_logits(body: bytes) -> LogitsRequest:
    """Read a request for logits, which OpenAI's API does not have.

    Raises:
        BadRequest: It is not one; `details["param"]` names the field where one is at fault.
    """
    fields, understood = read_body(body, _AskedLogits)
    if "prompt" not in fields:
        raise BadRequest("request body has no field prompt", code="missing_required_parameter", param="prompt")
    _check_prompt(bytes(fields["prompt"]))
    return LogitsRequest(model=understood.model, prompt=fields["prompt"])


def logits_body(request: LogitsRequest, logits: Logits) -> bytes:
    """Return the answer to a request for logits."""
    usage = {"prompt_tokens": logits.prompt_tokens, "total_tokens": logits.prompt_tokens}
    return msgspec.json.encode(
        {"object": "logits", "model": request.model, "logits": logits.numbers, "vocab_size": logits.vocabulary, "usage": usage}
    )


class Streamed:
    """An answer as server-sent events: each event of the worker goes on at once, under the name that was asked for."""

    whole = False
    stream_type = EVENT_STREAM

    def __init__(self, request: Request) -> None:
        self._model: Final = msgspec.Raw(msgspec.json.encode(request.model))
        self._include_usage: Final = request.include_usage

    def add(self, data: bytes, event: Event) -> bytes:
        """Return the event for the client, empty if it is none of the client's business."""
        if event.prompt_progress is not None or (not event.choices and not self._include_usage):
            return b""
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        for name in PRIVATE if self._include_usage else (*PRIVATE, "usage"):
            fields.pop(name, None)
        fields["model"] = self._model
        return b"data: " + msgspec.json.encode(fields) + b"\n\n"

    def heartbeat(self, done: int, total: int) -> bytes:
        """Return a comment, which clients of server-sent events skip."""
        return b": prefill %d/%d\n\n" % (done, total)

    def ending(self, _timing: Timing) -> bytes:
        """Return the event that ends every stream."""
        return DONE


class Gathered:
    """An answer as one JSON object, complete when the worker's stream has ended."""

    whole = True
    stream_type = b""

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

    def heartbeat(self, _done: int, _total: int) -> bytes:
        """Return nothing: one JSON value has no room for it."""
        return b""

    def ending(self, _timing: Timing) -> bytes:
        """Return the whole answer."""
        logprobs = {"content": self._logprobs} if self._logprobs else None
        ending = {"index": 0, "logprobs": logprobs, "finish_reason": self._finish_reason}
        if self._kind == "completion":
            name, choice = "text_completion", {"text": self._message["content"], **ending}
        else:
            calls = {"tool_calls": [call for _, call in sorted(self._tool_calls.items())]} if self._tool_calls else {}
            name, choice = "chat.completion", {"message": {**self._message, **calls}, **ending}
        return msgspec.json.encode({**self._head, "object": name, "model": self._model, "choices": [choice], "usage": self._usage})


def error_body(error: FleetError, request_id: str = "") -> bytes:
    """Return an error as OpenAI's clients read it; estimates stand beside the sentence that names them."""
    kind = "invalid_request_error" if error.http_status < 500 and error.http_status != 429 else "server_error"
    estimates = {name: value for name, value in error.details.items() if name.endswith(("_seconds", "_tokens"))}
    return msgspec.json.encode(
        {
            "error": {
                "message": error.message,
                "type": {429: "rate_limit_error", 401: "authentication_error"}.get(error.http_status, kind),
                "param": error.details.get("param"),
                "code": error.details.get("code"),
                **({"request_id": request_id} if request_id else {}),
                **estimates,
            }
        }
    )


def error_event(error: FleetError, request_id: str = "") -> bytes:
    """Return an error as the last event of a stream that has begun."""
    return b"data: " + error_body(error, request_id) + b"\n\n"


class OpenAi:
    """OpenAI's errors; implements `Dialect`."""

    def error_body(self, error: FleetError, request_id: str) -> bytes:
        """Return an error as the whole answer."""
        return error_body(error, request_id)

    def error_event(self, error: FleetError, request_id: str) -> bytes:
        """Return an error as the last event of a stream."""
        return error_event(error, request_id)


def model_card(name: str, context_tokens: int, *, simulated: bool = False) -> dict[str, Any]:
    """Return one entry of `/v1/models`. Creation time is unknown here and 0; `context_window` is what several clients look for.

    A simulated board says so in a field of its own, which is absent elsewhere.
    """
    card = {"id": name, "object": "model", "created": 0, "owned_by": "rkfleet", "context_window": context_tokens}
    return {**card, "simulated": True} if simulated else card
