"""The seam of quantization: a linear layer is whatever maps activations, and a factory decides what it is.

In: a name, a weight, a bias. Out: `Linear`. `Dense` is the layer as it was trained; `toolkit.quantize` has factories that make layers which
compute as the NPU does; adapters and observers wrap a factory. A network never knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from toolkit.checkpoint.base import Array

__all__ = ["Dense", "Linear", "LinearFactory"]


class Linear(Protocol):
    """Maps activations (tokens, in_features) to (tokens, out_features)."""

    def __call__(self, x: Array) -> Array:
        """Return x @ weight.T + bias."""


LinearFactory = Callable[[str, Array, Array | None], Linear]
"""Given the tensor's name without `.weight`, weight (out_features, in_features) and bias (out_features) or None."""


class Dense:
    """A layer in float32."""

    def __init__(self, name: str, weight: Array, bias: Array | None) -> None:
        self.name = name
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Array) -> Array:
        """Return x @ weight.T + bias."""
        y: Array = x @ self.weight.T
        if self.bias is not None:
            y += self.bias
        return y
