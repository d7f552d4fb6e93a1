"""The Ollama API as values: what its clients may ask, and how a worker's events become their answers.

In: request bodies of clients and events of a worker. Out: `Request`s, and bytes for the client: one JSON value, or one per line. It has no
I/O; the time of day is an argument. Called by `agent/serving/ollama_api.py`.

Differences to OpenAI's API that matter here: `stream` is true unless said otherwise, sampling parameters stand in `options`, tool calls
have objects as arguments and no ids, and the last value has durations in nanoseconds. What a board cannot honour is refused by name or,
where an answer is right without it, named in the header `x-rkfleet-ignored`.
Source: https://github.com/ollama/ollama/blob/main/docs/api.md.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, Literal

import msgspec

from agent.serving.events import Event, TokenLogprob
from agent.serving.openai import split_inputs
from agent.serving.request import EmbeddingRequest, Request, Timing, check_limit, read_body, refuse
from rkfleet.errors import BadRequest, FleetError

__all__ = ["Asked", "Ollama", "OllamaAnswer", "Question", "embedded_body", "keep_seconds", "parse_asked", "parse_embed", "rfc3339"]

Question = Literal["chat", "generate"]
NDJSON: Final = b"application/x-ndjson"
NANOSECONDS: Final = 1_000_000_000
KEEP_SECONDS_MAX: Final = 10 * 365 * 86400.0  # Longer is for ever.

_PASSED_OPTIONS: Final = frozenset(
    {"temperature", "top_k", "top_p", "min_p", "seed", "stop", "repeat_penalty", "presence_penalty", "frequency_penalty"}
)
_SPELLED: Final[Mapping[str, str]] = {
    "chat_template_kwargs": "think", "reasoning_effort": "think", "response_format": "format",
    **{name: f"options.{name}" for name in _PASSED_OPTIONS},
}  # fmt: skip
_REFUSED: Final[Mapping[str, Mapping[str, str]]] = {
    "chat": {},
    "generate": {
        "template": "a model's template comes with its artifact; send raw: true and the whole prompt to use another one",
        "suffix": "no runtime here fills in the middle",
        "context": "a conversation is told again with each request; use /api/chat with its messages",
        "width": "models here write text",
    },
}
_RAW_REFUSED: Final[Mapping[str, str]] = {
    "system": "with raw: true the prompt goes to the model as it is; put it into the prompt",
    "images": "with raw: true the prompt goes to the model as it is, and images have no place in it",
}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_IMAGE_TYPES: Final = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"RIFF", "webp"), (b"GIF8", "gif"), (b"BM", "bmp"))


class _Function(msgspec.Struct, frozen=True):
    name: str = ""
    arguments: Any = None


class _Call(msgspec.Struct, frozen=True):
    function: _Function = _Function()


class _Message(msgspec.Struct, frozen=True):
    role: str
    content: str | None = None
    thinking: str | None = None
    images: tuple[str, ...] | None = None
    tool_calls: tuple[_Call, ...] | None = None
    tool_name: str | None = None


class _Understood(msgspec.Struct, frozen=True):
    model: str
    messages: tuple[_Message, ...] | None = None
    prompt: str | None = None
    system: str | None = None
    images: tuple[str, ...] | None = None
    raw: bool | None = None
    stream: bool | None = None
    format: Any = None
    options: dict[str, msgspec.Raw] | None = None
    think: bool | str | None = None
    tools: Any = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    keep_alive: float | str | None = None


class _AskedEmbed(msgspec.Struct, frozen=True):
    model: str
    dimensions: int | None = None
    truncate: bool | None = None
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asked for.

    Attributes:
        request: The question; None when the client only wants the model to be loaded, or unloaded.
        keep_seconds: How long the model should stay loaded after it; None for the deployment's own time, 0 unloads.
    """

    model: str
    request: Request | None
    keep_seconds: float | None


def parse_asked(kind: Question, body: bytes) -> Asked:
    """Read the body of `/api/chat` or `/api/generate`.

    Raises:
        BadRequest: It is not a request, or holds a field that cannot be honoured; `details["param"]` names it.
    """
    fields, asked = read_body(body, _Understood)
    refuse(fields, _REFUSED[kind])
    keep = keep_seconds(asked.keep_alive)
    if kind == "chat":
        question = bool(asked.messages)
        passed: dict[str, Any] = {"messages": _messages(asked.messages or ()), "tools": asked.tools}
    else:
        question = bool(asked.prompt or asked.images)
        if asked.raw:
            refuse(fields, _RAW_REFUSED)
            passed = {"prompt": asked.prompt, "raw": True}  # a worker whose runtime wraps all the same names it
        else:
            system = [_Message(role="system", content=asked.system)] if asked.system else []
            passed = {"messages": _messages((*system, _Message(role="user", content=asked.prompt or "", images=asked.images)))}
    if not question:
        return Asked(model=asked.model, request=None, keep_seconds=keep)
    limit, ignored = _take_options(asked.options or {}, passed)
    if "messages" in passed:
        passed["response_format"] = _response_format(asked.format)
        passed |= _thinking(asked.think)
        if asked.logprobs:
            passed |= {"logprobs": True, "top_logprobs": asked.top_logprobs}
    else:
        ignored += [name for name in ("format", "think", "logprobs") if getattr(asked, name)]
    request = Request(
        kind="chat" if "messages" in passed else "completion",
        model=asked.model,
        stream=asked.stream is not False,
        include_usage=True,
        max_tokens=limit,
        passed={name: msgspec.Raw(msgspec.json.encode(value)) for name, value in passed.items() if value is not None},
        ignored=tuple(ignored),
        spelled=_SPELLED,
    )
    return Asked(model=asked.model, request=request, keep_seconds=keep)


def _take_options(options: Mapping[str, msgspec.Raw], passed: dict[str, Any]) -> tuple[int | None, list[str]]:
    """Put what workers know of `options` into `passed`; return the limit of output tokens and the names of what nothing honours."""
    limit: int | None = None
    ignored = []
    for name, value in options.items():
        if bytes(value) == b"null":
            continue
        if name == "num_predict":
            try:
                limit = msgspec.json.decode(value, type=int)
            except msgspec.MsgspecError as error:
                raise BadRequest(f"options.num_predict: {error}", code="invalid_value", param="options.num_predict") from error
            limit = None if limit in (-1, -2) else check_limit("options.num_predict", limit)  # as long as the context lasts
        elif name in _PASSED_OPTIONS:
            passed[name] = value
        else:
            ignored.append(f"options.{name}")
    return limit, ignored


def _response_format(wanted: Any) -> dict[str, Any] | None:
    if wanted in (None, ""):
        return None
    if wanted == "json":
        return {"type": "json_object"}
    if isinstance(wanted, dict):
        return {"type": "json_schema", "json_schema": {"name": "format", "schema": wanted}}
    raise BadRequest(f"format is {str(wanted)[:64]!r}; json and a JSON schema are served", code="invalid_value", param="format")


def _thinking(think: bool | str | None) -> dict[str, Any]:
    if think is None:
        return {}
    if isinstance(think, bool):
        return {"chat_template_kwargs": {"enable_thinking": think}}
    if think not in ("low", "medium", "high"):
        raise BadRequest(f"think is {think[:32]!r}; true, false, low, medium and high are served", code="invalid_value", param="think")
    return {"reasoning_effort": think, "chat_template_kwargs": {"enable_thinking": True}}


def _messages(messages: tuple[_Message, ...]) -> list[dict[str, Any]]:
    """Return the messages as OpenAI writes them; each answer of a tool gets the id of the oldest call of that tool that has none yet."""
    written: list[dict[str, Any]] = []
    waiting: list[tuple[str, str]] = []  # name and id of calls without an answer
    for message in messages:
        one: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.images:
            text = [{"type": "text", "text": message.content}] if message.content else []
            one["content"] = text + [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in message.images]
        if message.thinking:
            one["reasoning_content"] = message.thinking
        if message.tool_calls:
            one["tool_calls"] = []
            for call in message.tool_calls:
                function, call_id = call.function, f"call_{len(written)}_{len(one['tool_calls'])}"
                arguments = (
                    function.arguments if isinstance(function.arguments, str) else msgspec.json.encode(function.arguments or {}).decode()
                )
                one["tool_calls"].append({"id": call_id, "type": "function", "function": {"name": function.name, "arguments": arguments}})
                waiting.append((function.name, call_id))
        if message.role == "tool" and waiting:
            answered = next((call for call in waiting if call[0] == message.tool_name), waiting[0])
            waiting.remove(answered)
            one["tool_call_id"] = answered[1]
        written.append(one)
    return written


def _data_url(image: str) -> str:
    """Return a base64 image as a data: URL of its real type.

    Raises:
        BadRequest: It is no base64, or no image of a known type.
    """
    try:
        head = base64.b64decode(image[:64], validate=True)
    except binascii.Error as error:
        raise BadRequest(f"images: not base64: {error}", code="invalid_value", param="images") from error
    kind = next((kind for magic, kind in _IMAGE_TYPES if head.startswith(magic)), "")
    if not kind:
        raise BadRequest(f"images: begins with {head[:4]!r}; PNG, JPEG, WebP, GIF and BMP are known", code="invalid_value", param="images")
    return f"data:image/{kind};base64,{image}"


def keep_seconds(value: float | str | None) -> float | None:
    """Return `keep_alive` in seconds: a number of seconds or a duration (`5m`, `1h30m`).

    Negative ones are for ever (infinity); None is the deployment's own time.

    Raises:
        BadRequest: It is neither.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        text = value.strip()
        sign = -1.0 if text.startswith("-") else 1.0
        bare = text.lstrip("+-")
        if re.fullmatch(r"\d+(\.\d+)?", bare):
            value = sign * float(bare)
        elif bare and _DURATION.sub("", bare) == "":
            value = sign * sum(float(amount) * _UNITS[unit] for amount, unit in _DURATION.findall(bare))
        else:
            raise BadRequest(
                f"keep_alive is {value[:32]!r}; a number of seconds or a duration like 5m is served",
                code="invalid_value",
                param="keep_alive",
            )
    return math.inf if value < 0 or value > KEEP_SECONDS_MAX else float(value)


def parse_embed(body: bytes, field: Literal["input", "prompt"]) -> tuple[EmbeddingRequest, float | None]:
    """Read the body of `/api/embed` (`input`) or `/api/embeddings` (`prompt`); return it with the time to stay loaded.

    Raises:
        BadRequest: It is not such a request.
    """
    fields, asked = read_body(body, _AskedEmbed)
    if field not in fields:
        raise BadRequest(f"request body has no field {field}", code="missing_required_parameter", param=field)
    if asked.dimensions is not None and asked.dimensions < 1:
        raise BadRequest(f"dimensions is {asked.dimensions}; at least 1 is needed", code="invalid_value", param="dimensions")
    if field == "prompt" and not bytes(fields[field]).startswith(b'"'):
        raise BadRequest("prompt must be one text; /api/embed takes several", code="invalid_value", param="prompt")
    ignored = [f"options.{name}" for name in asked.options or {}] + (["truncate"] if asked.truncate else [])
    request = EmbeddingRequest(
        model=asked.model, inputs=split_inputs(fields[field], field), dimensions=asked.dimensions, ignored=tuple(ignored)
    )
    return request, keep_seconds(asked.keep_alive)


def embedded_body(request: EmbeddingRequest, vectors: tuple[bytes, ...], timing: Timing, *, one: bool) -> bytes:
    """Return the answer of `/api/embed`, or with `one` that of `/api/embeddings`; vectors are little-endian float32."""
    import array  # noqa: PLC0415 (only boards that serve embeddings need it)

    lists = [array.array("f", vector).tolist() for vector in vectors]
    if one:
        return msgspec.json.encode({"embedding": lists[0]})
    return msgspec.json.encode(
        {
            "model": request.model,
            "embeddings": lists,
            "total_duration": _nanoseconds(timing.total_seconds),
            "load_duration": _nanoseconds(timing.load_seconds),
            "prompt_eval_count": timing.prompt_tokens,
        }
    )


def rfc3339(moment: datetime) -> str:
    """Return a time as Ollama's clients read it."""
    return moment.isoformat().replace("+00:00", "Z")


class OllamaAnswer:
    """An answer as Ollama's clients read it: a value per line, or one value at the end."""

    stream_type = NDJSON

    def __init__(self, request: Request, asked: Question, now: Callable[[], datetime]) -> None:
        self.whole: Final = not request.stream
        self._model: Final = request.model
        self._chat: Final = asked == "chat"
        self._now: Final = now
        self._text = ""
        self._thinking = ""
        self._logprobs: Final[list[dict[str, Any]]] = []
        self._calls: Final[dict[int, dict[str, str]]] = {}
        self._reason = "stop"

    def add(self, _data: bytes, event: Event) -> bytes:
        """Return the line of this event; nothing when the answer is sent whole."""
        text = thinking = ""
        logprobs: list[dict[str, Any]] = []
        for choice in event.choices:
            text += choice.text or choice.delta.content or ""
            thinking += choice.delta.reasoning_content or ""
            logprobs += [_logprob(one) for one in (choice.logprobs.content if choice.logprobs else None) or ()]
            for piece in choice.delta.tool_calls or ():
                call = self._calls.setdefault(piece.index, {"name": "", "arguments": ""})
                if piece.function:
                    call["name"] += piece.function.name or ""
                    call["arguments"] += piece.function.arguments or ""
        self._reason = "length" if event.finish_reason == "length" else self._reason
        if self.whole:
            self._text += text
            self._thinking += thinking
            self._logprobs.extend(logprobs)
            return b""
        return self._line(self._said(text, thinking, logprobs), done=False) if text or thinking or logprobs else b""

    def heartbeat(self, _done: int, _total: int) -> bytes:
        """Return nothing: a line is always a part of the answer."""
        return b""

    def ending(self, timing: Timing) -> bytes:
        """Return the last line with what was measured; with tool calls after a line of their own, whole as Ollama's clients expect them."""
        calls = [
            {"function": {"name": call["name"], "arguments": _arguments(call["arguments"])}} for _, call in sorted(self._calls.items())
        ]
        measured = {
            "done_reason": self._reason,
            "total_duration": _nanoseconds(timing.total_seconds),
            "load_duration": _nanoseconds(timing.load_seconds),
            "prompt_eval_count": timing.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(timing.prefill_seconds),
            "eval_count": timing.output_tokens,
            "eval_duration": _nanoseconds(timing.decode_seconds),
        }
        known = {name: value for name, value in measured.items() if value is not None}
        if self.whole:
            return self._line({**self._said(self._text, self._thinking, self._logprobs, calls), **known}, done=True)
        before = self._line(self._said("", "", [], calls), done=False) if calls else b""
        return before + self._line({**self._said("", "", []), **known}, done=True)

    def _said(self, text: str, thinking: str, logprobs: list[dict[str, Any]], calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        thought = {"thinking": thinking} if thinking else {}
        beside = {"logprobs": logprobs} if logprobs else {}
        if not self._chat:
            return {"response": text, **thought, **beside}
        return {"message": {"role": "assistant", "content": text, **thought, **({"tool_calls": calls} if calls else {})}, **beside}

    def _line(self, fields: dict[str, Any], *, done: bool) -> bytes:
        return msgspec.json.encode({"model": self._model, "created_at": rfc3339(self._now()), **fields, "done": done}) + b"\n"


def _logprob(one: TokenLogprob) -> dict[str, Any]:
    rivals = [{"token": rival.token, "logprob": rival.logprob} for rival in one.top_logprobs]
    return {"token": one.token, "logprob": one.logprob, **({"top_logprobs": rivals} if rivals else {})}


def _arguments(text: str) -> Any:
    """Return a call's arguments as an object; what is no JSON is handed on as it was written, under the name `arguments`."""
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except msgspec.MsgspecError:
        return {"arguments": text}


def _nanoseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * NANOSECONDS)


class Ollama:
    """Ollama's errors; implements `Dialect`."""

    def error_body(self, error: FleetError, request_id: str) -> bytes:
        """Return an error as the whole answer."""
        estimates = {name: value for name, value in error.details.items() if name.endswith(("_seconds", "_tokens"))}
        beside = {"code": error.details.get("code"), "request_id": request_id, **estimates}
        return msgspec.json.encode({"error": error.message, **{name: value for name, value in beside.items() if value}})

    def error_event(self, error: FleetError, request_id: str) -> bytes:
        """Return an error as the last line of a stream."""
        return self.error_body(error, request_id) + b"\n"
