"""A request and its answer as every dialect makes them: what reaches a worker, and what a worker's events become.

In: what a dialect (`agent/serving/openai.py`, `agent/serving/ollama.py`) read of a client's body. Out: the body for the worker. Called by
the dialects and `agent/serving/proxy.py`. It has no I/O and no time. A further dialect is one module that makes `Request`s and `Answer`s
and one that answers its paths; nothing below knows which dialect a client speaks.

A worker is always asked for a stream, also when the client wants one JSON object: a stream shows progress during prefill, so that a
client that left is noticed there, and it gives every answer the same instants to measure.

Only fields that are named here reach the worker. Runtimes know many more, some of which would undo limits (`n_predict`, `id_slot`);
unknown fields are ignored, as OpenAI's clients expect. Source: https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, Protocol

import msgspec

from agent.serving.events import Event
from rkfleet.errors import BadRequest

__all__ = [
    "CHAT_FIELDS", "COMPLETION_FIELDS", "INPUTS_MAX", "PARAMETERS", "Answer", "Dialect", "EmbeddingRequest", "Kind", "Logits",
    "LogitsRequest", "Request", "Timing", "check_images", "check_limit", "named", "read_body", "refuse", "worker_request",
]  # fmt: skip

Kind = Literal["chat", "completion"]

_SAMPLING: Final = frozenset(
    {
        "temperature", "top_p", "top_k", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty", "repeat_penalty", "logit_bias",
    }
)  # fmt: skip
CHAT_FIELDS: Final = _SAMPLING | {
    "messages", "tools", "tool_choice", "parallel_tool_calls", "response_format", "logprobs", "top_logprobs", "reasoning_effort",
    "chat_template_kwargs",
}  # fmt: skip
COMPLETION_FIELDS: Final = _SAMPLING | {"prompt"}

# Names that a metric may carry: clients could make up any number of others.
PARAMETERS: Final = CHAT_FIELDS | COMPLETION_FIELDS | {f"options.{name}" for name in _SAMPLING} | {
    "format", "keep_alive", "options.main_gpu", "options.mirostat", "options.num_batch", "options.num_ctx", "options.num_gpu",
    "options.num_keep", "options.num_thread", "options.repeat_last_n", "options.typical_p", "options.use_mmap", "raw", "think", "truncate",
}  # fmt: skip

NAMES_MAX: Final = 32  # Names in the header `x-rkfleet-ignored`; there are fewer parameters.
_NAME: Final = re.compile(r"[A-Za-z0-9_.]{1,64}")

# Of a JSON schema. The runtime looks at all alternatives for each token, and hears no cancellation meanwhile: `anyOf` of 1,000 constants
# (19 kB) takes 0.35 s a token on a PC (2026-11-25, SmolLM2-135M), of 50,000 minutes in which nobody else is answered.
FORMAT_BYTES_MAX: Final = 16 << 10

INPUTS_MAX: Final = 2048  # Texts of one embeddings request, OpenAI's own limit; each is computed after the other.


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer took, in seconds as measured by the agent, and its tokens as counted by the worker.

    Attributes:
        total_seconds: From the request's arrival until now.
        load_seconds: That it waited for its model to be loaded.
        prefill_seconds: From the moment the worker had it until the first output; None without output.
        decode_seconds: From the first output to the last; None without output.
    """

    total_seconds: float
    load_seconds: float = 0.0
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request for an answer that may be sent to a worker.

    Attributes:
        model: Name as the client wrote it; answers carry it.
        max_tokens: The client's own limit, or None.
        passed: Fields that go to the worker, as JSON.
        prompt_cache_key: Which conversation this is, in the client's own words; empty for none. Never leaves its tenant.
        ignored: Fields that the client set and nothing honours; said in the header `x-rkfleet-ignored`.
        spelled: Fields of `passed` that the client wrote under another name, and that name; said in the same header.
    """

    kind: Kind
    model: str
    stream: bool
    include_usage: bool = False
    max_tokens: int | None = None
    passed: Mapping[str, msgspec.Raw]
    prompt_cache_key: str = ""
    ignored: tuple[str, ...] = ()
    spelled: Mapping[str, str] = {}

    def __post_init__(self) -> None:
        """Refuse what would hold up everybody.

        Raises:
            BadRequest: The format of the answer is too large.
        """
        size = len(bytes(self.passed.get("response_format", b"")))
        if size > FORMAT_BYTES_MAX:
            raise BadRequest(
                f"the format of the answer has {size} bytes, at most {FORMAT_BYTES_MAX} are taken: each token is checked against all of it",
                code="invalid_value",
                param="response_format",
            )

    @property
    def prompt(self) -> bytes:
        """The prompt as JSON: the messages, or the text to go on from."""
        return bytes(self.passed["messages" if self.kind == "chat" else "prompt"])

    @property
    def has_images(self) -> bool:
        """Whether a message carries an image."""
        return b'"image_url"' in self.prompt


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request for vectors.

    Attributes:
        inputs: Each a JSON string or list of token ids.
        dimensions: Length of the vectors; None for the model's own.
        base64: Whether the client wants little-endian float32 in base64 instead of lists of numbers.
    """

    model: str
    inputs: tuple[msgspec.Raw, ...]
    dimensions: int | None = None
    base64: bool = False
    ignored: tuple[str, ...] = ()


class LogitsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request for the logits of the token that would come next.

    Attributes:
        prompt: A JSON string or list of token ids.
    """

    model: str
    prompt: msgspec.Raw


class Logits(msgspec.Struct, frozen=True, kw_only=True):
    """One number for each word of the vocabulary.

    Attributes:
        numbers: Base64 of little-endian float32[vocabulary].
    """

    numbers: str
    vocabulary: int
    prompt_tokens: int


class Answer(Protocol):
    """What the client gets, made event by event."""

    @property
    def whole(self) -> bool:
        """Whether nothing is sent before the end, so that `ending` returns everything."""
        ...

    @property
    def stream_type(self) -> bytes:
        """Content type of a stream; unused when whole."""
        ...

    def add(self, data: bytes, event: Event) -> bytes:
        """Return what can be sent to the client after this event; empty for nothing yet."""
        ...

    def heartbeat(self, done: int, total: int) -> bytes:
        """Return what tells the client that prefill goes on; empty where the format has nothing that is no part of the answer."""
        ...

    def ending(self, timing: Timing) -> bytes:
        """Return the last piece, or the whole answer."""
        ...


class Dialect(Protocol):
    """How a client reads errors."""

    def error_body(self, error: Any, request_id: str) -> bytes:
        """Return an error as the whole answer."""
        ...

    def error_event(self, error: Any, request_id: str) -> bytes:
        """Return an error as the last piece of a stream that has begun."""
        ...


def worker_request(request: Request, max_output_tokens: int, extra: Mapping[str, Any] | None = None) -> bytes:
    """Return the body for the worker: always a stream with progress and usage, never above `max_output_tokens`.

    Args:
        request: As the dialect read it.
        max_output_tokens: Most tokens of an answer of this replica.
        extra: What the agent itself tells the worker: adapter, tenant, slot.
    """
    return msgspec.json.encode(
        {
            **request.passed,
            "max_tokens": min(request.max_tokens or max_output_tokens, max_output_tokens),
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,
            **(extra or {}),
        }
    )


def read_body(body: bytes, understood: type[Any]) -> tuple[dict[str, msgspec.Raw], Any]:
    """Return the fields of a client's body, raw, and those that a dialect acts on as `understood`.

    Raises:
        BadRequest: The body is no JSON object or a field has the wrong type.
    """
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw]), msgspec.json.decode(body, type=understood)
    except msgspec.ValidationError as error:
        raise BadRequest(f"request body: {error}", code="invalid_value") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"request body is not JSON: {error}", code="invalid_json") from error


def named(parameters: Iterable[str]) -> tuple[str, ...]:
    """Return the names that may stand in a header, each once: clients make up names, and one could hold the end of a line."""
    return tuple(name for name in dict.fromkeys(parameters) if _NAME.fullmatch(name))[:NAMES_MAX]


def check_limit(field: str, limit: int | None) -> int | None:
    """Return a limit of output tokens.

    Raises:
        BadRequest: It is below 1.
    """
    if limit is not None and limit < 1:
        raise BadRequest(f"{field} is {limit}; at least 1 is needed", code="invalid_value", param=field)
    return limit


def refuse(fields: Mapping[str, msgspec.Raw], reasons: Mapping[str, str]) -> None:
    """Refuse the first field that is set to something and is not served.

    Raises:
        BadRequest: `details["param"]` names it.
    """
    for name, reason in reasons.items():
        if bytes(fields.get(name, b"null")) not in (b"null", b"false", b'""', b"[]"):
            raise BadRequest(f"{name} is not served: {reason}", code="unsupported_parameter", param=name)


class _ImageUrl(msgspec.Struct, frozen=True):
    url: str = ""


class _Part(msgspec.Struct, frozen=True):
    type: str = ""
    image_url: _ImageUrl | str | None = None


class _Message(msgspec.Struct, frozen=True):
    content: str | tuple[_Part | str, ...] | None = None


def check_images(messages: bytes) -> None:
    """Let images pass that are in the request itself.

    Raises:
        BadRequest: An image is to be fetched from somewhere: a board fetches nothing for a client. Or it is no image but its embeddings:
            a runtime reads as many numbers as its model is wide, whatever the client sent.
    """
    if b'"image_' not in messages and b"\\u" not in messages:  # a letter may be written as its number
        return
    try:
        read = msgspec.json.decode(messages, type=tuple[_Message, ...])
    except msgspec.MsgspecError as error:
        raise BadRequest(f"messages: {error}", code="invalid_value", param="messages") from error
    for message in read:
        for part in message.content if isinstance(message.content, tuple) else ():
            if isinstance(part, _Part) and part.type == "image_embeds":
                raise BadRequest(
                    "a part of type image_embeds is not taken from clients; send the image itself as image_url",
                    code="invalid_value",
                    param="messages",
                )
            if isinstance(part, str) or part.type != "image_url":
                continue
            url = part.image_url if isinstance(part.image_url, str) else part.image_url.url if part.image_url else ""
            if not url.startswith("data:image/"):
                raise BadRequest(
                    f"image_url begins with {url[:16]!r}; send the image itself as a data: URL (data:image/png;base64,...): "
                    "a board fetches nothing for a client",
                    code="invalid_image_url",
                    param="messages",
                )
