"""Context shift: when the window is full, the oldest half behind the kept beginning goes, and what stays moves to the front.

In: a network and its full cache. Out: the cache, shorter. Keys carry their positions as turns of pairs of dimensions (arXiv:2104.09864), so
those that move are turned back by the distance; values carry none. Turns add up, so the result is what keys computed at the new positions
would be. As llama.cpp does it (`llama_memory_seq_rm`, `llama_memory_seq_add`), and by every account the RKLLM runtime.
"""

from __future__ import annotations

import numpy as np

from toolkit.simulate.cache import KvCache
from toolkit.simulate.layers import rotary_table, rotate
from toolkit.simulate.network import Network
from toolkit.simulate.rope import frequencies

__all__ = ["dropped", "shift"]


def dropped(length: int, keep: int) -> int:
    """Return how many tokens a shift drops of a window of that length: half of what is not kept, at least one."""
    return max(1, (length - keep) // 2)


def shift(network: Network, cache: KvCache, keep: int, drop: int) -> None:
    """Drop `drop` tokens behind the first `keep`, and move the later ones to their place.

    Layers without rotary positions keep their keys as they are; local layers turn by their own frequencies.
    """
    sizes = network.hyperparameters
    start, end = keep + drop, cache.length
    back = np.array([-drop], np.float32)
    table = rotary_table(back, frequencies(sizes, capacity=cache.capacity))
    local = rotary_table(back, frequencies(sizes, local=True)) if sizes.rope_base_local else table
    # Keys of low-rank attention end with the part that turns (arXiv:2405.04434, 2.1.3); all others begin with it.
    still = sizes.head_dim - sizes.rope_dimensions if sizes.kv_rank else 0
    for layer in range(sizes.layers):
        moved = cache.keys[layer, :, start:end].copy()
        if layer not in sizes.nope_layers:
            turned = rotate(moved[..., still:], local if layer in sizes.local_layers else table, interleaved=sizes.rope_interleaved)
            moved[..., still:] = turned
        cache.keys[layer, :, keep : end - drop] = moved
        cache.values[layer, :, keep : end - drop] = cache.values[layer, :, start:end].copy()
    cache.truncate(end - drop)
