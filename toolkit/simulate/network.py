"""A network: weights in their places, and the way from tokens to logits.

In: a `Source` of tensors in the house's form, a family, a `LinearFactory`. Out: embeddings, hidden states, logits. It has no tokens, no
text and no sampling: that is `toolkit.session`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from rkfleet.errors import Invalid
from toolkit.checkpoint.base import Array, TensorInfo
from toolkit.simulate.cache import KvCache
from toolkit.simulate.hyperparameters import Hyperparameters
from toolkit.simulate.layers import rotary_table
from toolkit.simulate.linear import Dense, Linear, LinearFactory
from toolkit.simulate.rope import amplitude, frequencies, with_stored_factors

if TYPE_CHECKING:
    from toolkit.simulate.families.base import Family

__all__ = ["Network", "Source"]

_VECTORS: Final = ("_norm", "rope_freqs", "rope_factors")
EMBEDDING: Final = "token_embd"
OUTPUT: Final = "output"


class Source(Protocol):
    """Tensors under GGUF names and in GGUF layout, whatever file they come from."""

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Sizes of the network."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by their GGUF names."""

    def read(self, name: str) -> Array:
        """Return one tensor as float32."""


class Network:
    """A model that can be run.

    Attributes:
        hyperparameters: Its sizes.
        embeddings: (vocabulary, hidden).
    """

    def __init__(self, source: Source, family: Family, factory: LinearFactory = Dense) -> None:
        self.family: Final = family
        self._tensors: Final[dict[str, Array]] = {}
        self._linears: dict[str, Linear] = {}
        for name in source.tensors:
            stem, _, kind = name.rpartition(".")
            if kind == "weight" and len(source.tensors[name].shape) == 2 and stem != EMBEDDING:
                bias = source.read(f"{stem}.bias") if f"{stem}.bias" in source.tensors else None
                self._linears[stem] = factory(stem, source.read(name), bias)
            elif not (kind == "bias" and len(source.tensors.get(f"{stem}.weight", source.tensors[name]).shape) == 2):
                self._tensors[name] = source.read(name)
        self.hyperparameters: Final = with_stored_factors(source.hyperparameters, self._tensors)
        self.embeddings: Final = self._tensors[f"{EMBEDDING}.weight"]
        if OUTPUT not in self._linears:  # Tied: the output layer is the embeddings.
            self._linears[OUTPUT] = factory(OUTPUT, self.embeddings, None)
        self._amplitude: Final = np.float32(amplitude(self.hyperparameters))
        self._local_frequencies: Final = frequencies(self.hyperparameters, local=True)

    def tensor(self, name: str) -> Array:
        """Return a tensor that is no linear layer.

        Raises:
            Invalid: The model lacks it.
        """
        try:
            return self._tensors[name]
        except KeyError as error:
            raise self._lacks(name) from error

    def vector(self, layer: int, name: str) -> Array:
        """Return a tensor of a block that is no linear layer, for example `attn_norm.weight`; errors as `tensor`."""
        return self.tensor(f"blk.{layer}.{name}")

    def has(self, layer: int, name: str) -> bool:
        """Whether a block has a tensor or a linear layer of that name."""
        return f"blk.{layer}.{name}" in self._tensors or f"blk.{layer}.{name}" in self._linears

    def linear(self, layer: int, name: str) -> Linear:
        """Return a linear layer of a block, for example `attn_q`; errors as `tensor`."""
        try:
            return self._linears[f"blk.{layer}.{name}"]
        except KeyError as error:
            raise self._lacks(f"blk.{layer}.{name}.weight") from error

    def _lacks(self, name: str) -> Invalid:
        return Invalid(f"the model has no tensor {name}, which {self.family.architecture} needs; take the whole model")

    @property
    def linears(self) -> Mapping[str, Linear]:
        """Every linear layer by its tensor's name without `.weight`, the output layer among them."""
        return self._linears

    def with_linears(self, others: Mapping[str, Linear]) -> Network:
        """Return this network with other layers in some places; everything else is shared."""
        network = copy.copy(self)
        network._linears = {**self._linears, **others}  # noqa: SLF001 (a network of its own)
        return network

    def embed(self, tokens: NDArray[np.integer] | list[int]) -> Array:
        """Return the embeddings of token ids, (tokens, hidden), scaled as the family has it."""
        x: Array = self.embeddings[np.asarray(tokens, dtype=np.int64)]
        return x * np.float32(self.hyperparameters.embedding_scale) if self.hyperparameters.embedding_scale != 1.0 else x

    def hidden(self, x: Array, cache: KvCache) -> Array:
        """Run new tokens, given as embeddings, through every block; the cache grows by them. Returns (tokens, hidden) after the norm."""
        from toolkit.simulate.families.base import Step  # noqa: PLC0415 (families are made of networks)

        sizes = self.hyperparameters
        positions = np.arange(cache.length, cache.length + x.shape[0], dtype=np.float32)
        cosine, sine = rotary_table(positions, frequencies(sizes, capacity=cache.capacity))
        table = cosine * self._amplitude, sine * self._amplitude
        local = rotary_table(positions, self._local_frequencies) if sizes.rope_base_local else table
        for layer in range(sizes.layers):
            x = self.family.block(self, x, Step(layer, cache, local if layer in sizes.local_layers else table))
        cache.advance(x.shape[0])
        return self.family.finish(self, x)

    def logits(self, hidden: Array) -> Array:
        """Return (tokens, vocabulary) of what `hidden` returned."""
        y = self._linears[OUTPUT](hidden)
        sizes = self.hyperparameters
        if sizes.logit_scale != 1.0:
            y *= np.float32(sizes.logit_scale)
        if sizes.final_softcap:
            y = np.float32(sizes.final_softcap) * np.tanh(y / np.float32(sizes.final_softcap))
        return y
