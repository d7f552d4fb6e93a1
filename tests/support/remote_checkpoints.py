"""The tiny models of tests/data/toolkit/families as checkpoints under the names of their publishers.

In: tensors of a GGUF file. Out: a config.json and tensors as `modeling_*.py` of the publisher has them. This goes the way that
`Family.origins` comes, written apart from it, head by head. Oracles load what it gives; tests hold `origins` against where it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DATA", "NAMES", "checkpoint", "fused_groups", "fused_pairs"]

DATA = Path(__file__).parents[1] / "data/toolkit/families"

Tensors = dict[str, NDArray[np.float32]]

LAYERS, HEADS, KV_HEADS, WIDTH, BASE = 2, 4, 2, 8, 5000.0

QWEN = {
    "token_embd": "transformer.wte",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "transformer.h.{}.ln_1",
    "attn_qkv": "transformer.h.{}.attn.c_attn",
    "attn_output": "transformer.h.{}.attn.c_proj",
    "ffn_norm": "transformer.h.{}.ln_2",
    "ffn_up": "transformer.h.{}.mlp.w1",
    "ffn_gate": "transformer.h.{}.mlp.w2",
    "ffn_down": "transformer.h.{}.mlp.c_proj",
}
CHATGLM = {
    "token_embd": "transformer.embedding.word_embeddings",
    "output_norm": "transformer.encoder.final_layernorm",
    "output": "transformer.output_layer",
    "attn_norm": "transformer.encoder.layers.{}.input_layernorm",
    "attn_qkv": "transformer.encoder.layers.{}.self_attention.query_key_value",
    "attn_output": "transformer.encoder.layers.{}.self_attention.dense",
    "ffn_norm": "transformer.encoder.layers.{}.post_attention_layernorm",
    "ffn_up": "transformer.encoder.layers.{}.mlp.dense_h_to_4h",
    "ffn_down": "transformer.encoder.layers.{}.mlp.dense_4h_to_h",
}
INTERNLM2 = {
    "token_embd": "model.tok_embeddings",
    "output_norm": "model.norm",
    "output": "output",
    "attn_norm": "model.layers.{}.attention_norm",
    "attn_output": "model.layers.{}.attention.wo",
    "ffn_norm": "model.layers.{}.ffn_norm",
    "ffn_gate": "model.layers.{}.feed_forward.w1",
    "ffn_up": "model.layers.{}.feed_forward.w3",
    "ffn_down": "model.layers.{}.feed_forward.w2",
}
LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "model.layers.{}.input_layernorm",
    "attn_v": "model.layers.{}.self_attn.v_proj",
    "attn_output": "model.layers.{}.self_attn.o_proj",
    "ffn_norm": "model.layers.{}.post_attention_layernorm",
    "ffn_gate": "model.layers.{}.mlp.gate_proj",
    "ffn_up": "model.layers.{}.mlp.up_proj",
    "ffn_down": "model.layers.{}.mlp.down_proj",
}
MINICPM3 = LLAMA | {
    "attn_q_a": "model.layers.{}.self_attn.q_a_proj",
    "attn_q_a_norm": "model.layers.{}.self_attn.q_a_layernorm",
    "attn_q_b": "model.layers.{}.self_attn.q_b_proj",
    "attn_kv_a_mqa": "model.layers.{}.self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "model.layers.{}.self_attn.kv_a_layernorm",
    "attn_kv_b": "model.layers.{}.self_attn.kv_b_proj",
}
TELECHAT2 = {
    "token_embd": "transformer.word_embeddings",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "transformer.h.{}.input_layernorm",
    "attn_output": "transformer.h.{}.self_attention.dense",
    "ffn_norm": "transformer.h.{}.post_attention_layernorm",
    "ffn_gate": "transformer.h.{}.mlp.gate_proj",
    "ffn_up": "transformer.h.{}.mlp.up_proj",
    "ffn_down": "transformer.h.{}.mlp.down_proj",
}
_NAMES: dict[str, dict[str, str]] = {
    "llama": LLAMA,
    "qwen": QWEN,
    "chatglm": CHATGLM,
    "internlm2": INTERNLM2,
    "minicpm": LLAMA,
    "minicpm4": LLAMA,
    "minicpm3": MINICPM3,
    "minicpm3-long": MINICPM3,
    "telechat2": TELECHAT2,
}
NAMES = tuple(_NAMES)

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": BASE,
        "hidden_act": "silu",
    },
    "qwen": {
        "architectures": ["QWenLMHeadModel"],
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "kv_channels": WIDTH,
        "intermediate_size": 96,
        "max_position_embeddings": 256,
        "seq_length": 256,
        "layer_norm_epsilon": 1e-5,
        "rotary_emb_base": BASE,
        "rotary_pct": 1.0,
        "no_bias": True,
        "scale_attn_weights": True,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
    },
    "chatglm": {
        "architectures": ["ChatGLMModel"],
        "padded_vocab_size": 40,
        "hidden_size": 32,
        "num_layers": LAYERS,
        "num_attention_heads": HEADS,
        "multi_query_attention": True,
        "multi_query_group_num": KV_HEADS,
        "kv_channels": WIDTH,
        "ffn_hidden_size": 48,
        "seq_length": 256,
        "layernorm_epsilon": 1e-5,
        "rope_ratio": 0.5,
        "rmsnorm": True,
        "post_layer_norm": True,
        "apply_residual_connection_post_layernorm": False,
        "apply_query_key_layer_scaling": True,
        "original_rope": True,
    },
    "internlm2": {
        "architectures": ["InternLM2ForCausalLM"],
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": BASE,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "hidden_act": "silu",
        "bias": False,
    },
    "minicpm": {
        "architectures": ["MiniCPMForCausalLM"],
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": BASE,
        "hidden_act": "silu",
        "scale_emb": 5,
        "scale_depth": 0.7 * LAYERS**0.5,
        "dim_model_base": 12.8,
    },
    "minicpm3": {
        "architectures": ["MiniCPM3ForCausalLM"],
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": BASE,
        "hidden_act": "silu",
        "q_lora_rank": 16,
        "kv_lora_rank": 12,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 256,
    },
    "telechat2": {
        "architectures": ["TeleChat2ForCausalLM"],
        "vocab_size": 40,
        "hidden_size": 32,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "num_key_value_heads": KV_HEADS,
        "ffn_hidden_size": 48,
        "layer_norm_epsilon": 1e-5,
        "training_seqlen": 256,
        "base_seqlen": 64,
        "rope_theta": BASE,
        "hidden_act": "silu",
        "apply_residual_connection_post_layernorm": False,
        "embed_layernorm": False,
    },
}
_LONG = {"minicpm3": 256, "minicpm3-long": 128, "minicpm4": 128}


def checkpoint(name: str, tensors: Mapping[str, NDArray[np.float32]]) -> tuple[dict[str, Any], Tensors]:
    """Return the config.json and the tensors of a tiny model as its publisher would have them."""
    config = dict(CONFIGS.get(name) or CONFIGS[name.partition("-")[0].replace("minicpm4", "minicpm")])
    if name in _LONG:
        config["rope_scaling"] = {
            "rope_type": "longrope",
            "short_factor": tensors["rope_factors_short.weight"].tolist(),
            "long_factor": tensors["rope_factors_long.weight"].tolist(),
            "original_max_position_embeddings": _LONG[name],
        }
        if _LONG[name] == 128:
            config["rope_scaling"]["attention_factor"] = 1.25
    found: Tensors = {}
    for ours, values in tensors.items():
        stem, _, kind = ours.rpartition(".")
        layer = stem.split(".")[1] if stem.startswith("blk.") else ""
        theirs = _NAMES[name].get(stem.split(".")[-1])
        if theirs is not None:
            found[f"{theirs.format(layer)}.{kind}"] = values
    for layer in range(LAYERS):
        found |= _projections(name, layer, tensors)
    return config, found


def fused_groups(
    query: NDArray[np.float32], key: NDArray[np.float32], value: NDArray[np.float32], *, heads: int, kv_heads: int
) -> NDArray[np.float32]:
    """Return InternLM2's `wqkv`: for each key-value head the rows of its queries, of its key, of its value."""
    share = heads // kv_heads
    queries, keys, values = _heads(query, heads), _heads(key, kv_heads), np.split(value, kv_heads)
    return np.concatenate([part for at in range(kv_heads) for part in (*queries[at * share : (at + 1) * share], keys[at], values[at])])


def fused_pairs(key: NDArray[np.float32], value: NDArray[np.float32], *, kv_heads: int) -> NDArray[np.float32]:
    """Return TeleChat2's `key_value`: for each head the rows of its key, then of its value."""
    return np.concatenate([part for pair in zip(_heads(key, kv_heads), np.split(value, kv_heads), strict=True) for part in pair])


def _projections(name: str, layer: int, tensors: Mapping[str, NDArray[np.float32]]) -> Tensors:
    if name not in ("llama", "internlm2", "minicpm", "minicpm4", "telechat2"):
        return {}
    query, key, value = (tensors[f"blk.{layer}.attn_{letter}.weight"] for letter in "qkv")
    match name:
        case "internlm2":
            fused = fused_groups(query, key, value, heads=HEADS, kv_heads=KV_HEADS)
            return {f"model.layers.{layer}.attention.wqkv.weight": fused}
        case "telechat2":
            return {
                f"transformer.h.{layer}.self_attention.query.weight": np.concatenate(_heads(query, HEADS)),
                f"transformer.h.{layer}.self_attention.key_value.weight": fused_pairs(key, value, kv_heads=KV_HEADS),
            }
        case _:
            return {
                f"model.layers.{layer}.self_attn.q_proj.weight": np.concatenate(_heads(query, HEADS)),
                f"model.layers.{layer}.self_attn.k_proj.weight": np.concatenate(_heads(key, KV_HEADS)),
            }


def _heads(rows: NDArray[np.float32], heads: int) -> list[NDArray[np.float32]]:
    """Return every head's rows with the first of every pair before all the second ones."""
    return [np.concatenate([head[0::2], head[1::2]]) for head in np.split(rows, heads)]
