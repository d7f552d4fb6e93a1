"""What the families share: norms, rotary positions, attention, feed-forward.

Pure functions over float32 arrays; shapes are (tokens, features) unless said otherwise. Formulas: RMSNorm, arXiv:1910.07467; rotary
positions, arXiv:2104.09864; grouped-query attention, arXiv:2305.13245; SwiGLU, arXiv:2002.05202; LayerNorm, arXiv:1607.06450; GELU and its
approximation by tanh, arXiv:1606.08415.
"""

from __future__ import annotations

import math

import numpy as np

from toolkit.checkpoint.base import Array

__all__ = ["attend", "default_scale", "gelu_tanh", "layer_norm", "rms_norm", "rotary_table", "rotate", "silu"]

_GELU_INNER = np.float32(math.sqrt(2 / math.pi))


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    """Return x / sqrt(mean(x^2) + epsilon) * weight, over the last axis."""
    squares = np.einsum("...i,...i->...", x, x)[..., None]
    scale = 1.0 / np.sqrt(squares / np.float32(x.shape[-1]) + np.float32(epsilon))
    y: Array = x * scale
    y *= weight
    return y


def layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> Array:
    """Return (x - mean) / sqrt(variance + epsilon) * weight + bias, over the last axis."""
    y: Array = x - x.mean(axis=-1, keepdims=True)
    squares = np.einsum("...i,...i->...", y, y)[..., None]
    y *= 1.0 / np.sqrt(squares / np.float32(x.shape[-1]) + np.float32(epsilon))
    y *= weight
    y += bias
    return y


def gelu_tanh(x: Array) -> Array:
    """Return x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))."""
    y: Array = x * x
    y *= np.float32(0.044715)
    y += 1.0
    y *= x
    y *= _GELU_INNER
    np.tanh(y, out=y)
    y += 1.0
    y *= x
    y *= np.float32(0.5)
    return y


def silu(x: Array) -> Array:
    """Return x * sigmoid(x)."""
    y: Array = np.negative(x)
    np.exp(y, out=y)
    y += 1.0
    np.divide(x, y, out=y)
    return y


def rotary_table(positions: Array, frequencies: Array) -> tuple[Array, Array]:
    """Return cosines and sines of position times frequency, each (tokens, 1, pairs)."""
    angles = np.outer(positions.astype(np.float32), frequencies.astype(np.float32)).astype(np.float32)[:, None, :]
    return np.cos(angles), np.sin(angles)


def rotate(x: Array, table: tuple[Array, Array], *, interleaved: bool) -> Array:
    """Turn pairs of the first dimensions of every head of (tokens, heads, dim) by the table; further dimensions stay."""
    cosine, sine = table
    pairs = cosine.shape[-1]
    y = x.copy()
    if interleaved:
        first, second = x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2]
        y[..., 0 : 2 * pairs : 2] = first * cosine - second * sine
        y[..., 1 : 2 * pairs : 2] = first * sine + second * cosine
    else:
        first, second = x[..., :pairs], x[..., pairs : 2 * pairs]
        y[..., :pairs] = first * cosine - second * sine
        y[..., pairs : 2 * pairs] = first * sine + second * cosine
    return y


def attend(query: Array, keys: Array, values: Array, *, scale: float, softcap: float = 0.0, window: int = 0) -> Array:
    """Causal attention of the newest tokens over all of them.

    Args:
        query: (tokens, heads, dim), the newest tokens.
        keys: (kv_heads, all tokens, dim), the newest ones last.
        values: As keys, with a width of their own.
        scale: Factor on query times key.
        softcap: cap * tanh(x / cap) on scores; 0 for none.
        window: Tokens that each one sees, itself among them; 0 for all.

    Returns:
        (tokens, heads * value width).
    """
    tokens, heads, dim = query.shape
    kv_heads, seen, _ = keys.shape
    group = heads // kv_heads
    grouped = query.reshape(tokens, kv_heads, group, dim).transpose(1, 2, 0, 3).reshape(kv_heads, group * tokens, dim)
    scores: Array = grouped @ keys.transpose(0, 2, 1)
    scores *= np.float32(scale)
    if softcap:
        scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
    scores = scores.reshape(kv_heads, group, tokens, seen)
    if tokens > 1 or (window and seen > window):
        here = np.arange(seen - tokens, seen)[:, None]
        there = np.arange(seen)[None, :]
        hidden = there > here
        if window:
            hidden |= there <= here - window
        scores += np.where(hidden, np.float32(-np.inf), np.float32(0))
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    mixed: Array = scores.reshape(kv_heads, group * tokens, seen) @ values
    width = values.shape[-1]
    mixed = mixed.reshape(kv_heads, group, tokens, width).transpose(2, 0, 1, 3)
    joined: Array = np.ascontiguousarray(mixed).reshape(tokens, heads * width)
    return joined


def default_scale(head_dim: int) -> float:
    """Return 1/sqrt(head_dim)."""
    return 1.0 / math.sqrt(head_dim)
