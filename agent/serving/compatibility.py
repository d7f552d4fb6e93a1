"""What each field of a request does, by dialect and runtime: the table of `docs/reference/serving-api.md`, as data.

In: nothing. Out: `FIELDS`. Read by `docs/generate.py` and by the test that sends every example through the dialects; the agent itself does
not import it. A field that a dialect reads and that is not here fails that test.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

__all__ = ["FIELDS", "MEANINGS", "Effect", "Field"]

Effect = Literal["yes", "board", "refused", "named"]

MEANINGS: Final[dict[Effect, str]] = {
    "yes": "the runtime honours it",
    "board": "the agent honours it",
    "refused": "400, and the error names the field",
    "named": "no effect, and the header `x-rkfleet-ignored` names it",
}


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One field.

    Attributes:
        path: Path of the request, which says the dialect.
        name: Of the field; a dot stands before a field within.
        example: A value with the effect.
        llamacpp: Effect with runtime llamacpp.
        rkllm: Effect with runtime rkllm.
        note: What else there is to know.
    """

    path: str
    name: str
    example: Any
    llamacpp: Effect
    rkllm: Effect
    note: str = ""


def _fields(path: str, *rows: tuple[str, Any, Effect, Effect, str]) -> tuple[Field, ...]:
    return tuple(
        Field(path=path, name=name, example=example, llamacpp=llamacpp, rkllm=rkllm, note=note)
        for name, example, llamacpp, rkllm, note in rows
    )


_TOOL: Final = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
_SAMPLED: Final = "rkllm: from runtime 1.3.0 on, else named"
_TOOLS: Final = (
    "llamacpp: refused where the chat template has no place for them; rkllm: before 1.2.1 refused without a template in the artifact"
)
_TEMPLATE: Final = "as far as the chat template knows it; rkllm: named without a template in the artifact"
_WRAPPED: Final = "rkllm: without a template in the artifact releases from 1.2.0 on wrap a text as a message"
_THINK: Final = "rkllm: without a template in the artifact whether to think is taken from 1.2.1 on, all else is named"

_SAMPLING: Final[tuple[tuple[str, Any, Effect, Effect, str], ...]] = (
    ("temperature", 0.5, "yes", "yes", _SAMPLED),
    ("top_p", 0.8, "yes", "yes", _SAMPLED),
    ("top_k", 20, "yes", "yes", _SAMPLED),
    ("min_p", 0.1, "yes", "named", ""),
    ("seed", 7, "yes", "named", ""),
    ("stop", ["x"], "yes", "yes", "a text or a list"),
    ("presence_penalty", 0.1, "yes", "yes", _SAMPLED),
    ("frequency_penalty", 0.1, "yes", "yes", _SAMPLED),
    ("repeat_penalty", 1.2, "yes", "yes", _SAMPLED),
    ("logit_bias", {"1": 1}, "yes", "named", ""),
)
_COMMON: Final[tuple[tuple[str, Any, Effect, Effect, str], ...]] = (
    ("model", "m", "board", "board", "`NAME`, `NAME:latest` or `NAME:ADAPTER`"),
    ("stream", True, "board", "board", "false by default"),
    ("stream_options", {"include_usage": True}, "board", "board", ""),
    ("max_tokens", 9, "board", "board", "never above `serving.maxOutputTokens`"),
    ("max_completion_tokens", 9, "board", "board", "before `max_tokens`"),
    ("prompt_cache_key", "talk", "board", "board", "computed prompts are used again within it only"),
    ("n", 2, "refused", "refused", "1 is served"),
    ("best_of", 2, "refused", "refused", "1 is served"),
)

FIELDS: Final[tuple[Field, ...]] = (
    *_fields(
        "/v1/chat/completions",
        ("messages", [{"role": "user", "content": "hi"}], "yes", "yes", "images: `image_url` with a data: URL, where there is an encoder"),
        *_COMMON,
        *_SAMPLING,
        ("tools", [_TOOL], "yes", "yes", _TOOLS),
        ("tool_choice", "none", "yes", "yes", "rkllm: `auto` and `none`; others are named"),
        ("parallel_tool_calls", False, "yes", "named", "with `tools`"),
        ("response_format", {"type": "json_object"}, "yes", "refused", "json_object and json_schema"),
        ("logprobs", True, "yes", "refused", ""),
        ("top_logprobs", 2, "yes", "refused", "with `logprobs`"),
        ("reasoning_effort", "low", "yes", "yes", _TEMPLATE),
        ("chat_template_kwargs", {"enable_thinking": False}, "yes", "yes", f"as far as the chat template knows it; {_THINK}"),
        ("audio", {"voice": "x"}, "refused", "refused", ""),
        ("functions", [{"name": "f"}], "refused", "refused", "`tools` took its place"),
    ),
    *_fields(
        "/v1/completions",
        ("prompt", "hi", "yes", "yes", f"a text, or one list of token ids; {_WRAPPED}"),
        *_COMMON,
        *_SAMPLING,
        ("logprobs", 1, "refused", "refused", "chat completions have them"),
        ("echo", True, "refused", "refused", ""),
        ("suffix", "x", "refused", "refused", ""),
    ),
    *_fields(
        "/v1/embeddings",
        ("model", "m", "board", "board", ""),
        ("input", ["a", "b"], "yes", "yes", "a text, a list of texts, a list of token ids, a list of such lists; computed one by one"),
        ("encoding_format", "base64", "board", "board", "float or base64 (little-endian float32)"),
        ("dimensions", 8, "board", "board", "the first ones, scaled to length 1"),
    ),
    *_fields(
        "/api/chat",
        ("model", "m", "board", "board", "`NAME`, `NAME:latest` or `NAME:ADAPTER`"),
        ("messages", [{"role": "user", "content": "hi"}], "yes", "yes", "empty: loads the model; `images` where there is an encoder"),
        ("tools", [_TOOL], "yes", "yes", _TOOLS),
    ),
    *_fields(
        "/api/generate",
        ("model", "m", "board", "board", "`NAME`, `NAME:latest` or `NAME:ADAPTER`"),
        ("prompt", "hi", "yes", "yes", "empty: loads the model"),
        ("system", "be kind", "yes", "yes", "not with `raw`"),
        ("images", ["iVBORw0KGgo="], "yes", "yes", "where there is an encoder; not with `raw`"),
        ("raw", True, "board", "board", "the prompt goes to the model without a template; rkllm: named without a template in the artifact"),
        ("template", "x", "refused", "refused", "templates come with the artifact"),
        ("suffix", "x", "refused", "refused", ""),
        ("context", [1], "refused", "refused", "use `/api/chat`"),
        ("width", 9, "refused", "refused", "models here write text"),
    ),
    *(
        field
        for path in ("/api/chat", "/api/generate")
        for field in _fields(
            path,
            ("stream", False, "board", "board", "true by default"),
            ("format", "json", "yes", "refused", "json or a JSON schema"),
            ("think", False, "yes", "yes", f"true, false, low, medium, high; as far as the chat template knows it; {_THINK}"),
            ("logprobs", True, "yes", "refused", ""),
            ("top_logprobs", 2, "yes", "refused", "with `logprobs`"),
            ("keep_alive", "5m", "board", "board", "for models with `serving.load: OnDemand`; 0 unloads"),
            ("options.num_predict", 9, "board", "board", "-1 and -2: `serving.maxOutputTokens`"),
            *((f"options.{name}", *rest) for name, *rest in _SAMPLING if name != "logit_bias"),
            ("options.num_ctx", 4096, "named", "named", "the context is the deployment's: `serving.contextTokens`"),
            ("options.mirostat", 1, "named", "named", "as every other option"),
        )
    ),
    *_fields(
        "/api/embed",
        ("model", "m", "board", "board", ""),
        ("input", ["a", "b"], "yes", "yes", "a text or a list of texts"),
        ("dimensions", 8, "board", "board", "the first ones, scaled to length 1"),
        ("truncate", True, "named", "named", "a text beyond the context is refused"),
        ("options", {"num_ctx": 1}, "named", "named", ""),
        ("keep_alive", "5m", "board", "board", ""),
    ),
)
