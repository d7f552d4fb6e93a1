"""How long a prompt takes on this board: a curve per replica, learned from its own requests.

In: (tokens computed, seconds until the first output) of answered requests, and the row of the benchmark table that the replica refers to.
Out: an estimate of prompt tokens before a worker is asked, and of seconds until the first output. Called by `agent/serving/proxy.py`.

Prompts are sorted into bins by length, four to the octave; each keeps its newest pairs and counts with their medians, so that one slow
request means nothing and a board that throttles is followed. Medians are then made monotone: neighbours that fall are pooled to their
mean (pool adjacent violators), because a longer prompt is never faster. Between points the curve is straight; beyond the last one it
goes on as steep as it is from its first point to its last. Real curves grow steeper, so that an estimate is rather too short, and a
refusal rather too late, than wrong. Without a point nothing is known and everything is admitted.

Source: R. E. Barlow et al., Statistical Inference under Order Restrictions, 1972, for the pooling.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from rkfleet.benchmarks import Row

__all__ = ["Estimates", "Point", "fit"]

BINS_PER_OCTAVE: Final = 4
BINS_MAX: Final = 96  # 2^24 tokens; no context is longer.
PAIRS_PER_BIN: Final = 9  # An odd number, so that the median is a pair that was measured.
SPREAD_MIN: Final = 2.0  # Lengths that far apart tell the fixed costs from those per token.
TOKENS_MIN: Final = 8  # Shorter prompts measure the fixed costs of a request.

RATIO_TOKENS_MIN: Final = 256  # In shorter prompts the template's own tokens outweigh the text.

# Bytes of a request's JSON per token, before a worker has counted: more than any vocabulary makes of running text (English 4 to 4.5), so
# that the first estimates are too short and nothing is refused by mistake.
BYTES_PER_TOKEN: Final = 6.0
FOLLOW_SHARE: Final = 0.2  # Of the distance to the newest count; five requests change the ratio for the most part.


class Point(msgspec.Struct, frozen=True, gc=False):
    """A prompt of so many tokens takes so many seconds."""

    tokens: float
    seconds: float


class _Curve:
    def __init__(self) -> None:
        self.bins: Final[dict[int, deque[Point]]] = {}
        self.bytes_per_token: float | None = None
        self.start: Point | None = None
        self.fitted: tuple[Point, ...] | None = None

    def points(self) -> tuple[Point, ...]:
        if self.fitted is None:
            medians = [
                Point(statistics.median(pair.tokens for pair in pairs), statistics.median(pair.seconds for pair in pairs))
                for _, pairs in sorted(self.bins.items())
            ]
            self.fitted = fit(medians) or ((self.start,) if self.start else ())
        return self.fitted


class Estimates:
    """What is known of each replica, by uid."""

    def __init__(self) -> None:
        self._curves: Final[dict[str, _Curve]] = {}

    def start(self, uid: str, row: Callable[[], Row | None]) -> None:
        """Begin with a row of the benchmark table, unless the replica is known; its own requests replace it."""
        if uid not in self._curves:
            found = row()
            curve = self._curves[uid] = _Curve()
            curve.start = Point(found.protocol.prompt_tokens, found.time_to_first_token_seconds) if found else None

    def learn(self, uid: str, *, prompt_bytes: int, prompt_tokens: int, cached_tokens: int, seconds: float) -> None:
        """Take in an answered request.

        Args:
            uid: Uid of the Replica.
            prompt_bytes: Length of its prompt as JSON; 0 where that says nothing about tokens (images).
            prompt_tokens: As the worker counted.
            cached_tokens: Of them, what the worker had computed before.
            seconds: From the moment the worker had it until its first output.
        """
        curve = self._curves.setdefault(uid, _Curve())
        if prompt_bytes and prompt_tokens >= RATIO_TOKENS_MIN:
            ratio = prompt_bytes / prompt_tokens
            curve.bytes_per_token = (
                ratio if curve.bytes_per_token is None else curve.bytes_per_token + FOLLOW_SHARE * (ratio - curve.bytes_per_token)
            )
        tokens = prompt_tokens - cached_tokens
        if tokens < TOKENS_MIN:
            return
        number = min(BINS_MAX, int(BINS_PER_OCTAVE * math.log2(tokens)))
        curve.bins.setdefault(number, deque(maxlen=PAIRS_PER_BIN)).append(Point(tokens, seconds))
        curve.fitted = None

    def tokens(self, uid: str, prompt_bytes: int) -> int:
        """Return about how many tokens a prompt has; rather too few before the first count."""
        curve = self._curves.get(uid)
        return round(prompt_bytes / ((curve.bytes_per_token if curve else None) or BYTES_PER_TOKEN))

    def seconds(self, uid: str, tokens: int) -> float | None:
        """Return about how long a prompt takes until the first output; None if nothing is known."""
        curve = self._curves.get(uid)
        points = curve.points() if curve else ()
        return _at(points, tokens) if points else None

    def keep(self, uids: Iterable[str]) -> None:
        """Forget replicas that are not there any more."""
        for uid in self._curves.keys() - set(uids):
            del self._curves[uid]


def fit(points: Iterable[Point]) -> tuple[Point, ...]:
    """Return points, given in order of tokens, whose seconds never fall: pooled neighbours share their mean."""
    pools: list[tuple[float, list[float]]] = []  # mean of seconds, and the tokens of its points
    for point in points:
        mean, tokens = point.seconds, [point.tokens]
        while pools and pools[-1][0] > mean:
            below, others = pools.pop()
            mean = (below * len(others) + mean * len(tokens)) / (len(others) + len(tokens))
            tokens = others + tokens
        pools.append((mean, tokens))
    return tuple(Point(tokens, mean) for mean, pool in pools for tokens in pool)


def _at(points: tuple[Point, ...], tokens: float) -> float:
    """Return the seconds at `tokens`: through zero below the first point, with the slope of the whole curve beyond the last."""
    first, last = points[0], points[-1]
    if tokens <= first.tokens:
        return first.seconds * tokens / first.tokens
    if tokens >= last.tokens:
        known = last.tokens >= SPREAD_MIN * first.tokens
        slope = (last.seconds - first.seconds) / (last.tokens - first.tokens) if known else last.seconds / last.tokens
        return last.seconds + slope * (tokens - last.tokens)
    for left, right in itertools.pairwise(points):
        if tokens <= right.tokens:
            share = (tokens - left.tokens) / max(1e-9, right.tokens - left.tokens)
            return left.seconds + share * (right.seconds - left.seconds)
    return last.seconds
