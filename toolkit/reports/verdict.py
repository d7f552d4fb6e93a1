"""Which dtype a model should have on a chip, and why not the others.

In: for each dtype of a chip what it costs in quality and what to expect of it (`Candidate`), and a person's limits (`Limits`). Out: a
`Verdict` for each: one word and the sentence why. Pure; `rkfleet toolkit recommend` prints it.

The rule: what the vendor's build refuses, does not fit, is too slow or loses too much is out, in that order. Of what is left the fastest is
best, but of those within NEARLY of its speed the one that loses least; one that is slower and no better than another is never best.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from rkfleet.errors import Invalid

__all__ = ["NEARLY", "Candidate", "Limits", "Verdict", "Word", "judge"]

Word = Literal["best", "ok", "refused", "does not fit", "too slow", "loses too much", "speed unknown"]

NEARLY: Final = 0.9  # Of the fastest's speed: less than the predictions' own uncertainty, so quality decides.
GIBIBYTE: Final = 1 << 30


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a person can live with.

    Attributes:
        memory_bytes: That a board has for the model.
        tokens_per_second_min: 0 for no limit.
        loss_max: Largest relative change of perplexity: 0.02 is two percent.
    """

    memory_bytes: int = 8 * GIBIBYTE
    tokens_per_second_min: float = 0.0
    loss_max: float = 0.05

    def check(self) -> Limits:
        """Return itself.

        Raises:
            Invalid: A limit is negative or no number.
        """
        if self.memory_bytes < 1:
            raise Invalid(f"board memory is {self.memory_bytes} bytes; it must be positive")
        if not self.tokens_per_second_min >= 0:
            raise Invalid(f"min speed {self.tokens_per_second_min} must be 0 or more tokens per second")
        if not self.loss_max >= 0:
            raise Invalid(f"max loss {self.loss_max} must be 0 or more; 0.02 is two percent of perplexity")
        return self


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One dtype on one chip.

    Attributes:
        loss: Relative change of perplexity against full precision.
        tokens_per_second: Expected, or None where the vendor's table does not tell; memory_bytes alike.
        refused: Sentence that says why the vendor's build refuses the model with this dtype, or empty.
    """

    dtype: str
    loss: float
    tokens_per_second: float | None
    memory_bytes: float | None
    refused: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """One word, and the sentence why."""

    word: Word
    why: str


def judge(candidates: Sequence[Candidate], limits: Limits) -> tuple[Verdict, ...]:
    """Return a verdict for each candidate of one chip, in their order; at most one is best."""
    refused = [_refusal(one, limits) for one in candidates]
    left = [(one, one.tokens_per_second) for one, why in zip(candidates, refused, strict=True) if why is None]
    known = [(one, speed) for one, speed in left if speed is not None]
    best = None
    if known:
        fastest = max(speed for _, speed in known)
        best = min((one for one in known if one[1] >= NEARLY * fastest), key=lambda one: (one[0].loss, -one[1], one[0].dtype))
    found: list[Verdict] = []
    for one, why in zip(candidates, refused, strict=True):
        if why is not None:
            found.append(why)
        elif best is None or one.tokens_per_second is None:
            found.append(Verdict("speed unknown", "the vendor's table has no rows near this model for it; measure it on a board"))
        elif one is best[0]:
            found.append(Verdict("best", _why_best(one, len(known), len(left))))
        else:
            found.append(Verdict("ok", _why_not_best(one, one.tokens_per_second, *best)))
    return tuple(found)


def _refusal(one: Candidate, limits: Limits) -> Verdict | None:
    if one.refused:
        return Verdict("refused", one.refused)
    if one.memory_bytes is not None and one.memory_bytes > limits.memory_bytes:
        told = f"needs {one.memory_bytes / GIBIBYTE:.2f} GiB of {limits.memory_bytes / GIBIBYTE:.2f} GiB; a shorter context needs less"
        return Verdict("does not fit", told)
    if one.tokens_per_second is not None and one.tokens_per_second < limits.tokens_per_second_min:
        return Verdict("too slow", f"{one.tokens_per_second:.1f} tokens/s, and {limits.tokens_per_second_min:g} are wanted")
    if not one.loss <= limits.loss_max:
        return Verdict(
            "loses too much", f"perplexity {one.loss:+.1%}, and {limits.loss_max:.1%} is the most; calibrated algorithms lose less"
        )
    return None


def _why_best(one: Candidate, known: int, left: int) -> str:
    if left == 1:
        return "the only one within the limits"
    beside = "" if known == left else "; of others the speed is not known"
    return f"loses least ({one.loss:+.1%}) of those that are about as fast as the fastest{beside}"


def _why_not_best(one: Candidate, speed: float, best: Candidate, best_speed: float) -> str:
    slower = speed / best_speed - 1
    worse = one.loss - best.loss
    pace = f"{abs(slower):.0%} {'slower' if slower < 0 else 'faster'} than {best.dtype}"
    return (
        f"{pace}, and {'loses' if worse > 0 else 'keeps'} {abs(worse) * 100:.1f} points of perplexity {'more' if worse > 0 else 'better'}"
    )
