"""How far a quantized network is from the same network in full precision, on one text.

In: a network in float32 and windows of a text (`Reference`), then one network after another. Out: a `Comparison` for each. All see the
same tokens; logits are compared where a token is predicted, some rows at a time, so that memory does not grow with text times vocabulary.

Measures: divergence is Kullback and Leibler's of the quantized distribution from that of full precision, in nats (arXiv:2407.09141 on why
it tells more than perplexity); agreement is how often both would choose the same token; cosine that of the two logit vectors, and of the
last hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from toolkit.checkpoint.base import Array
from toolkit.evaluate.perplexity import ROWS, Perplexity, Progress, log_softmax, perplexity_of, run_window
from toolkit.evaluate.text import Window
from toolkit.simulate.network import Network

__all__ = ["Comparison", "Reference"]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One network against full precision.

    Attributes:
        perplexity_change: (perplexity / that of full precision) - 1; 0.01 is one percent worse.
        divergence: Mean over predicted tokens, in nats; divergence_99 its 99th percentile.
        agreement: Share of tokens where both have the same most likely token.
        cosine_logits: Mean of cosines between logit vectors, each less its mean, which no softmax sees.
        cosine_hidden: Mean of cosines between last hidden states.
    """

    perplexity: Perplexity
    perplexity_change: float
    divergence: float
    divergence_99: float
    agreement: float
    cosine_logits: float
    cosine_hidden: float


class Reference:
    """What full precision says about a text: run once, then held against one network after another.

    Hidden states are kept, hidden size times 4 bytes for each token (24 MB for ten thousand tokens of SmolLM2), and of the network its
    output layer is used again.

    Attributes:
        perplexity: In full precision.
    """

    def __init__(self, network: Network, found: Sequence[Window], progress: Progress | None = None) -> None:
        self._network: Final = network
        self._windows: Final = found
        self._hidden: Final[list[Array]] = []
        logs: list[Array] = []
        for done, window in enumerate(found, 1):
            hidden = run_window(network, window)
            self._hidden.append(hidden)
            for expected, part in _parts(window):
                logs.append(_chosen(log_softmax(network.logits(hidden[part])), expected))
            if progress is not None:
                progress("full precision", done, len(found))
        self.perplexity: Final = perplexity_of(logs)

    def against(self, network: Network, progress: Progress | None = None) -> Comparison:
        """Run another network over the same text."""
        logs: list[Array] = []
        divergences: list[Array] = []
        agreed: list[Array] = []
        cosines: list[Array] = []
        cosines_hidden: list[Array] = []
        for done, (window, theirs) in enumerate(zip(self._windows, self._hidden, strict=True), 1):
            hidden = run_window(network, window)
            cosines_hidden.append(_cosine(theirs, hidden))
            for expected, part in _parts(window):
                full, own = self._network.logits(theirs[part]), network.logits(hidden[part])
                full -= full.mean(axis=-1, keepdims=True)
                own -= own.mean(axis=-1, keepdims=True)
                cosines.append(_cosine(full, own))
                agreed.append((full.argmax(axis=-1) == own.argmax(axis=-1)).astype(np.float32))
                full, own = log_softmax(full), log_softmax(own)
                divergences.append(np.einsum("ij,ij->i", np.exp(full), full - own))
                logs.append(_chosen(own, expected))
            if progress is not None:
                progress("comparing", done, len(self._windows))
        perplexity = perplexity_of(logs)
        every = np.maximum(np.concatenate(divergences), 0)  # Rounding may leave -1e-7 of a zero.
        return Comparison(
            perplexity=perplexity,
            perplexity_change=perplexity.value / self.perplexity.value - 1,
            divergence=float(every.mean()),
            divergence_99=float(np.percentile(every, 99)),
            agreement=float(np.concatenate(agreed).mean()),
            cosine_logits=float(np.concatenate(cosines).mean()),
            cosine_hidden=float(np.concatenate(cosines_hidden).mean()),
        )


def _parts(window: Window) -> Iterator[tuple[NDArray[np.int64], slice]]:
    """Return expected tokens and where they stand, some rows at a time."""
    expected = np.array(window.tokens[window.first :], dtype=np.int64)
    for at in range(0, len(expected), ROWS):
        yield expected[at : at + ROWS], slice(at, at + ROWS)


def _chosen(rows: Array, expected: NDArray[np.int64]) -> Array:
    return rows[np.arange(len(expected)), expected]


def _cosine(left: Array, right: Array) -> Array:
    """Return the cosines of rows; 1 where both are zero."""
    product = np.einsum("ij,ij->i", left, right)
    size = np.sqrt(np.einsum("ij,ij->i", left, left) * np.einsum("ij,ij->i", right, right))
    return np.where(size > 0, product / np.maximum(size, np.float32(1e-30)), np.float32(1)).astype(np.float32)
