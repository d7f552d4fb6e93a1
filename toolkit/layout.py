"""Whether tensors have the shapes that hyperparameters say, before any is read.

In: what the head of a file says, and sizes. Out: nothing, or the first tensor that does not fit, named. Called by `loading.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rkfleet.errors import Invalid
from toolkit.checkpoint.base import TensorInfo
from toolkit.simulate.hyperparameters import Hyperparameters

__all__ = ["check_layout"]

_ALWAYS: Final = ("attn_output.weight", "ffn_down.weight", "ffn_up.weight")
_QUERIES: Final = ("attn_q.weight", "attn_qkv.weight", "attn_q_b.weight")  # Alone, with keys and values, or of low rank: one of them.


def check_layout(path: Path, sizes: Hyperparameters, tensors: Mapping[str, TensorInfo]) -> None:
    """See that tensors fit the sizes.

    Raises:
        Invalid: A block lacks a tensor that others have, or a shape is another than the sizes make it.
    """
    if sizes.layers > len(tensors):
        raise Invalid(f"model {str(path)!r} has {sizes.layers} layers by its own account and {len(tensors)} tensors")
    blocks: dict[int, set[str]] = {layer: set() for layer in range(sizes.layers)}
    for name in tensors:
        if not name.startswith("blk."):
            continue
        number, _, rest = name.removeprefix("blk.").partition(".")
        if not number.isascii() or not number.isdigit() or len(number) > 9 or int(number) not in blocks:
            raise Invalid(f"model {str(path)!r} has tensor {name!r}, and {sizes.layers} layers only")
        blocks[int(number)].add(rest)
    everywhere = blocks.get(0, set())
    for layer, found in blocks.items():
        missing = [name for name in _ALWAYS if name not in found]
        missing += sorted(everywhere - found)
        if not any(name in found for name in _QUERIES):
            missing.append(_QUERIES[0])
        if missing:
            raise Invalid(f"model {str(path)!r} has no tensor blk.{layer}.{missing[0]}")
    for name, info in tensors.items():
        wanted = _shapes(sizes, name)
        if wanted and info.shape not in wanted:
            raise Invalid(f"model {str(path)!r}: tensor {name} has shape {info.shape}, its sizes make {' or '.join(map(str, wanted))}")


def _shapes(sizes: Hyperparameters, name: str) -> list[tuple[int, ...]]:
    """Return the shapes that a tensor may have; none for one whose shape is its family's affair."""
    hidden, wide = sizes.hidden, sizes.feed_forward
    query, key, value = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim, sizes.kv_heads * sizes.value_dim
    if name in ("token_embd.weight", "output.weight"):
        return [(sizes.vocabulary, hidden)]
    kind = name.split(".", 2)[2] if name.startswith("blk.") and name.count(".") > 2 else name
    known: dict[str, list[tuple[int, ...]]] = {
        "output_norm.weight": [(hidden,)],
        "attn_norm.weight": [(hidden,)],
        "ffn_norm.weight": [(hidden,)],
        "attn_q.weight": [(query, hidden)],
        "attn_q.bias": [(query,)],
        "attn_k.weight": [(key, hidden)],
        "attn_k.bias": [(key,)],
        "attn_v.weight": [(value, hidden)],
        "attn_v.bias": [(value,)],
        "attn_qkv.weight": [(query + key + value, hidden)],
        "attn_qkv.bias": [(query + key + value,)],
        "attn_output.weight": [(hidden, sizes.heads * sizes.value_dim)],
        "ffn_gate.weight": [(wide, hidden)],
        "ffn_up.weight": [(wide, hidden), (2 * wide, hidden)],  # Gate and up in one, in some families.
        "ffn_down.weight": [(hidden, wide)],
    }
    return known.get(kind, [])
