"""`optimization_level` 1: what is hard to quantize moves from activations into weights.

In: a weight and what calibration saw of its inputs. Out: a divisor for each input. SmoothQuant (arXiv:2211.10438): inputs are divided by
s = max|x|^a / max|w|^(1 - a) and the weight's columns multiplied by it, which leaves the product as it is; outliers of a few inputs then
no longer set the scale of the whole token. Different here: every layer takes the exponent of ALPHAS, or no division at all, whose outputs
are nearest to those of full precision on tokens of the calibration text; divisors are powers of two, so that dividing and multiplying
loses nothing; and each layer has its own, where the paper folds one for query, key and value into the norm before them. What the
vendor's level 1 does is not published.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from toolkit.checkpoint.base import Array
from toolkit.dtypes import Dtype
from toolkit.quantize.layers import QuantizedLinear
from toolkit.quantize.normal import quantize_normal
from toolkit.quantize.second_order import Inputs

__all__ = ["divisors"]

ALPHAS: Final = (0.35, 0.5, 0.65, 0.8, 0.9)  # The paper has 0.5 for most models and up to 0.9 for those with larger outliers.
EXPONENT_MAX: Final = 10  # No divisor beyond 2^10: a column of weights a thousand times the rest has no smooth form.
FLOOR: Final = 1e-5  # Of the largest; inputs and columns below it count as this large, so that none is divided by nothing.


def divisors(name: str, weight: Array, dtype: Dtype, inputs: Inputs) -> Array | None:
    """Return (in_features,) powers of two for an `a8` layer, or None if the layer is better without.

    Args:
        name: Of the tensor.
        weight: (out_features, in_features).
        dtype: Of the layer.
        inputs: What calibration saw of them.
    """
    largest = np.abs(weight).max(axis=0)
    if not inputs.maxima.any() or not largest.any():
        return None
    activations = np.maximum(inputs.maxima, FLOOR * inputs.maxima.max())
    weights = np.maximum(largest, FLOOR * largest.max())
    wanted = inputs.rows @ weight.T

    def error(tried: Array | None) -> float:
        quantized = quantize_normal(name, weight if tried is None else weight * tried, dtype)
        layer = QuantizedLinear(name, quantized, None, activation_bits=dtype.activation_bits, divisors=tried)
        difference = layer(inputs.rows) - wanted
        return float(np.einsum("ti,ti->", difference, difference))

    best, least = None, error(None)
    for alpha in ALPHAS:
        exponents = np.rint(np.log2(activations**alpha / weights ** (1 - alpha)))
        exponents -= np.rint(np.median(exponents))
        tried: Array = np.exp2(np.clip(exponents, -EXPONENT_MAX, EXPONENT_MAX)).astype(np.float32)
        found = error(tried)
        if found < least:
            best, least = tried, found
    return best
