"""What of a model decides its speed and memory.

In: an opened model. Out: `Facts`: numbers of parameters, and what a token takes in the cache. Used by `model.py`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from toolkit.loading import ModelSource

__all__ = ["Facts", "facts_of"]

CACHE_BYTES: Final = 2  # Of a number in the runtime's cache: float16 (RKLLM has no other).


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a model.

    Attributes:
        name: What its files call it; empty if they do not.
        parameters: All numbers, a tied output layer counted once.
        cache_bytes_per_token: Keys and values of one token over all layers.
        attention_width: Layers times heads times head width, which attention costs grow with.
    """

    name: str
    parameters: int
    cache_bytes_per_token: int
    attention_width: int


def facts_of(model: ModelSource) -> Facts:
    """Return the sizes of an opened model."""
    sizes = model.hyperparameters
    name = model.metadata.get("general.name") or model.metadata.get("general.basename") or ""
    return Facts(
        name=str(name),
        parameters=sum(info.elements for info in model.tensors.values()),
        cache_bytes_per_token=sizes.layers * sizes.kv_heads * (sizes.head_dim + sizes.value_dim) * CACHE_BYTES,
        attention_width=sizes.layers * sizes.heads * sizes.head_dim,
    )
