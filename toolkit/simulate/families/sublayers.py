"""The two halves of a block as families with fused tensors share them: attention over one `attn_qkv`, and the gated feed-forward.

In: a network, normed activations (tokens, hidden), a step. Out: what the sublayer adds, (tokens, hidden), before any residual. Formulas:
grouped-query attention, arXiv:2305.13245; SwiGLU, arXiv:2002.05202.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from toolkit.checkpoint.base import Array
from toolkit.simulate.families.base import Step
from toolkit.simulate.layers import attend, default_scale, rms_norm, rotate, silu
from toolkit.simulate.network import Network

__all__ = ["attended", "attention", "fused_attention", "gated_feed_forward"]


def attention(network: Network, normed: Array, step: Step) -> Array:
    """Attend with `attn_q`, `attn_k`, `attn_v`, as the block and the sizes have it.

    Queries and keys are normed head by head where the block has `attn_q_norm`; they do not turn in layers of `nope_layers`; layers of
    `local_layers` see a window; scores are capped where there is a cap.
    """
    sizes, tokens, layer = network.hyperparameters, normed.shape[0], step.layer
    query = network.linear(layer, "attn_q")(normed).reshape(tokens, sizes.heads, sizes.head_dim)
    key = network.linear(layer, "attn_k")(normed).reshape(tokens, sizes.kv_heads, sizes.head_dim)
    value = network.linear(layer, "attn_v")(normed).reshape(tokens, sizes.kv_heads, sizes.value_dim)
    return attended(network, query, key, value, step)


def attended(network: Network, query: Array, key: Array, value: Array, step: Step) -> Array:
    """As `attention`, of queries, keys and values that are there, each (tokens, heads, dim)."""
    sizes, layer = network.hyperparameters, step.layer
    if network.has(layer, "attn_q_norm.weight"):
        query = rms_norm(query, network.vector(layer, "attn_q_norm.weight"), sizes.norm_epsilon)
        key = rms_norm(key, network.vector(layer, "attn_k_norm.weight"), sizes.norm_epsilon)
    if layer not in sizes.nope_layers:
        query = rotate(query, step.table, interleaved=sizes.rope_interleaved)
        key = rotate(key, step.table, interleaved=sizes.rope_interleaved)
    keys, values = step.cache.append(layer, key, value)
    scale, window = sizes.attention_scale or default_scale(sizes.head_dim), sizes.sliding_window if layer in sizes.local_layers else 0
    mixed = attend(query, keys, values, scale=scale, softcap=sizes.attention_softcap, window=window)
    return network.linear(layer, "attn_output")(mixed)


def fused_attention(network: Network, normed: Array, step: Step) -> Array:
    """Attend with queries, keys and values from one layer `attn_qkv`, whose rows are all queries, then all keys, then all values."""
    sizes, tokens = network.hyperparameters, normed.shape[0]
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    query, key, value = np.split(network.linear(step.layer, "attn_qkv")(normed), (queries, queries + keys), axis=1)
    by_head = query.reshape(tokens, sizes.heads, sizes.head_dim), key.reshape(tokens, sizes.kv_heads, sizes.head_dim)
    return attended(network, *by_head, value.reshape(tokens, sizes.kv_heads, sizes.value_dim), step)


def gated_feed_forward(network: Network, normed: Array, step: Step, activation: Callable[[Array], Array] = silu) -> Array:
    """Return down(activation(gate(x)) * up(x)); where the block has no `ffn_gate`, the first half of `ffn_up`'s rows is the gate."""
    up = network.linear(step.layer, "ffn_up")(normed)
    if network.has(step.layer, "ffn_gate"):
        gate = network.linear(step.layer, "ffn_gate")(normed)
    else:
        gate, up = np.split(up, 2, axis=1)
    gate = activation(gate)
    gate *= up
    return network.linear(step.layer, "ffn_down")(gate)
