"""Keys and values of the tokens so far.

In: keys and values of new tokens, layer by layer. Out: those of all tokens. Room is taken once, for the whole context.
"""

from __future__ import annotations

import numpy as np

from rkfleet.errors import Invalid
from toolkit.checkpoint.base import Array
from toolkit.simulate.hyperparameters import Hyperparameters

__all__ = ["KvCache"]


class KvCache:
    """Room for `capacity` tokens.

    Attributes:
        length: Tokens that all layers hold.
        keys: Shape (layers, kv_heads, capacity, head_dim); values alike with value_dim.
    """

    def __init__(self, hyperparameters: Hyperparameters, capacity: int) -> None:
        if capacity < 1:
            raise Invalid(f"a context of {capacity} tokens has no room")
        sizes = hyperparameters.layers, hyperparameters.kv_heads, capacity
        self.capacity = capacity
        self.length = 0
        self.keys = np.zeros((*sizes, hyperparameters.head_dim), np.float32)
        self.values = np.zeros((*sizes, hyperparameters.value_dim), np.float32)

    def append(self, layer: int, keys: Array, values: Array) -> tuple[Array, Array]:
        """Store new tokens of a layer, (tokens, kv_heads, dim), and return those of all tokens, (kv_heads, length + tokens, dim).

        `length` moves when the whole network has seen the tokens, by `advance`.
        """
        end = self.length + keys.shape[0]
        if end > self.capacity:
            raise Invalid(f"{end} tokens do not fit into a context of {self.capacity}")
        self.keys[layer, :, self.length : end] = keys.transpose(1, 0, 2)
        self.values[layer, :, self.length : end] = values.transpose(1, 0, 2)
        return self.keys[layer, :, :end], self.values[layer, :, :end]

    def advance(self, tokens: int) -> None:
        """Count tokens that every layer has stored."""
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on."""
        self.length = min(self.length, length)
