"""The two halves of a block as families with fused tensors share them: attention over one `attn_qkv`, and the gated feed-forward.

In: a network, normed activations (tokens, hidden), a step. Out: what the sublayer adds, (tokens, hidden), before any residual. Formulas:
grouped-query attention, arXiv:2305.13245; SwiGLU, arXiv:2002.05202.
"""

from __future__ import annotations

import numpy as np

from toolkit.checkpoint.base import Array
from toolkit.simulate.families.base import Step
from toolkit.simulate.layers import attend, default_scale, rotate, silu
from toolkit.simulate.network import Network

__all__ = ["fused_attention", "gated_feed_forward"]


def fused_attention(network: Network, normed: Array, step: Step) -> Array:
    """Attend with queries, keys and values from one layer `attn_qkv`, whose rows are all queries, then all keys, then all values."""
    sizes, tokens = network.hyperparameters, normed.shape[0]
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    query, key, value = np.split(network.linear(step.layer, "attn_qkv")(normed), (queries, queries + keys), axis=1)
    turned = [rotate(rows.reshape(tokens, -1, sizes.head_dim), step.table, interleaved=sizes.rope_interleaved) for rows in (query, key)]
    seen = step.cache.append(step.layer, turned[1], value.reshape(tokens, sizes.kv_heads, sizes.value_dim))
    mixed = attend(turned[0], *seen, scale=sizes.attention_scale or default_scale(sizes.head_dim))
    return network.linear(step.layer, "attn_output")(mixed)


def gated_feed_forward(network: Network, normed: Array, step: Step) -> Array:
    """Return down(silu(gate(x)) * up(x)); where the block has no `ffn_gate`, the first half of `ffn_up`'s rows is the gate."""
    up = network.linear(step.layer, "ffn_up")(normed)
    if network.has(step.layer, "ffn_gate"):
        gate = network.linear(step.layer, "ffn_gate")(normed)
    else:
        gate, up = np.split(up, 2, axis=1)
    gate = silu(gate)
    gate *= up
    return network.linear(step.layer, "ffn_down")(gate)
