"""Linear layers that compute as the NPU does.

In: a `Quantized` weight and a dtype. Out: `QuantizedLinear`, which a network cannot tell from `Dense`. The vendor does not publish its
kernels; what is simulated is the arithmetic that its names promise (w8a8: int8 times int8 in int32), with these choices:

- Activations of `a8` are symmetric int8, -127..127, one scale for each token, found as the token comes ("dynamic", as in
  arXiv:2206.01861, section 4).
- One scale for each output channel: whole numbers are multiplied and added exactly. float32 holds every whole number up to 2^24, and a run
  of COLUMNS_EXACT products of two codes stays below it, so that BLAS in float32 is exact for each run in any order; the runs are added in
  float64.
- A scale for each group: whole activations times (code times scale, which is exact) in float32. The difference from exact arithmetic is at
  most n 2^-24 times the sum of the magnitudes of the n terms, which is what a kernel that adds groups in float32 has as well.
- Activations of `a16` stay float32 here, as does the sum.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from toolkit.checkpoint.base import Array
from toolkit.quantize.grid import Quantized

__all__ = ["COLUMNS_EXACT", "QuantizedLinear", "quantize_tokens"]

COLUMNS_EXACT: Final = 1 << 10  # 1024 * 127 * 127 < 2^24, the last whole number up to which float32 has all.
ACTIVATION_MIN: Final = 1e-30  # A token without anything larger is taken as zero.


def quantize_tokens(x: Array) -> tuple[Array, Array]:
    """Return int8 codes of (tokens, features) as whole float32 numbers, and the scale of each token, (tokens, 1)."""
    scales = np.maximum(x.max(axis=1, keepdims=True), -x.min(axis=1, keepdims=True)) / np.float32(127)
    scales = np.where(scales > ACTIVATION_MIN, scales, np.float32(1))
    codes: Array = np.rint(x / scales)
    return codes, scales


class QuantizedLinear:
    """One layer.

    Attributes:
        name: Of the tensor, without `.weight`.
        activation_bits: 8 or 16.
        divisors: (in_features,) by which inputs are divided first (smoothing), or None.
        low_rank: (in_features, r) and (r, out_features), whose product with the input is added in float32; None for none.
    """

    def __init__(
        self,
        name: str,
        quantized: Quantized,
        bias: Array | None,
        *,
        activation_bits: int,
        divisors: Array | None = None,
        low_rank: tuple[Array, Array] | None = None,
    ) -> None:
        self.name: Final = name
        self.activation_bits: Final = activation_bits
        self.divisors: Final = divisors
        self.low_rank: Final = low_rank
        self.bias: Final = bias
        self._whole: Final = activation_bits == 8 and quantized.scales.shape[1] == 1
        self._weight: Final = quantized.codes.astype(np.float32) if self._whole else quantized.dequantize()
        self._scales: Final = quantized.scales[:, 0]

    def __call__(self, x: Array) -> Array:
        """Return (tokens, out_features) of (tokens, in_features)."""
        inputs = x if self.divisors is None else x / self.divisors
        if self.activation_bits == 8:
            codes, scales = quantize_tokens(inputs)
            y = self._exact(codes) * self._scales if self._whole else codes @ self._weight.T
            y *= scales
        else:
            y = inputs @ self._weight.T
        if self.low_rank is not None:
            y += (x @ self.low_rank[0]) @ self.low_rank[1]
        if self.bias is not None:
            y += self.bias
        return y

    def _exact(self, codes: Array) -> Array:
        width = codes.shape[1]
        if width <= COLUMNS_EXACT:
            whole: Array = codes @ self._weight.T
            return whole
        total = np.zeros((codes.shape[0], self._weight.shape[0]), np.float64)
        for start in range(0, width, COLUMNS_EXACT):
            total += codes[:, start : start + COLUMNS_EXACT] @ self._weight[:, start : start + COLUMNS_EXACT].T
        return total.astype(np.float32)
