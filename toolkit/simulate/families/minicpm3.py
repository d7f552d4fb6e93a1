"""MiniCPM3: MiniCPM's scales over attention with low-rank queries, keys and values (multi-head latent attention).

Of every head, the last dimensions of query and key turn; the turning part of the key is one for all heads. The cache holds keys and values
as heads see them, as llama.cpp's does for this architecture, so it is larger than the low rank would need; numbers are the same. Source:
https://github.com/OpenBMB/MiniCPM, `modeling_minicpm.py` of MiniCPM3-4B; transformers `models/minicpm3`; low-rank attention,
arXiv:2405.04434. GGUF conventions as llama.cpp's architecture `minicpm3`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np

from rkfleet.errors import Invalid
from toolkit.checkpoint.base import Array
from toolkit.simulate.families.base import Origin, Step
from toolkit.simulate.families.config import Config
from toolkit.simulate.families.keys import stored_count
from toolkit.simulate.families.longrope import factor_origins, longrope, longrope_keys, stored_longrope
from toolkit.simulate.families.minicpm import read_scales, scale_keys, stored_scales
from toolkit.simulate.families.names import renamed
from toolkit.simulate.families.sublayers import gated_feed_forward
from toolkit.simulate.hyperparameters import Hyperparameters
from toolkit.simulate.layers import attend, default_scale, rms_norm, rotate
from toolkit.simulate.network import Network

__all__ = ["MiniCpm3"]

_WHOLE: Final = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK: Final = {
    "attn_norm": "input_layernorm",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class MiniCpm3:
    """The family."""

    architecture = "minicpm3"
    hugging_face = ("MiniCPM3ForCausalLM",)

    def from_config(self, config: Mapping[str, Any]) -> Hyperparameters:
        """Read a config.json; see `Family`."""
        read = Config(config)
        read.expect("hidden_act", "silu", None)
        hidden, heads, layers = read.count("hidden_size"), read.count("num_attention_heads"), read.count("num_hidden_layers")
        kv_heads = read.count("num_key_value_heads", heads)
        if kv_heads != heads:
            raise Invalid(f"config.json: num_key_value_heads is {kv_heads}; low-rank attention has as many as num_attention_heads, {heads}")
        if "q_lora_rank" in config and config["q_lora_rank"] is None:
            raise Invalid("config.json: q_lora_rank is None; a plain query layer has no place in a GGUF file of this family")
        turning, context = read.count("qk_rope_head_dim", 32), read.count("max_position_embeddings")
        sizes = Hyperparameters(
            architecture=self.architecture,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=heads,
            head_dim=read.count("qk_nope_head_dim", 64) + turning,
            value_dim=read.count("v_head_dim", hidden // heads),
            feed_forward=read.count("intermediate_size"),
            vocabulary=read.count("vocab_size"),
            context=context,
            norm_epsilon=read.number("rms_norm_eps", 1e-5),
            rope_base=read.rope_theta(),
            rope_dimensions=turning,
            rope_scaling=longrope(read, context=context, pairs=turning // 2),
            query_rank=read.count("q_lora_rank", 768),
            kv_rank=read.count("kv_lora_rank", 256),
        )
        return read_scales(sizes, read)

    def from_gguf(self, general: Hyperparameters, metadata: Mapping[str, Any]) -> Hyperparameters:
        """Add what is this family's own; see `Family`.

        Raises:
            Invalid: A rank is missing, or a number is none.
        """
        return msgspec.structs.replace(
            stored_scales(general, metadata),
            value_dim=stored_count(metadata, "minicpm3.attention.value_length", general.hidden // general.heads),
            query_rank=stored_count(metadata, "minicpm3.attention.q_lora_rank"),
            kv_rank=stored_count(metadata, "minicpm3.attention.kv_lora_rank"),
            rope_scaling=stored_longrope(general, metadata),
        )

    def to_gguf(self, hyperparameters: Hyperparameters) -> dict[str, Any]:
        """Return ranks, scales and what stretches positions. llama.cpp has the scales of MiniCPM3-4B built in and reads none."""
        return {
            "minicpm3.attention.q_lora_rank": hyperparameters.query_rank,
            "minicpm3.attention.kv_lora_rank": hyperparameters.kv_rank,
            **scale_keys(hyperparameters),
            **longrope_keys(hyperparameters),
        }

    def origins(self, hyperparameters: Hyperparameters, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Origin]:
        """Return where tensors come from; see `Family`."""
        return renamed(_WHOLE, _BLOCK, stem="model.layers", layers=hyperparameters.layers, shapes=shapes) | factor_origins(hyperparameters)

    def block(self, network: Network, x: Array, step: Step) -> Array:
        """Return what one block makes of (tokens, hidden)."""
        sizes = network.hyperparameters
        scale = np.float32(sizes.residual_scale)
        normed = rms_norm(x, network.vector(step.layer, "attn_norm.weight"), sizes.norm_epsilon)
        x = x + self._attention(network, normed, step) * scale
        normed = rms_norm(x, network.vector(step.layer, "ffn_norm.weight"), sizes.norm_epsilon)
        return x + gated_feed_forward(network, normed, step) * scale

    def finish(self, network: Network, x: Array) -> Array:
        """Return the last norm of (tokens, hidden)."""
        return rms_norm(x, network.tensor("output_norm.weight"), network.hyperparameters.norm_epsilon)

    def _attention(self, network: Network, normed: Array, step: Step) -> Array:
        sizes, tokens = network.hyperparameters, normed.shape[0]
        still = sizes.head_dim - sizes.rope_dimensions
        low = rms_norm(
            network.linear(step.layer, "attn_q_a")(normed), network.vector(step.layer, "attn_q_a_norm.weight"), sizes.norm_epsilon
        )
        query = network.linear(step.layer, "attn_q_b")(low).reshape(tokens, sizes.heads, sizes.head_dim)
        compressed = network.linear(step.layer, "attn_kv_a_mqa")(normed)
        low, shared = compressed[:, : sizes.kv_rank], compressed[:, None, sizes.kv_rank :]
        low = rms_norm(low, network.vector(step.layer, "attn_kv_a_norm.weight"), sizes.norm_epsilon)
        expanded = network.linear(step.layer, "attn_kv_b")(low).reshape(tokens, sizes.heads, still + sizes.value_dim)
        shared = np.broadcast_to(rotate(shared, step.table, interleaved=False), (tokens, sizes.heads, sizes.rope_dimensions))
        query = np.concatenate([query[..., :still], rotate(query[..., still:], step.table, interleaved=False)], axis=-1)
        key = np.concatenate([expanded[..., :still], shared], axis=-1)
        keys, values = step.cache.append(step.layer, key, expanded[..., still:])
        mixed = attend(query, keys, values, scale=sizes.attention_scale or default_scale(sizes.head_dim))
        return network.linear(step.layer, "attn_output")(mixed)
