"""`optimization_level` 1: what is hard to quantize moves from activations into weights.

In: magnitudes of the input and the weight. Out: a divisor for each input. SmoothQuant (arXiv:2211.10438): inputs are divided by
s = max|x|^a / max|w|^(1 - a) and the weight's columns multiplied by it, which leaves the product as it is. With a = 1/2 outliers of
activations share the trouble with the weights. Divisors are powers of two, so that dividing and multiplying loses nothing. A layer takes
them only if they lower its own error, estimated as the paper's figure 4 motivates it: rounding noise of the weight weighted by the inputs,
plus rounding noise of the inputs weighted by the weight. What the vendor's level 1 does is not published.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from toolkit.checkpoint.base import Array
from toolkit.dtypes import Dtype
from toolkit.quantize.normal import quantize_normal
from toolkit.quantize.second_order import Inputs

__all__ = ["divisors"]

ALPHA: Final = 0.5  # The paper's value for most models.
EXPONENT_MAX: Final = 10  # No divisor beyond 2^10: a column of weights a thousand times the rest has no smooth form.


def divisors(name: str, weight: Array, dtype: Dtype, inputs: Inputs) -> Array | None:
    """Return (in_features,) powers of two for an `a8` layer, or None if the layer is better without.

    Args:
        name: Of the tensor.
        weight: (out_features, in_features).
        dtype: Of the layer.
        inputs: What calibration saw of them.
    """
    largest = np.abs(weight).max(axis=0)
    maxima = inputs.maxima
    if not maxima.any() or not largest.any():
        return None
    activations = np.maximum(maxima, 1e-5 * maxima.max())
    weights = np.maximum(largest, 1e-5 * largest.max())
    exponents = np.rint(np.log2(activations**ALPHA / weights ** (1 - ALPHA)))
    exponents -= np.rint(np.median(exponents))
    found: Array = np.exp2(np.clip(exponents, -EXPONENT_MAX, EXPONENT_MAX)).astype(np.float32)

    def noise(tried: Array) -> float:
        smoothed = weight * tried
        difference = (quantize_normal(name, smoothed, dtype).dequantize() - smoothed) / tried
        of_weight = float(np.einsum("ri,ri->", difference @ inputs.moments, difference)) / max(inputs.tokens, 1)
        step = float((maxima / tried).max()) / 127
        return of_weight + step * step / 12 * float(np.einsum("ri,ri->", smoothed, smoothed))

    return found if noise(found) < noise(np.ones_like(found)) else None
