"""How many tokens a prompt has: guessed before it is run, counted after, by the best that each generation tells. Pure but for one memory.

In: work and what a run gave. Out: `Counts`. Called by `runner.py`. The library has no function that counts a text's tokens. From 1.2.1 it
says at the end of a run how many it has read; before, it prints that in a table. A guess decides how much room an answer has and how long a
prefill may be silent, so it learns from every count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from agent.workers.rkllm.output import counts_in
from agent.workers.rkllm.values import Perf
from agent.workers.rkllm.vision import ImageEmbedding
from agent.workers.rkllm.work import Work

__all__ = ["Counts", "Guess", "count"]

BYTES_PER_TOKEN: Final = 4.0  # English with the vocabularies of these models, until this model has been measured.
MEASURED_TOKENS_MIN: Final = 16  # A shorter prompt is mostly template.
LEARNING_WEIGHT: Final = 0.25  # Of each further prompt: one of another language or of base64 is not the measure of the next.
TOKEN_BYTES: Final = 4  # of a token id in `Wanted.text`


class Counts(msgspec.Struct, frozen=True):
    """Tokens of a prompt, how many of them were not computed, and whether the library said so."""

    prompt_tokens: int
    cached_tokens: int
    exact: bool


class Guess:
    """The length of a token in this model's vocabulary, as far as it is known."""

    def __init__(self) -> None:
        self._bytes_per_token = BYTES_PER_TOKEN
        self._learned = False

    def tokens(self, work: Work, images: Sequence[ImageEmbedding], reused: int) -> int:
        """Return about how many tokens the library has to read, of what follows the first `reused` bytes."""
        if work.tokens is not None:
            return work.tokens - reused // TOKEN_BYTES
        pictures = 0 if reused else sum(image.tokens for image in images)
        return pictures + max(1, round((len(work.wanted.text) - reused) / self._bytes_per_token))

    def learn(self, work: Work, images: Sequence[ImageEmbedding], prompt_tokens: int) -> None:
        """Take the length of a prompt in tokens into the measure for the next."""
        tokens = prompt_tokens - sum(image.tokens for image in images)
        if work.tokens is None and tokens >= MEASURED_TOKENS_MIN:
            seen, weight = len(work.wanted.text) / tokens, LEARNING_WEIGHT if self._learned else 1.0
            self._bytes_per_token += weight * (max(1.0, seen) - self._bytes_per_token)
            self._learned = True


def count(guessed: Counts, perf: Perf | None, lines: list[str], *, held_tokens: int | None, output_tokens: int, loaded: bool) -> Counts:
    """Return what a run has read.

    Args:
        guessed: What is known without the library; its cached tokens are those that the cache held.
        perf: The library's counters, where it has them and the run came to its end.
        lines: What was printed meanwhile: before 1.2.1 the table in it is all that there is.
        held_tokens: Tokens in the cache after the run, where the library can count them and the run ended by itself.
        output_tokens: Of the answer.
        loaded: A saved prompt was loaded, of unknown length: part of what was not computed.
    """
    table = counts_in(lines)
    prefilled = perf.prefill_tokens if perf is not None else table.prefill_tokens if table is not None else None
    if prefilled is None:
        return guessed
    if not loaded:
        return Counts(guessed.cached_tokens + prefilled, guessed.cached_tokens, exact=True)
    prompt_tokens = max(prefilled, guessed.prompt_tokens if held_tokens is None else held_tokens - output_tokens)
    return Counts(prompt_tokens, prompt_tokens - prefilled, exact=held_tokens is not None)
