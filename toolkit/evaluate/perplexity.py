"""Perplexity: how well a model foretells a text, as the exponential of the mean negative log-probability of its tokens.

In: a network and windows of a text (`toolkit.evaluate.text`). Out: `Perplexity`. Smaller is better; a tenth of a percent is noise of the
text, of which `standard_error` tells. Source of the definition: Jelinek and others, "Perplexity, a measure of the difficulty of speech
recognition tasks", 1977; which tokens count: `toolkit.evaluate.text`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec
import numpy as np

from rkfleet.errors import Invalid
from toolkit.checkpoint.base import Array
from toolkit.evaluate.text import Window
from toolkit.simulate.cache import KvCache
from toolkit.simulate.network import Network

__all__ = ["ROWS", "Perplexity", "Progress", "log_probabilities", "log_softmax", "measure", "perplexity_of", "run_window"]

ROWS: Final = 64  # Logits that are looked at together: 64 rows of a vocabulary of 150,000 take 38 MB.

MEAN_MAX: Final = 700.0  # Beyond it the exponential is no number; a model that guesses has the logarithm of its vocabulary, some 12.

Progress = Callable[[str, int, int], None]
"""Told what is done, how much of it is, and of how much."""


class Perplexity(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured.

    Attributes:
        tokens: Tokens that were predicted.
        mean: Mean negative log-probability of a token, natural logarithm.
        standard_error: Of the perplexity, by the spread of log-probabilities: how much another text of this kind would change it.
    """

    value: float
    tokens: int
    mean: float
    standard_error: float


def log_softmax(logits: Array) -> Array:
    """Return the logarithm of softmax over the last axis, in place."""
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logits


def run_window(network: Network, window: Window) -> Array:
    """Return the hidden states from which the window's tokens are predicted, (predicted, hidden)."""
    cache = KvCache(network.hyperparameters, len(window.tokens))
    hidden = network.hidden(network.embed(list(window.tokens)), cache)
    return hidden[window.first - 1 : -1]


def log_probabilities(network: Network, window: Window) -> Iterator[Array]:
    """Return the log-probabilities of the window's tokens, some rows at a time."""
    hidden = run_window(network, window)
    wanted = np.array(window.tokens[window.first :])
    for at in range(0, len(wanted), ROWS):
        rows = log_softmax(network.logits(hidden[at : at + ROWS]))
        yield rows[np.arange(rows.shape[0]), wanted[at : at + ROWS]]


def measure(network: Network, found: Sequence[Window], progress: Progress | None = None) -> Perplexity:
    """Run every window and return the perplexity over all of them."""
    logs: list[Array] = []
    for done, window in enumerate(found, 1):
        logs.extend(log_probabilities(network, window))
        if progress is not None:
            progress("perplexity", done, len(found))
    return perplexity_of(logs)


def perplexity_of(parts: Sequence[Array]) -> Perplexity:
    """Return the perplexity of log-probabilities, one or more, in pieces.

    Raises:
        Invalid: One is no number.
    """
    logs = np.concatenate(parts).astype(np.float64)
    if not np.isfinite(logs).all():
        raise Invalid("the model computes no numbers for this text: weights are spoiled, or too large for float32; try its original file")
    mean = -float(logs.mean())
    spread = float(logs.std(ddof=1)) if len(logs) > 1 else 0.0
    value = math.exp(min(mean, MEAN_MAX))
    return Perplexity(value=value, tokens=len(logs), mean=mean, standard_error=value * spread / math.sqrt(len(logs)))
