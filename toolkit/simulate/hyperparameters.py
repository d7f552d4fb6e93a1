"""The numbers that make a network of a family: sizes, norms, rotary positions, scales.

In: a GGUF file's metadata (`from_gguf`), or a family's reading of a `config.json`. Out: one frozen `Hyperparameters`, and the metadata for
a GGUF file made of it (`to_gguf`). Names of keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "LLM".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec

from rkfleet.errors import Invalid

__all__ = ["COUNT_MAX", "Hyperparameters", "RopeScaling", "from_gguf", "to_gguf"]

COUNT_MAX: Final = 1 << 24  # Far above any size of a network; products of three still fit where sizes of tensors are held against files.


class RopeScaling(msgspec.Struct, frozen=True, kw_only=True):
    """How rotary positions are stretched beyond the context of training.

    Attributes:
        kind: `linear` divides positions; `llama3` keeps high frequencies; `longrope` has a factor for each frequency; `yarn` mixes.
        factors_short: For longrope, up to the original context; factors_long beyond it. One for each pair of dimensions.
    """

    kind: Literal["linear", "llama3", "longrope", "yarn"]
    factor: float = 1.0
    original_context: int = 0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    attention_factor: float = 0.0
    factors_short: tuple[float, ...] = ()
    factors_long: tuple[float, ...] = ()


class Hyperparameters(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a network that is not a weight. Zero means "has none" where a feature may be absent.

    Attributes:
        architecture: `general.architecture` of GGUF; chooses the family.
        head_dim: Width of a key (and query) head; value_dim that of a value head.
        rope_dimensions: Of each head, how many dimensions turn.
        rope_interleaved: Pairs are neighbours (2i, 2i+1), as llama.cpp's NORM; else halves (i, i+n/2), as its NEOX.
        embedding_scale: Factor on embeddings; residual_scale on what a block adds; logit_scale on logits.
        attention_scale: Factor on query times key; 0 stands for 1/sqrt(head_dim).
        attention_softcap: cap * tanh(x / cap) on scores; final_softcap on logits.
        sliding_window: Tokens that a local layer sees; local_layers names those layers.
        nope_layers: Layers without rotary positions.
        rope_base_local: Base of local layers where it differs.
        tied_output: Of a checkpoint of Hugging Face: the output layer is the embeddings; None where that follows from its tensors.
        query_rank: MiniCPM3's low-rank query and key-value sizes, with kv_rank.
    """

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    feed_forward: int
    vocabulary: int
    context: int
    norm_epsilon: float
    rope_base: float = 10000.0
    rope_dimensions: int = 0
    rope_interleaved: bool = False
    rope_scaling: RopeScaling | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    attention_scale: float = 0.0
    attention_softcap: float = 0.0
    final_softcap: float = 0.0
    sliding_window: int = 0
    local_layers: tuple[int, ...] = ()
    nope_layers: tuple[int, ...] = ()
    rope_base_local: float = 0.0
    tied_output: bool | None = None
    query_rank: int = 0
    kv_rank: int = 0


def from_gguf(metadata: Mapping[str, Any], *, vocabulary: int) -> Hyperparameters:
    """Return what the metadata of a GGUF file says; what is peculiar to a family, the family adds.

    Raises:
        Invalid: A key is missing or no number.
    """
    architecture = str(metadata.get("general.architecture", ""))

    def number(key: str, default: float | None = None) -> Any:
        value = metadata.get(f"{architecture}.{key}", default)
        if isinstance(value, list) and value and all(one == value[0] for one in value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise Invalid(f"GGUF key {architecture}.{key} is {value!r}, not a number")
        return value

    def count(key: str, default: int | None = None) -> int:
        value = number(key, default)
        if value != int(value) or not 1 <= value <= COUNT_MAX:
            raise Invalid(f"GGUF key {architecture}.{key} is {value!r}, not a whole number from 1 to {COUNT_MAX}")
        return int(value)

    def positive(key: str, default: float | None = None) -> float:
        value = float(number(key, default))
        if value <= 0:
            raise Invalid(f"GGUF key {architecture}.{key} is {value!r}, not above 0")
        return value

    hidden, heads = count("embedding_length"), count("attention.head_count")
    kv_heads = count("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise Invalid(f"GGUF key {architecture}.attention.head_count_kv is {kv_heads}, which does not divide head_count {heads}")
    head_dim = count("attention.key_length", hidden // heads)
    turning = int(number("rope.dimension_count", head_dim))
    if turning % 2 or not 0 <= turning <= head_dim:
        raise Invalid(f"GGUF key {architecture}.rope.dimension_count is {turning}, not an even number up to a head's {head_dim}")
    return Hyperparameters(
        architecture=architecture,
        layers=count("block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=count("attention.value_length", head_dim),
        feed_forward=count("feed_forward_length"),
        vocabulary=vocabulary,
        context=count("context_length"),
        norm_epsilon=positive("attention.layer_norm_rms_epsilon", metadata.get(f"{architecture}.attention.layer_norm_epsilon")),
        rope_base=positive("rope.freq_base", 10000.0),
        rope_dimensions=turning,
        rope_scaling=_stored_scaling(architecture, metadata, number),
    )


def _stored_scaling(architecture: str, metadata: Mapping[str, Any], number: Callable[..., Any]) -> RopeScaling | None:
    """Return linear stretching of positions; longrope, whose factors are tensors, is read by the families that have it."""
    kind = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if kind == "linear":
        factor = float(number("rope.scaling.factor", 1.0))
        if not 0 < factor < float("inf"):
            raise Invalid(f"GGUF key {architecture}.rope.scaling.factor is {factor!r}, not above 0")
        return RopeScaling(kind="linear", factor=factor) if factor != 1.0 else None
    if kind not in ("none", "longrope"):
        raise Invalid(f"GGUF key {architecture}.rope.scaling.type is {kind!r}; positions are simulated with none, linear and longrope")
    return None


def to_gguf(hyperparameters: Hyperparameters) -> dict[str, Any]:
    """Return the keys that GGUF files of every family have; what is peculiar to a family, its `to_gguf` adds.

    Counts are int, other numbers float. Rotary factors that differ from one pair of dimensions to the next are a tensor in GGUF, not a key.
    """
    sizes, name = hyperparameters, hyperparameters.architecture
    keys: dict[str, Any] = {
        "general.architecture": name,
        f"{name}.block_count": sizes.layers,
        f"{name}.context_length": sizes.context,
        f"{name}.embedding_length": sizes.hidden,
        f"{name}.feed_forward_length": sizes.feed_forward,
        f"{name}.attention.head_count": sizes.heads,
        f"{name}.attention.head_count_kv": sizes.kv_heads,
        f"{name}.attention.key_length": sizes.head_dim,
        f"{name}.attention.value_length": sizes.value_dim,
        f"{name}.attention.layer_norm_rms_epsilon": sizes.norm_epsilon,
        f"{name}.rope.freq_base": sizes.rope_base,
        f"{name}.rope.dimension_count": sizes.rope_dimensions,
        f"{name}.vocab_size": sizes.vocabulary,
    }
    scaling = sizes.rope_scaling
    if scaling is not None and scaling.kind in ("linear", "yarn"):
        keys[f"{name}.rope.scaling.type"] = scaling.kind
        keys[f"{name}.rope.scaling.factor"] = scaling.factor
        if scaling.original_context:
            keys[f"{name}.rope.scaling.original_context_length"] = scaling.original_context
    return keys
