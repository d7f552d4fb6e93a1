"""What a request becomes before it meets the library, and what the library makes of it, as values.

`prompts.py` makes `Work` of what clients ask, `runner.py` runs it and posts events, `answers.py` makes chunks of them. Apart, so that none
of the three needs to know the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from agent.workers.rkllm.conversation import End, Wanted
from agent.workers.rkllm.values import Input, Mode, Sampling, Tensor
from agent.workers.rkllm.vision import ImageEmbedding
from rkfleet.errors import FleetError

__all__ = ["Began", "Done", "Event", "Failed", "Functions", "Numbers", "Piece", "Work"]


class Functions(msgspec.Struct, frozen=True):
    """What the runtime's own template tells the model besides messages: a system prompt, and functions as JSON."""

    system: str
    tools: str


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One run.

    Attributes:
        compose: Makes the library's input of what is not in the cache yet: the offset in `wanted.text`, and the images as embeddings.
        answered: Brings an answer (its bytes and token ids) into the form of `wanted.text`.
        tokens: Length of the prompt where it is known, else None; images come on top.
        images: Files to encode, or embeddings that the client brought.
        tokens_max: Most tokens of the answer.
        functions: For the runtime's own template; None for none.
        cache_key: Under which to save and find the prompt; empty for neither.
        thinking_open: The prompt ends within a thought.
        callable: Names of functions that the answer may call; None if calls are plain text.
    """

    mode: Mode
    wanted: Wanted
    compose: Callable[[int, Sequence[ImageEmbedding]], Input]
    answered: Callable[[bytes, Sequence[int]], bytes]
    tokens: int | None = None
    images: tuple[bytes | ImageEmbedding, ...] = ()
    adapter: str = ""
    sampling: Sampling | None = None
    tokens_max: int = 1
    functions: Functions | None = None
    cache_key: str = ""
    thinking_open: bool = False
    callable: frozenset[str] | None = None


class Began(msgspec.Struct, frozen=True, gc=False):
    """The run has the NPU; `prompt_tokens` is an estimate unless the client sent tokens, `cached_tokens` of it are in the cache."""

    prompt_tokens: int
    cached_tokens: int


class Piece(msgspec.Struct, frozen=True, gc=False):
    """A token's text, which may end within a character."""

    text: bytes


class Numbers(msgspec.Struct, frozen=True, gc=False):
    """The last position of a hidden layer or of logits."""

    last: Tensor


class Done(msgspec.Struct, frozen=True, gc=False):
    """The run ended; nothing comes after it."""

    end: End
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


class Failed(msgspec.Struct, frozen=True, gc=False):
    """The run failed; nothing comes after it."""

    error: FleetError


Event = Began | Piece | Numbers | Done | Failed
