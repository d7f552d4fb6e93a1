"""A straight line through figures of the vendor's table, with how far it misses.

In: sizes and figures of rows. Out: a `Line`: figure = base + slope * size, both not negative, of least squared relative error; and
`spread`, the factor within which COVERAGE of the rows lie when each is foretold from the others (leave one out). Pure numpy; used by
`model.py`.

Source of the interval: the split-conformal quantile of arXiv:2107.07511, on leave-one-out errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = ["COVERAGE", "ROWS_MIN", "Line", "fit"]

COVERAGE: Final = 0.8
ROWS_MIN: Final = 4  # Two numbers are fitted; of fewer rows nothing can be said about errors.

Floats = NDArray[np.float64]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """figure = base + slope * size.

    Attributes:
        spread: Factor, at least 1: COVERAGE of the rows lie between figure / spread and figure * spread.
        smallest: Size of the smallest row; largest of the largest. Beyond them a figure is extrapolated.
    """

    base: float
    slope: float
    spread: float
    rows: int
    smallest: float
    largest: float

    def at(self, size: float) -> float:
        """Return the figure for a size."""
        return self.base + self.slope * size

    def near(self, size: float, factor: float) -> bool:
        """Whether a size lies within a factor of the rows."""
        return self.smallest / factor <= size <= self.largest * factor


def fit(sizes: Sequence[float], figures: Sequence[float]) -> Line | None:
    """Return the line through rows, or None if they are fewer than ROWS_MIN; sizes and figures are positive."""
    if len(sizes) < ROWS_MIN:
        return None
    x, y = np.asarray(sizes, dtype=np.float64), np.asarray(figures, dtype=np.float64)
    base, slope = _solve(x, y)
    errors = sorted(misses(x, y))
    place = min(math.ceil((len(errors) + 1) * COVERAGE), len(errors)) - 1
    return Line(base=base, slope=slope, spread=math.exp(errors[place]), rows=len(errors), smallest=float(x.min()), largest=float(x.max()))


def misses(x: Floats, y: Floats) -> list[float]:
    """Return for each row the logarithm of the factor by which a line through the others misses it."""
    found = []
    for index in range(len(x)):
        others = np.arange(len(x)) != index
        base, slope = _solve(x[others], y[others])
        found.append(abs(math.log((base + slope * float(x[index])) / float(y[index]))))
    return found


def _solve(x: Floats, y: Floats) -> tuple[float, float]:
    """Return base and slope, both not negative, of least squared relative error; of two numbers the cases can be tried one by one."""
    matrix = np.stack([1 / y, x / y], axis=1)
    best = math.inf, 0.0, 0.0
    for columns in ((0, 1), (0,), (1,)):
        part = matrix[:, columns]
        found, *_ = np.linalg.lstsq(part, np.ones(len(y)), rcond=None)
        if (found < 0).any():
            continue
        error = float(np.square(part @ found - 1).sum())
        both = dict(zip(columns, (float(one) for one in found), strict=True))
        best = min(best, (error, both.get(0, 0.0), both.get(1, 0.0)))
    return best[1], best[2]
