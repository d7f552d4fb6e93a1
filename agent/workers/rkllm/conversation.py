"""What the KV cache may be used for: the one place that decides whether a request goes on where another one ended. Pure.

In: what the cache holds (`Held`) and what a request wants (`Wanted`). Out: how much of the prompt is in the cache already, and what the
cache holds after the run. Called by `runner.py`, which clears the cache whenever the answer is nothing.

The rule. A request goes on with the cache only if everything that shaped it is equal (tenant, adapter, template, thinking, tools, images,
kind of input) and the cached text is a true prefix of the prompt. Everything else begins empty. What is not known for certain after a run
(an abort, an error, a shifted window, a count that does not add up) is not held.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal

import msgspec

__all__ = ["End", "Held", "Identity", "Wanted", "held_after", "name_of", "reusable_bytes"]

# stop: the model ended its answer. length: it was ended at a limit. cut: a stop word came. abort: nobody wanted the rest.
End = Literal["stop", "length", "cut", "abort"]

NAME_CHARACTERS: Final = 40  # of a hex SHA-256: 160 bits, as git has found enough for names


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What must be equal for two prompts to share a cache.

    Attributes:
        tenant: Opaque name of whoever asks, given by the agent.
        kind: What `Wanted.text` is: rendered text, token ids, messages that the runtime wraps, or word embeddings.
        adapter: LoRA that computes it.
        template: What wraps messages; a digest.
        thinking: Whether the model may think before it answers.
        tools: Functions that the model was told of; a digest.
        images: Digests of the images in the prompt, in order.
    """

    tenant: str
    kind: Literal["text", "tokens", "turns", "embedding"] = "text"
    adapter: str = ""
    template: str = ""
    thinking: bool = True
    tools: str = ""
    images: tuple[str, ...] = ()


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A whole prompt.

    Attributes:
        text: The prompt as bytes, in a form in which equal bytes mean equal prompts.
        cuts: Offsets at which it can be continued; None is anywhere.
    """

    identity: Identity
    text: bytes
    cuts: frozenset[int] | None = None


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What the cache holds: prompt and answer of the last run, and how many tokens that is."""

    identity: Identity
    text: bytes
    tokens: int


def reusable_bytes(held: Held | None, wanted: Wanted) -> int:
    """Return how many bytes of the prompt the cache holds: all that it holds, or 0, and then it must be cleared."""
    if held is None or held.identity != wanted.identity or not wanted.text.startswith(held.text):
        return 0
    size = len(held.text)
    if size == len(wanted.text) or (wanted.cuts is not None and size not in wanted.cuts):
        return 0  # a run needs something to run
    if wanted.identity.kind == "text" and wanted.text[size] & 0xC0 == 0x80:
        return 0  # the answer ended within a character: the rest of the prompt would not begin with a whole one
    return size


def held_after(wanted: Wanted, answer: bytes, *, end: End, tokens: int, tokens_counted: int | None, context_tokens: int) -> Held | None:
    """Return what the cache holds after a run, or None if that is not certain.

    Args:
        wanted: The prompt that was run.
        answer: What the model said, in the form of `Wanted.text`.
        end: How the run ended.
        tokens: Prompt and answer, as this side counts.
        tokens_counted: The same as the library counts; None where it cannot.
        context_tokens: Size of the window; beyond it the oldest tokens are gone.
    """
    if end != "stop" or tokens >= context_tokens or wanted.identity.kind == "embedding":
        return None
    # The last token of an answer may stand in the cache or be left for the next run: both are the same text.
    if tokens_counted is not None and tokens_counted not in {tokens, tokens - 1}:
        return None
    return Held(identity=wanted.identity, text=wanted.text + answer, tokens=tokens if tokens_counted is None else tokens_counted)


def name_of(identity: Identity, *more: str) -> str:
    """Return a name for files that belong to this identity and nobody else."""
    return hashlib.sha256(msgspec.json.encode((identity, more))).hexdigest()[:NAME_CHARACTERS]
