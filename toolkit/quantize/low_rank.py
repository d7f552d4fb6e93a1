"""`_rN`: the error of quantization, as far as rank N can hold it, kept beside the model as a LoRA.

In: a weight, what it became, and the mean magnitudes of its input. Out: two thin matrices. Built on LQER (arXiv:2402.02446): the error
W - Q is scaled by the root mean square of each input (its S), cut to rank N by singular values, and scaled back, so that the rank goes
where activations are large. The vendor says of `_rN` that it yields a second file that is loaded as a LoRA; how it is fitted, it does not.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from toolkit.checkpoint.base import Array
from toolkit.quantize.grid import Quantized
from toolkit.quantize.second_order import Moments

__all__ = ["correction"]

FLOOR: Final = 1e-6  # Of the largest scale; an input that was always zero still gets some of the rank.


def correction(weight: Array, quantized: Quantized, rank: int, moments: Moments | None) -> tuple[Array, Array]:
    """Return a (rank, in_features) and b (out_features, rank) with b @ a near weight - quantized, both exact in float16.

    Args:
        weight: As it was.
        quantized: What it became.
        rank: From 1; cut to the smaller side of the weight.
        moments: Of the input; None weighs all inputs alike.
    """
    error = (weight - quantized.dequantize()).astype(np.float64)
    scale = np.ones(error.shape[1])
    if moments is not None:
        scale = np.sqrt(np.maximum(np.diagonal(moments), 0).astype(np.float64))
        scale = np.maximum(scale / (scale.max() or 1.0), FLOOR)
    scaled = error * scale
    rank = min(rank, *error.shape)
    # Singular vectors from the smaller of the two products: a few times faster than a full decomposition, and only the largest are taken.
    if scaled.shape[0] <= scaled.shape[1]:
        left = np.linalg.eigh(scaled @ scaled.T)[1][:, : -rank - 1 : -1]
        right = left.T @ scaled
    else:
        right = np.linalg.eigh(scaled.T @ scaled)[1][:, : -rank - 1 : -1].T
        left = scaled @ right.T
    a, b = right / scale, left
    norms_a, norms_b = np.sqrt((a * a).sum(axis=1)), np.sqrt((b * b).sum(axis=0))
    even = np.sqrt(np.divide(norms_b, norms_a, out=np.ones_like(norms_a), where=(norms_a > 0) & (norms_b > 0)))
    return _half(a * even[:, None]), _half(b / even)


def _half(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Array:
    return values.astype(np.float16).astype(np.float32)
