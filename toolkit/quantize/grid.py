"""The grid of a quantized weight: whole numbers, and a scale for every output channel or for every group along the input.

In: a float32 weight and a `Dtype`. Out: `Quantized`, its codes and scales, and the way back. Every algorithm of this package ends here;
what differs is which neighbour on the grid a weight goes to.

All grids are symmetric, zero is always on them, and there is no offset. Eight bits use -127..127: the code -128 would make the range
lopsided for one more level in 256. Four bits use -8..7, where one level in sixteen counts, and let the scale be negative so that the
element of largest magnitude can take the code -8. Why symmetric at four bits too: the vendor's toolkit takes GPTQ models only with `sym`
true and GGUF models only as Q4_0, so a symmetric grid is what its files are known to hold (RKLLM SDK user guide 1.2, load_huggingface and
load_gguf); with an offset a simulation would promise quality that nobody has seen a board deliver.

Scales keep eleven significant bits, as float16 does, and code times scale is then exact in float32 (8 + 11 bits of 24).
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from rkfleet.errors import Invalid
from toolkit.checkpoint.base import Array
from toolkit.dtypes import Dtype

__all__ = [
    "MAGNITUDE_MAX",
    "MAGNITUDE_MIN",
    "Codes",
    "Quantized",
    "check_weight",
    "code_range",
    "find_scales",
    "nearest",
    "round_up",
    "spread",
]

Codes = NDArray[np.int8]

MAGNITUDE_MAX: Final = 2.0**60  # Its square still fits float32 a hundred times over; no trained weight comes near.
MAGNITUDE_MIN: Final = 2.0**-60  # A group without anything larger is zero: below it squares leave float32.
SCALE_BITS: Final = 11  # Significant bits of float16, in which runtimes keep scales.
BLOCK_ELEMENTS: Final = 1 << 18  # Rows are worked on 1 MiB at a time, so that the passes over them stay in the cache.

# Largest magnitude over scale, tried for every group at four bits: 7 clips nothing, 8 as Q4_0 has it, the larger ones clip on purpose.
DIVISORS: Final = (-7.0, -8.0, -8.0 / 0.95, -8.0 / 0.9, -8.0 / 0.85, -8.0 / 0.8, -8.0 / 0.75, -8.0 / 0.7, -8.0 / 0.65)


class Quantized(msgspec.Struct, frozen=True):
    """A weight on its grid.

    Attributes:
        codes: int8 (out_features, in_features).
        scales: float32 (out_features, groups), eleven significant bits each, never 0.
        group: Inputs that share a scale; the last group may be shorter. 0: one scale for each output channel.
        bits: 4 or 8.
    """

    codes: Codes
    scales: Array
    group: int
    bits: int

    def dequantize(self) -> Array:
        """Return code times scale as float32 (out_features, in_features); the products are exact."""
        values = self.codes.astype(np.float32)
        values *= spread(self.scales, self.group, values.shape[1])
        return values


def spread(scales: Array, group: int, width: int) -> Array:
    """Return scales (rows, groups) as what multiplies (rows, width): one for each input, or a column for one group."""
    if scales.shape[1] == 1:
        return scales
    wide: Array = np.repeat(scales, group, axis=1)[:, :width]
    return wide


def check_weight(name: str, weight: Array) -> None:
    """Refuse what has no place on a grid.

    Raises:
        Invalid: It is no matrix, or holds NaN, infinity, or a magnitude above MAGNITUDE_MAX.
    """
    if weight.ndim != 2 or not weight.size:
        raise Invalid(f"tensor {name!r} has the shape {weight.shape}; a linear layer has two dimensions, none of them 0")
    largest = max(abs(float(weight.max())), abs(float(weight.min())))  # NaN goes through both.
    if not largest <= MAGNITUDE_MAX:
        raise Invalid(f"tensor {name!r} holds {largest}; weights must be numbers up to {MAGNITUDE_MAX:g}: check the checkpoint for damage")


def code_range(bits: int) -> tuple[int, int]:
    """Return the smallest and the largest code."""
    return (-127, 127) if bits == 8 else (-8, 7)


def nearest(weight: Array, scales: Array, bits: int) -> Array:
    """Return the codes nearest to a weight, as whole float32 numbers; `scales` must multiply it as it is."""
    low, high = code_range(bits)
    codes: Array = np.rint(weight / scales)
    np.clip(codes, low, high, out=codes)
    return codes


def find_scales(weight: Array, dtype: Dtype, importance: Array | None = None) -> Array:
    """Return a scale for every group of a weight, float32 (out_features, groups).

    Eight bits: the largest magnitude over 127; nothing is clipped. Four bits: of `DIVISORS` the one with the least mean squared error,
    which may clip.

    Args:
        weight: Checked by `check_weight`.
        dtype: Gives bits and group.
        importance: (in_features,) factors on squared errors, for example the mean square of each input; None for all alike.
    """
    rows, width = weight.shape
    group = min(dtype.group or width, width)
    groups = -(-width // group)
    scales = np.empty((rows, groups), np.float32)
    factors = None if importance is None else _cut(importance[None, :].astype(np.float32), group)
    block = max(1, BLOCK_ELEMENTS // width)
    for start in range(0, rows, block):
        cut = _cut(weight[start : start + block], group)
        scales[start : start + block] = _largest_over_127(cut) if dtype.weight_bits == 8 else _least_error(cut, factors)
    return scales


def round_up(scales: Array) -> Array:
    """Return magnitudes rounded up to eleven significant bits, signs kept; 0 becomes 1, for a group of zeros."""
    mantissa, exponent = np.frexp(scales)
    steps = np.ldexp(np.abs(mantissa), SCALE_BITS)
    rounded = np.ldexp(np.copysign(np.ceil(steps), mantissa), exponent - SCALE_BITS).astype(np.float32)
    return np.where(np.abs(scales) > MAGNITUDE_MIN / 16, rounded, np.float32(1))


def _cut(weight: Array, group: int) -> Array:
    """Return (rows, groups, group), the last group filled up with zeros, which change neither a maximum nor an error."""
    rows, width = weight.shape
    missing = -width % group
    if missing:
        weight = np.concatenate([weight, np.zeros((rows, missing), np.float32)], axis=1)
    return weight.reshape(rows, -1, group)


def _largest_over_127(cut: Array) -> Array:
    return round_up(np.maximum(cut.max(axis=2), -cut.min(axis=2)) / np.float32(127))


def _least_error(cut: Array, factors: Array | None) -> Array:
    high, low = cut.max(axis=2), cut.min(axis=2)
    largest = np.where(high > -low, high, low)
    best = round_up(largest / np.float32(DIVISORS[0]))
    best_error = np.full(largest.shape, np.inf, np.float32)
    for divisor in DIVISORS:
        scales = round_up(largest / np.float32(divisor))
        error = nearest(cut, scales[..., None], 4)
        error *= scales[..., None]
        error -= cut
        sums = np.einsum("rgi,rgi->rg", error, error) if factors is None else np.einsum("rgi,rgi,rgi->rg", error, error, factors)
        better = sums < best_error
        np.copyto(best, scales, where=better)
        np.copyto(best_error, sums, where=better)
    return best
