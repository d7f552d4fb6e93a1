"""`normal`: every weight goes to the nearest point of its grid.

In: a weight. Out: `Quantized`. It needs no calibration; at four bits the scale of a group is the one of least mean squared error among
those of `toolkit.quantize.grid.DIVISORS`, so that a single outlier may be clipped for the sake of the others.
"""

from __future__ import annotations

import numpy as np

from toolkit.checkpoint.base import Array
from toolkit.dtypes import Dtype
from toolkit.quantize.grid import BLOCK_ELEMENTS, Quantized, check_weight, find_scales, nearest, spread

__all__ = ["quantize_normal", "round_to"]


def quantize_normal(name: str, weight: Array, dtype: Dtype) -> Quantized:
    """Return the weight on the grid of the dtype.

    Raises:
        Invalid: The weight is no matrix, or holds what is no number; `name` says which.
    """
    check_weight(name, weight)
    return round_to(weight, find_scales(weight, dtype), dtype)


def round_to(weight: Array, scales: Array, dtype: Dtype) -> Quantized:
    """Return the weight on a grid with these scales."""
    rows, width = weight.shape
    codes = np.empty((rows, width), np.int8)
    block = max(1, BLOCK_ELEMENTS // width)
    for start in range(0, rows, block):
        part = slice(start, start + block)
        codes[part] = nearest(weight[part], spread(scales[part], dtype.group, width), dtype.weight_bits)
    return Quantized(codes, scales, dtype.group, dtype.weight_bits)
