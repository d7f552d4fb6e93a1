"""`grq`: rounding column by column, each error made good by the columns that are still to come.

In: a weight and the second moments of its input. Out: `Quantized`. Built on GPTQ (arXiv:2210.17323): with H = X^T X, the loss of a layer is
tr((Q - W) H (Q - W)^T); after a column is rounded, the columns left over move by its error times a row of the Cholesky factor of the
inverse of H. Taken from there: the factor, damping by a share of the mean diagonal, lazy updates by blocks of columns, columns in order of
falling diagonal. Different here: the scales of all groups are found before the first column is rounded ("static groups"), with errors
weighted by the diagonal of H, since columns of one group are then free to be rounded in any order; and a row that ends worse than plain
rounding keeps plain rounding, so that the result is never worse than `normal` in the norm of H. The vendor publishes nothing about its
`grq` but that it needs calibration and costs less than `gdq`.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from rkfleet.errors import Invalid
from toolkit.checkpoint.base import Array
from toolkit.dtypes import Dtype
from toolkit.quantize.grid import Quantized, check_weight, code_range, find_scales, spread
from toolkit.quantize.normal import round_to

__all__ = ["ROWS_MAX", "Inputs", "Moments", "best_rows", "check_moments", "damped", "quantize_grq", "row_errors"]

Moments = Array  # X^T X, float32 (in_features, in_features).

ROWS_MAX: Final = 96  # Enough to tell how well a layer does; a few hundred KiB for each.


class Inputs(msgspec.Struct, frozen=True):
    """What calibration saw of the inputs of a layer.

    Attributes:
        moments: Sum over tokens of x^T x, (in_features, in_features).
        maxima: Largest magnitude of each input, (in_features,).
        tokens: That were summed.
        rows: Some of the tokens as they were, (up to ROWS_MAX, in_features).
    """

    moments: Moments
    maxima: Array
    tokens: int
    rows: Array


DAMPING: Final = 0.01  # Share of the mean diagonal added to the diagonal; the paper's value.
DAMPING_TRIES: Final = 5  # Each ten times the last; with all of the mean diagonal added no matrix of moments is singular.
COLUMNS_LAZY: Final = 64  # Columns whose errors are gathered before the rest is updated in one product.


def check_moments(name: str, weight: Array, moments: Moments) -> None:
    """Refuse moments that do not belong to a weight.

    Raises:
        Invalid: The shape is another, or something is no number.
    """
    width = weight.shape[1]
    if moments.shape != (width, width):
        raise Invalid(f"second moments of {name!r} have the shape {moments.shape}; the layer has {width} inputs")
    if not np.isfinite(moments).all():
        raise Invalid(f"second moments of {name!r} hold what is no number: the model overflows on this calibration text")


def row_errors(difference: Array, moments: Moments) -> Array:
    """Return e H e^T for every row e of (out_features, in_features)."""
    errors: Array = np.einsum("ri,ri->r", difference @ moments, difference)
    return errors


def damped(moments: Moments, share: float) -> NDArray[np.float64]:
    """Return moments in float64 with a share of their mean diagonal added to the diagonal."""
    matrix = moments.astype(np.float64)
    diagonal = np.einsum("ii->i", matrix)
    diagonal += share * float(diagonal.mean()) or 1.0  # Inputs that were always zero: any value, their weights do not matter.
    return matrix


def quantize_grq(name: str, weight: Array, dtype: Dtype, moments: Moments) -> Quantized:
    """Return the weight on the grid of the dtype.

    Raises:
        Invalid: Weight or moments hold what is no number, or do not fit each other.
    """
    check_weight(name, weight)
    check_moments(name, weight, moments)
    importance = np.maximum(np.diagonal(moments), np.float32(1e-12) * moments.max())
    weighted = round_to(weight, find_scales(weight, dtype, importance / max(float(importance.mean()), 1e-30)), dtype)
    candidates = [_solve(weight, weighted.scales, dtype, moments), round_to(weight, find_scales(weight, dtype), dtype)]
    return best_rows(weight, moments, candidates)


def best_rows(weight: Array, moments: Moments, candidates: list[Quantized]) -> Quantized:
    """Return, row by row, the candidate with the least error in the norm of the moments."""
    errors = np.stack([row_errors(one.dequantize() - weight, moments) for one in candidates])
    winner = errors.argmin(axis=0)
    codes, scales = candidates[0].codes.copy(), candidates[0].scales.copy()
    for index, one in enumerate(candidates[1:], start=1):
        rows = winner == index
        codes[rows], scales[rows] = one.codes[rows], one.scales[rows]
    return Quantized(codes, scales, candidates[0].group, candidates[0].bits)


def _solve(weight: Array, scales: Array, dtype: Dtype, moments: Moments) -> Quantized:
    width = weight.shape[1]
    order = np.argsort(-np.diagonal(moments), kind="stable")
    factor = _inverse_factor(moments[np.ix_(order, order)]).astype(np.float32)
    # Columns are rows here: each is then contiguous, and so are the runs of them that are updated.
    left = np.ascontiguousarray(weight.T[order])
    steps = np.ascontiguousarray(np.broadcast_to(spread(scales, dtype.group, width), weight.shape).T[order])
    codes = np.empty_like(left)
    low, high = code_range(dtype.weight_bits)
    for start in range(0, width, COLUMNS_LAZY):
        end = min(start + COLUMNS_LAZY, width)
        errors = np.empty((end - start, left.shape[1]), np.float32)
        for column in range(start, end):
            step = steps[column]
            code = np.rint(left[column] / step)
            np.clip(code, low, high, out=code)
            codes[column] = code
            error = (left[column] - code * step) / factor[column, column]
            errors[column - start] = error
            if column + 1 < end:
                left[column + 1 : end] -= factor[column, column + 1 : end, None] * error
        if end < width:
            left[end:] -= factor[start:end, end:].T @ errors
    back = np.empty(weight.shape, np.int8)
    back[:, order] = codes.T
    return Quantized(back, scales, dtype.group, dtype.weight_bits)


def _inverse_factor(moments: Moments) -> NDArray[np.float64]:
    """Return the upper Cholesky factor U of the inverse of the damped moments: inverse = U^T U."""
    share = DAMPING
    for _ in range(DAMPING_TRIES):
        try:
            # With the order of rows and columns turned round, H = M M^T with M upper triangular; then inverse = (M^-1)^T M^-1.
            lower = np.linalg.cholesky(damped(moments, share)[::-1, ::-1])
        except np.linalg.LinAlgError:
            share *= 10
            continue
        upper = lower[::-1, ::-1]
        inverse: NDArray[np.float64] = np.triu(np.linalg.solve(upper, np.eye(len(upper))))
        return inverse
    raise Invalid("second moments are no matrix of moments: they stay singular with their mean added to the diagonal")
