"""An adapter in the house's form: for some linear layers, two thin matrices whose product is added to the weight.

In: what `peft` and `gguf` beside this file read. Out: an `Adapter`: `factory` keeps it apart (y += scale * (x A^T) B^T), `joined` adds it
to the weights before a layer is made, `JoinedSource` is a whole model with it in. Source: arXiv:2106.09685; rank-stabilized scale,
arXiv:2312.03732.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from rkfleet.errors import Invalid
from toolkit.checkpoint.base import Array, TensorInfo
from toolkit.simulate.hyperparameters import Hyperparameters
from toolkit.simulate.linear import Linear, LinearFactory
from toolkit.simulate.network import EMBEDDING, OUTPUT, Source

__all__ = ["Adapter", "JoinedSource", "LowRank"]

_WEIGHT: Final = ".weight"


class LowRank(msgspec.Struct, frozen=True):
    """The correction of one layer.

    Attributes:
        down: (rank, in_features), A of the paper.
        up: (out_features, rank), B, its rows in the order of the house's form.
        scale: alpha / rank, or alpha / sqrt(rank) if rank-stabilized.
    """

    down: Array
    up: Array
    scale: float

    def delta(self, scale: float = 1.0) -> Array:
        """Return what is added to the weight, (out_features, in_features)."""
        difference: Array = self.up @ self.down
        difference *= np.float32(self.scale * scale)
        return difference


class Adapter:
    """A LoRA for a model.

    Attributes:
        path: Where it came from.
        layers: Corrections by tensor name without `.weight`, as a `LinearFactory` is given it.
    """

    def __init__(self, path: Path, layers: Mapping[str, LowRank]) -> None:
        if not layers:
            raise Invalid(f"adapter {str(path)!r} changes no layer")
        self.path: Final = path
        self.layers: Final = dict(layers)

    def check(self, source: Source) -> None:
        """See that it fits a model.

        Raises:
            Invalid: The model lacks a layer, or one has another shape; the message names it.
        """
        for name, low_rank in self.layers.items():
            tied = name == OUTPUT and f"{OUTPUT}{_WEIGHT}" not in source.tensors
            info = source.tensors.get(f"{EMBEDDING if tied else name}{_WEIGHT}")
            shape = (low_rank.up.shape[0], low_rank.down.shape[1])
            if info is None:
                raise Invalid(f"adapter {str(self.path)!r} changes {name}, which the model does not have; it was made for another model")
            if info.shape != shape:
                raise Invalid(
                    f"adapter {str(self.path)!r} changes {name} as {shape}, the model has {info.shape}; it was made for another model"
                )

    def factory(self, inner: LinearFactory, scale: float = 1.0) -> LinearFactory:
        """Return a factory whose layers add the correction to what those of `inner` compute; weights stay as they are.

        Args:
            inner: Makes the layers.
            scale: Factor on the adapter's own.

        The layers raise Invalid when they are made for a weight of another shape.
        """

        def make(name: str, weight: Array, bias: Array | None) -> Linear:
            low_rank = self.layers.get(name)
            layer = inner(name, weight, bias)
            if low_rank is None or scale == 0.0:
                return layer
            self._fit(name, low_rank, weight.shape)
            return _Apart(layer, low_rank, scale)

        return make

    def joined(self, inner: LinearFactory, scale: float = 1.0) -> LinearFactory:
        """Return a factory that hands weights with the correction added to `inner`; arguments and errors as `factory`."""

        def make(name: str, weight: Array, bias: Array | None) -> Linear:
            return inner(name, self.join(name, weight, scale), bias)

        return make

    def join(self, name: str, weight: Array, scale: float = 1.0) -> Array:
        """Return a layer's weight with the correction added; the weight itself if there is none for it.

        Raises:
            Invalid: The weight has another shape than the correction.
        """
        low_rank = self.layers.get(name)
        if low_rank is None or scale == 0.0:
            return weight
        self._fit(name, low_rank, weight.shape)
        delta = low_rank.delta(scale)
        delta += weight
        return delta

    def _fit(self, name: str, low_rank: LowRank, shape: Sequence[int]) -> None:
        wanted = (low_rank.up.shape[0], low_rank.down.shape[1])
        if tuple(shape) != wanted:
            raise Invalid(
                f"adapter {str(self.path)!r} changes {name} as {wanted}, the model has {tuple(shape)}; it was made for another model"
            )


class _Apart:
    """A layer and its correction, side by side."""

    def __init__(self, layer: Linear, low_rank: LowRank, scale: float) -> None:
        self._layer: Final = layer
        self._down: Final = np.ascontiguousarray(low_rank.down.T)
        self._up: Final = np.ascontiguousarray(low_rank.up.T) * np.float32(low_rank.scale * scale)

    def __call__(self, x: Array) -> Array:
        y = self._layer(x)
        y += (x @ self._down) @ self._up
        return y


class JoinedSource:
    """A model with adapters in its weights, tensor by tensor as they are read."""

    def __init__(self, source: Source, adapters: Sequence[tuple[Adapter, float]]) -> None:
        for adapter, _ in adapters:
            adapter.check(source)
            if OUTPUT in adapter.layers and f"{OUTPUT}{_WEIGHT}" not in source.tensors:
                raise Invalid(
                    f"adapter {str(adapter.path)!r} changes the output layer, which this model shares with its embeddings; keep it apart"
                )
        self.source: Final = source
        self.adapters: Final = tuple(adapters)
        self.hyperparameters: Final[Hyperparameters] = source.hyperparameters
        self.tensors: Final[Mapping[str, TensorInfo]] = source.tensors

    def changes(self, name: str) -> bool:
        """Whether a tensor is another one than the model's own."""
        stem = name.removesuffix(_WEIGHT)
        return name.endswith(_WEIGHT) and any(stem in adapter.layers and scale for adapter, scale in self.adapters)

    def read(self, name: str) -> Array:
        """Return one tensor as float32."""
        value = self.source.read(name)
        if name.endswith(_WEIGHT):
            for adapter, scale in self.adapters:
                value = adapter.join(name.removesuffix(_WEIGHT), value, scale)
        return value
