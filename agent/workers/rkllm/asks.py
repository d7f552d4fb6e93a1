"""Request bodies as values: what the agent may ask of a worker on the NPU, and what of it this runtime cannot do.

In: JSON. Out: `Ask`, whose fields are checked as far as that needs no model. Called by `http.py`. Fields are OpenAI's and the agent's own
(`tenant`, `adapter`, `prompt_embeds`, `image_embeds`, `return_progress`). What the interface of the library has no place for is either
refused with a sentence, because an answer without it would be another answer, or named in `ignored`.
Source: https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Set as AbstractSet
from typing import Any, Final, TypeVar

import msgspec

from agent.workers.rkllm.values import Embedding, Sampling
from rkfleet.errors import BadRequest

__all__ = ["Ask", "EmbeddingsAsk", "floats_of", "parse"]

STOPS_MAX: Final = 16  # OpenAI takes 4, llama.cpp's clients send more.
STOP_CHARACTERS_MAX: Final = 256
INPUTS_MAX: Final = 512  # Of one embeddings request; OpenAI takes 2,048, a board works on them one after another.
TOP_K_MAX: Final = 1_000_000  # Beyond every vocabulary; the interface has 32 bits.
FLOAT_BYTES: Final = 4

_SAMPLING: Final = (
    "temperature", "top_p", "top_k", "repeat_penalty", "frequency_penalty", "presence_penalty", "mirostat", "mirostat_tau", "mirostat_eta",
)  # fmt: skip
_THINKING: Final = "enable_thinking"  # As chat templates call it.
_NEVER: Final = ("seed", "logit_bias", "min_p")  # No generation of the interface has them.

T = TypeVar("T")


class Embeds(msgspec.Struct, frozen=True):
    """Embeddings as clients send them: base64 of float32, little endian, and how many tokens they are."""

    data: str
    tokens: int


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request for text or for logits."""

    messages: tuple[dict[str, Any], ...] = ()
    prompt: Any = None
    raw: bool | None = None
    prompt_embeds: Embeds | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repeat_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    min_p: float | None = None
    seed: int | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | tuple[str, ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    n: int | None = None
    adapter: str | None = None
    tenant: str | None = None
    prompt_cache_key: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    think: bool | str | None = None

    def __post_init__(self) -> None:
        """Refuse what no run could honour.

        Raises:
            BadRequest: A field has a value outside its limits; `details["param"]` names it.
        """
        _within("temperature", self.temperature, 0, 2)
        _within("top_p", self.top_p, 0, 1)
        _within("top_k", self.top_k, -1, TOP_K_MAX)
        _within("mirostat", self.mirostat, 0, 2)
        _within("n", self.n, 1, 1)
        _within("max_tokens", self.max_tokens, 1, None)
        _within("max_completion_tokens", self.max_completion_tokens, 1, None)
        if len(self.stops) > STOPS_MAX or any(len(word) > STOP_CHARACTERS_MAX for word in self.stops):
            raise BadRequest(
                f"stop has {len(self.stops)} words; at most {STOPS_MAX} of {STOP_CHARACTERS_MAX} characters are taken", param="stop"
            )
        if self.response_format is not None and self.response_format.get("type", "text") != "text":
            raise BadRequest(
                f"response_format (format of Ollama's API) is {str(self.response_format.get('type'))[:32]!r}: the rkllm runtime cannot "
                "constrain answers; runtime llamacpp can",
                param="response_format",
            )
        for name in ("top_logprobs", "logprobs"):
            if getattr(self, name):
                raise BadRequest(f"{name}: the rkllm runtime does not give them with its answers; runtime llamacpp does", param=name)

    @property
    def stops(self) -> tuple[str, ...]:
        """Return the stop words, without empty ones."""
        words = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        return tuple(word for word in words if word)

    @property
    def tokens_max(self) -> int | None:
        """Return the client's limit, or None."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def thinking(self) -> bool:
        """Return whether the model may think first; every way to say no counts."""
        said = (self.chat_template_kwargs or {}).get(_THINKING)
        return not (said is False or self.think is False or self.reasoning_effort == "none")

    def template_variables(self) -> dict[str, Any]:
        """Return what a chat template may read besides messages, tools and whether to think."""
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        return {**effort, **{name: value for name, value in (self.chat_template_kwargs or {}).items() if name != _THINKING}}

    def template_fields(self, *, but_thinking: bool) -> tuple[str, ...]:
        """Return the fields that only a chat template reads; `but_thinking` leaves out those that say no more than whether to think."""
        fields: list[str] = []
        if self.chat_template_kwargs and not (but_thinking and self.chat_template_kwargs.keys() == {_THINKING}):
            fields.append("chat_template_kwargs")
        if self.reasoning_effort is not None and not (but_thinking and self.reasoning_effort == "none"):
            fields.append("reasoning_effort")
        if self.think is not None and not but_thinking:
            fields.append("think")
        return tuple(fields)

    @property
    def functions(self) -> tuple[dict[str, Any], ...]:
        """Return the functions that the model is told of."""
        return () if self.tool_choice == "none" else self.tools or ()

    def sampling(self) -> Sampling | None:
        """Return what is asked for, or None for nothing."""
        wanted = {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}
        if wanted.get("temperature") == 0:  # greedy; the library divides by it
            del wanted["temperature"]
            wanted["top_k"] = 1
        if wanted.get("top_k", 1) <= 0:  # other runtimes' word for no limit
            del wanted["top_k"]
        return Sampling(**wanted) if wanted else None

    def ignored(self, supports: AbstractSet[str]) -> tuple[str, ...]:
        """Return the fields that have no effect with a library that supports these words."""
        names = [name for name in _NEVER if getattr(self, name) is not None]
        if "sampling" not in supports:
            names += [name for name in _SAMPLING if getattr(self, name) is not None]
        if self.functions and self.tool_choice not in (None, "auto"):
            names.append("tool_choice")
        if self.functions and self.parallel_tool_calls is False:  # how many calls a model makes is its own choice
            names.append("parallel_tool_calls")
        return tuple(sorted(names))


class EmbeddingsAsk(msgspec.Struct, frozen=True, kw_only=True):
    """A request for embeddings."""

    input: Any
    encoding_format: str = "float"
    dimensions: int | None = None
    adapter: str | None = None
    tenant: str | None = None

    def __post_init__(self) -> None:
        """Refuse what the model cannot give.

        Raises:
            BadRequest: A field has a value outside its limits; `details["param"]` names it.
        """
        if self.encoding_format not in ("float", "base64"):
            raise BadRequest(f"encoding_format is {self.encoding_format[:32]!r}; float and base64 are served", param="encoding_format")
        if self.dimensions is not None:
            raise BadRequest("dimensions: the length of an embedding is that of the model's hidden layer", param="dimensions")

    def inputs(self) -> list[str | list[int]]:
        """Return each text, or list of token ids.

        Raises:
            BadRequest: It is neither, or there are too many.
        """
        given = self.input
        if isinstance(given, str) or _is_tokens(given):
            given = [given]
        if not isinstance(given, list) or not given or not all((isinstance(one, str) and one) or _is_tokens(one) for one in given):
            raise BadRequest("input must be a text, a list of texts, or lists of token ids, none of them empty", param="input")
        if len(given) > INPUTS_MAX:
            raise BadRequest(f"input has {len(given)} texts, at most {INPUTS_MAX} are taken", param="input")
        return given


def parse(body: bytes, kind: type[T]) -> T:
    """Read a body.

    Raises:
        BadRequest: It is not such a request.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadRequest(f"request body: {error}") from error


def floats_of(data: str, tokens: int, what: str) -> Embedding:
    """Return embeddings that came as base64.

    Raises:
        BadRequest: It is no base64, or no whole number of floats for each token.
    """
    try:
        floats = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"{what}.data is not base64: {error}", param=what) from error
    if tokens < 1 or not floats or len(floats) % (tokens * FLOAT_BYTES):
        raise BadRequest(f"{what} has {len(floats)} bytes, no whole number of float32 for each of {tokens} tokens", param=what)
    return Embedding(floats, tokens)


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


def _within(name: str, value: float | None, low: float, high: float | None) -> None:
    if value is not None and (value < low or (high is not None and value > high)):
        raise BadRequest(f"{name} is {value:g}; {f'at least {low:g}' if high is None else f'{low:g} to {high:g}'} is taken", param=name)
