"""MiniCPM: LLaMA's block with three scales: of embeddings, of what a block adds, and of the logits.

MiniCPM4 is this architecture with longrope. Source: arXiv:2404.06395; https://github.com/OpenBMB/MiniCPM, `modeling_minicpm.py`; GGUF
conventions as llama.cpp's architecture `minicpm`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np

from rkfleet.errors import Invalid
from toolkit.checkpoint.base import Array
from toolkit.simulate.families.base import Origin, Step
from toolkit.simulate.families.config import Config, check_heads
from toolkit.simulate.families.keys import stored_number
from toolkit.simulate.families.llama import Llama
from toolkit.simulate.families.longrope import factor_origins, longrope, longrope_keys, stored_longrope
from toolkit.simulate.families.sublayers import gated_feed_forward
from toolkit.simulate.hyperparameters import Hyperparameters
from toolkit.simulate.layers import attend, default_scale, rms_norm, rotate
from toolkit.simulate.network import Network

__all__ = ["MiniCpm", "read_scales", "scale_keys", "stored_scales"]

# What published MiniCPM has; llama.cpp takes them where a file names none. BASE_WIDTH is of the model that the tuning was made on.
EMBEDDING_SCALE: Final = 12.0
DEPTH_SCALE: Final = 1.4
BASE_WIDTH: Final = 256

_PROJECTIONS: Final = ("attn_q", "attn_k", "attn_v")


class MiniCpm(Llama):
    """The family."""

    architecture = "minicpm"
    hugging_face = ("MiniCPMForCausalLM",)

    def from_config(self, config: Mapping[str, Any]) -> Hyperparameters:
        """Read a config.json; see `Family`.

        `scale_emb` multiplies embeddings, `scale_depth` / sqrt(layers) what a block adds, `dim_model_base` / hidden the logits;
        `mup_denominator` is for draft models and has no part in it.
        """
        read = Config(config)
        if config.get("hidden_act", "silu") != "silu":
            raise Invalid(
                f"config.json: hidden_act is {config['hidden_act']!r}; MiniCPM is simulated with silu only. MiniCPM-S has fatrelu, and no "
                "runtime is known here that its result could be held against"
            )
        if config.get("sparse_config"):
            raise Invalid(
                f"config.json: sparse_config is {config['sparse_config']!r}; MiniCPM4 is simulated with dense attention only: "
                "take the field out to simulate it so"
            )
        read.expect("num_experts", 0, None)
        read.expect("use_output_gate", False, None)
        read.expect("use_output_norm", False, None)
        read.expect("attn_use_rope", True, None)
        hidden, heads, layers = read.count("hidden_size"), read.count("num_attention_heads"), read.count("num_hidden_layers")
        kv_heads, context = read.count("num_key_value_heads", heads), read.count("max_position_embeddings")
        head_dim = read.count("head_dim", hidden // heads)
        check_heads(("num_attention_heads", heads), ("num_key_value_heads", kv_heads), head_dim=head_dim)
        sizes = Hyperparameters(
            architecture=self.architecture,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=head_dim,
            feed_forward=read.count("intermediate_size"),
            vocabulary=read.count("vocab_size"),
            context=context,
            norm_epsilon=read.number("rms_norm_eps", 1e-6),
            rope_base=read.rope_theta(),
            rope_dimensions=head_dim,
            rope_interleaved=True,
            rope_scaling=longrope(read, context=context, pairs=head_dim // 2),
        )
        return read_scales(sizes, read)

    def from_gguf(self, general: Hyperparameters, metadata: Mapping[str, Any]) -> Hyperparameters:
        """Add what is this family's own; see `Family`."""
        scaled = stored_scales(general, metadata)
        return msgspec.structs.replace(scaled, rope_interleaved=True, rope_scaling=stored_longrope(general, metadata))

    def to_gguf(self, hyperparameters: Hyperparameters) -> dict[str, Any]:
        """Return the three scales, and what stretches positions."""
        return scale_keys(hyperparameters) | longrope_keys(hyperparameters)

    def origins(self, hyperparameters: Hyperparameters, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Origin]:
        """Return where tensors come from; see `Family`."""
        return super().origins(hyperparameters, shapes) | factor_origins(hyperparameters)

    def block(self, network: Network, x: Array, step: Step) -> Array:
        """Return what one block makes of (tokens, hidden)."""
        sizes, tokens = network.hyperparameters, x.shape[0]
        scale = np.float32(sizes.residual_scale)
        normed = rms_norm(x, network.vector(step.layer, "attn_norm.weight"), sizes.norm_epsilon)
        query, key, value = (network.linear(step.layer, name)(normed).reshape(tokens, -1, sizes.head_dim) for name in _PROJECTIONS)
        turned = [rotate(rows, step.table, interleaved=sizes.rope_interleaved) for rows in (query, key)]
        keys, values = step.cache.append(step.layer, turned[1], value)
        mixed = attend(turned[0], keys, values, scale=sizes.attention_scale or default_scale(sizes.head_dim))
        x = x + network.linear(step.layer, "attn_output")(mixed) * scale
        normed = rms_norm(x, network.vector(step.layer, "ffn_norm.weight"), sizes.norm_epsilon)
        return x + gated_feed_forward(network, normed, step) * scale


def read_scales(sizes: Hyperparameters, config: Config) -> Hyperparameters:
    """Return hyperparameters with the three scales of a config.json.

    Raises:
        Invalid: A field is missing, for the code of one publication has other defaults than that of the next; or it is no number.
    """
    return msgspec.structs.replace(
        sizes,
        embedding_scale=config.number("scale_emb"),
        residual_scale=config.number("scale_depth") / math.sqrt(sizes.layers),
        logit_scale=config.positive("dim_model_base") / sizes.hidden,
    )


def stored_scales(sizes: Hyperparameters, metadata: Mapping[str, Any]) -> Hyperparameters:
    """Return hyperparameters with the three scales of a GGUF file.

    A file's `logit_scale` divides. Without the keys, in files from before llama.cpp had them, scales are those of published models, as
    their code has them. llama.cpp (xllamacpp 2026.10) takes the same numbers then, but multiplies such a file's logits by hidden / 256
    where the publisher divides by it: its most likely token is the same, its probabilities are sharper.

    Raises:
        Invalid: A scale is no number, or logits would be divided by zero.
    """
    prefix = sizes.architecture
    divisor = stored_number(metadata, f"{prefix}.logit_scale", sizes.hidden / BASE_WIDTH)
    if not divisor:
        raise Invalid(f"GGUF key {prefix}.logit_scale is {divisor!r}; logits are divided by it")
    return msgspec.structs.replace(
        sizes,
        embedding_scale=stored_number(metadata, f"{prefix}.embedding_scale", EMBEDDING_SCALE),
        residual_scale=stored_number(metadata, f"{prefix}.residual_scale", DEPTH_SCALE / math.sqrt(sizes.layers)),
        logit_scale=1.0 / divisor,
    )


def scale_keys(hyperparameters: Hyperparameters) -> dict[str, float]:
    """Return the three scales as keys of a GGUF file."""
    prefix = hyperparameters.architecture
    return {
        f"{prefix}.embedding_scale": hyperparameters.embedding_scale,
        f"{prefix}.residual_scale": hyperparameters.residual_scale,
        f"{prefix}.logit_scale": 1.0 / hyperparameters.logit_scale,
    }
