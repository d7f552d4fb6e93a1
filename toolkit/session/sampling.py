"""From logits to one token: the parameters of the RKLLM runtime, with the meaning that llama.cpp gives them.

In: logits of one position and the tokens before it. Out: a token id. `session.py` has one `Sampler` for each run; `Sampling` is what a user
asks for. Order, as in llama.cpp: penalties, then top_k, top_p, temperature, and a draw; with mirostat temperature comes first and
top_k and top_p are not looked at. The vendor publishes names and defaults, not formulas; where the two could differ, this is llama.cpp's.

Sources: RKLLM SDK user guide 1.3.0, RKLLMParam (names and defaults); nucleus, arXiv:1904.09751; repetition penalty, arXiv:1909.05858;
mirostat, arXiv:2007.14966, algorithms 1 and 2; frequency and presence penalties, https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from rkfleet.errors import Invalid
from toolkit.checkpoint.base import Array

__all__ = ["PENALTY_TOKENS", "Sampler", "Sampling"]

PENALTY_TOKENS: Final = 64  # Last tokens that penalties look at: llama.cpp's default of penalty_last_n; the vendor states none.
MIROSTAT_CANDIDATES: Final = 100  # Most probable tokens that the exponent is estimated of; the paper's m.
TEMPERATURE_MAX: Final = 2.0  # As OpenAI's API has it, and as a board's listener takes it.
REPEAT_PENALTY_MAX: Final = 10.0  # Values in use lie below 1.5; beyond 10 only tokens that were never said are left.
PENALTY_MAX: Final = 2.0  # Of frequency and presence, as OpenAI's API has it.
MIROSTAT_TAU_MAX: Final = 32.0  # Bits of surprise; a vocabulary of 2^32 could give no more.
SEED_MAX: Final = (1 << 63) - 1


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How a token is chosen; the defaults are those of rkllm_createDefaultParam.

    Attributes:
        temperature: Divides logits; 0 takes the most probable token.
        top_k: The most probable tokens that are left; 0 and -1 leave all.
        top_p: The smallest set of most probable tokens with this sum is left; 1 leaves all.
        repeat_penalty: Divides positive logits of the last tokens and multiplies negative ones; 1 for none.
        frequency_penalty: Taken off for each time that a token was among the last ones.
        presence_penalty: Taken off once.
        mirostat: 0 for none, else the paper's algorithm 1 or 2.
        mirostat_tau: Surprise that is aimed at, in bits; mirostat_eta is how fast.
        seed: Of the draws.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    repeat_penalty: float = 1.1
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what has no meaning.

        Raises:
            Invalid: A field is outside its range; the message has its name, the value and the range.
        """
        _within("temperature", self.temperature, 0.0, TEMPERATURE_MAX)
        _within("top_k", self.top_k, -1, 1 << 31)
        _within("top_p", self.top_p, 0.0, 1.0)
        _within("repeat_penalty", self.repeat_penalty, 0.1, REPEAT_PENALTY_MAX)
        _within("frequency_penalty", self.frequency_penalty, -PENALTY_MAX, PENALTY_MAX)
        _within("presence_penalty", self.presence_penalty, -PENALTY_MAX, PENALTY_MAX)
        _within("mirostat", self.mirostat, 0, 2)
        _within("mirostat_tau", self.mirostat_tau, 0.0, MIROSTAT_TAU_MAX)
        _within("mirostat_eta", self.mirostat_eta, 0.0, 1.0)
        _within("seed", self.seed, 0, SEED_MAX)

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn by chance."""
        return self.temperature == 0.0 or (self.top_k == 1 and self.mirostat == 0)


class Sampler:
    """Chooses token after token; it has the random numbers of one run, and mirostat's state.

    Attributes:
        sampling: What was asked for.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling: Final = sampling
        self._random: Final = np.random.default_rng(sampling.seed)
        self._surprise_max = 2.0 * sampling.mirostat_tau  # The paper's start of mu, in bits.

    def sample(self, logits: Array, recent: Sequence[int]) -> int:
        """Return the next token.

        Args:
            logits: (vocabulary,) of one position; left as they are.
            recent: Tokens so far; the last PENALTY_TOKENS count. Negative numbers stand for what is no token.

        Raises:
            Invalid: No logit is a number.
        """
        if self.sampling.greedy:
            return int(np.argmax(self._penalized(logits, recent)))
        tokens, probabilities = self.candidates(logits, recent)
        at = int(np.searchsorted(np.cumsum(probabilities), self._random.random() * probabilities.sum(), side="right"))
        at = min(at, tokens.size - 1)  # (the sum may round to less than what was drawn)
        if self.sampling.mirostat:
            surprise = -math.log2(max(float(probabilities[at]), np.finfo(np.float64).tiny))
            self._surprise_max -= self.sampling.mirostat_eta * (surprise - self.sampling.mirostat_tau)
        return int(tokens[at])

    def candidates(self, logits: Array, recent: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return what the next token is drawn of: ids, the most probable first, and their probabilities, which sum to 1."""
        asked = self.sampling
        scores = self._penalized(logits, recent)
        if asked.greedy:
            return np.array([np.argmax(scores)]), np.ones(1)
        if asked.mirostat:
            tokens = _best(scores, 0)
            probabilities = _softmax(scores[tokens] / asked.temperature)
            kept = self._mirostat_1(probabilities) if asked.mirostat == 1 else self._mirostat_2(probabilities)
            return tokens[:kept], probabilities[:kept] / probabilities[:kept].sum()
        tokens = _best(scores, asked.top_k)
        if asked.top_p < 1.0:
            sums = np.cumsum(_softmax(scores[tokens]))
            tokens = tokens[: int(np.searchsorted(sums, asked.top_p, side="left")) + 1]
        return tokens, _softmax(scores[tokens] / asked.temperature)

    def _penalized(self, logits: Array, recent: Sequence[int]) -> NDArray[np.float64]:
        scores = logits.astype(np.float64)
        scores[np.isnan(scores)] = -np.inf
        if not np.isfinite(scores.max()):
            raise Invalid("the network gave logits that are no numbers; its weights, or what they were quantized to, are damaged")
        asked = self.sampling
        if asked.repeat_penalty == 1.0 and asked.frequency_penalty == 0.0 and asked.presence_penalty == 0.0:
            return scores
        said, times = np.unique([one for one in recent[-PENALTY_TOKENS:] if 0 <= one < scores.size], return_counts=True)
        if not said.size:
            return scores
        said = said.astype(np.int64)
        before = scores[said]
        after = np.where(before > 0, before / asked.repeat_penalty, before * asked.repeat_penalty)
        scores[said] = after - times * asked.frequency_penalty - asked.presence_penalty
        return scores

    def _mirostat_1(self, probabilities: NDArray[np.float64]) -> int:
        """Return how many tokens algorithm 1 leaves: the exponent of Zipf's law is estimated, and k follows from the surprise allowed."""
        top = np.maximum(probabilities[: MIROSTAT_CANDIDATES + 1], np.finfo(np.float64).tiny)
        if top.size < 2:
            return 1
        ranks = np.arange(1, top.size)
        steps = np.log((ranks + 1) / ranks)
        exponent = float(np.sum(steps * np.log(top[:-1] / top[1:])) / np.sum(steps * steps))
        excess = exponent - 1.0
        size = probabilities.size
        # The limit of excess -> 0 of (1 - size^-excess) / excess is log(size).
        width = math.log(size) if abs(excess) < 1e-9 else (1.0 - size**-excess) / excess
        if exponent <= 0.0 or width <= 0.0:
            return size  # All tokens are as probable as the first: nothing to cut.
        exponent_of_k = (self._surprise_max * math.log(2.0) - math.log(width)) / exponent
        return int(min(size, max(1.0, math.exp(min(exponent_of_k, math.log(size))))))

    def _mirostat_2(self, probabilities: NDArray[np.float64]) -> int:
        """Return how many tokens algorithm 2 leaves: those that surprise no more than is allowed, and the most probable one."""
        return max(1, int(np.count_nonzero(probabilities >= 2.0 ** -max(self._surprise_max, 0.0))))


def _best(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return ids by falling score, `count` of them or all; of equal scores the lower id comes first."""
    if 0 < count < scores.size:
        least = np.partition(scores, scores.size - count)[scores.size - count]
        chosen = np.flatnonzero(scores >= least)
        return chosen[np.argsort(-scores[chosen], kind="stable")][:count]
    return np.argsort(-scores, kind="stable")


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max())
    shares: NDArray[np.float64] = powers / powers.sum()
    return shares


def _within(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise Invalid(f"{field} is {value!r}; take one from {low:g} to {high:g}")
