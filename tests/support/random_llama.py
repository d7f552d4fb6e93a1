"""A network of random weights and a tokenizer of bytes, small enough to run thousands of tokens in a test."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from toolkit.checkpoint.base import Array, TensorInfo
from toolkit.simulate.families.llama import Llama
from toolkit.simulate.hyperparameters import Hyperparameters
from toolkit.simulate.network import Network

END = 256

SIZES = Hyperparameters(
    architecture="llama",
    layers=3,
    hidden=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    value_dim=8,
    feed_forward=48,
    vocabulary=257,
    context=64,
    norm_epsilon=1e-5,
    rope_dimensions=8,
    rope_interleaved=True,
)


class RandomSource:
    def __init__(self, sizes: Hyperparameters = SIZES, *, seed: int = 0) -> None:
        self.hyperparameters = sizes
        random = np.random.default_rng(seed)
        wide, narrow = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "token_embd.weight": (sizes.vocabulary, sizes.hidden),
            "output_norm.weight": (sizes.hidden,),
        }
        for layer in range(sizes.layers):
            block = {
                "attn_norm": (sizes.hidden,),
                "attn_q": (wide, sizes.hidden),
                "attn_k": (narrow, sizes.hidden),
                "attn_v": (narrow, sizes.hidden),
                "attn_output": (sizes.hidden, wide),
                "ffn_norm": (sizes.hidden,),
                "ffn_gate": (sizes.feed_forward, sizes.hidden),
                "ffn_up": (sizes.feed_forward, sizes.hidden),
                "ffn_down": (sizes.hidden, sizes.feed_forward),
            }
            shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
        self._values = {
            name: (random.normal(size=shape) * (0.4 if len(shape) == 2 else 0.1) + (len(shape) == 1)).astype(np.float32)
            for name, shape in shapes.items()
        }
        self.tensors = {name: TensorInfo(name, value.shape, "F32", value.nbytes) for name, value in self._values.items()}

    def read(self, name: str) -> Array:
        return self._values[name]


class Bytes:
    """A token for every byte, and an end."""

    size = 257
    beginning: int | None = None
    ends = frozenset({END})

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(one for one in tokens if one < END).decode(errors="replace")


def random_network(*, seed: int = 0, **changed: object) -> Network:
    return Network(RandomSource(msgspec.structs.replace(SIZES, **changed), seed=seed), Llama())
