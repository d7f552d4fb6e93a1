"""config.json files of published models, by the fields that decide something, are read as the sizes that their publishers name."""

from __future__ import annotations

from typing import Any

import pytest

from toolkit.simulate.families.registry import family_of_config

PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen-1.8B": {
        "architectures": ["QWenLMHeadModel"],
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "kv_channels": 128,
        "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 8192,
        "no_bias": True,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": 8192,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "vocab_size": 151936,
    },
    "ChatGLM3-6B": {
        "architectures": ["ChatGLMModel"],
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "ffn_hidden_size": 13696,
        "hidden_size": 4096,
        "kv_channels": 128,
        "layernorm_epsilon": 1e-05,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "num_attention_heads": 32,
        "num_layers": 28,
        "original_rope": True,
        "padded_vocab_size": 65024,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": 8192,
    },
    "InternLM2-1.8B": {
        "architectures": ["InternLM2ForCausalLM"],
        "bias": False,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 32768,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 2.0, "type": "dynamic"},
        "rope_theta": 1000000,
        "vocab_size": 92544,
    },
    "MiniCPM-2B": {
        "architectures": ["MiniCPMForCausalLM"],
        "dim_model_base": 256,
        "hidden_act": "silu",
        "hidden_size": 2304,
        "intermediate_size": 5760,
        "max_position_embeddings": 4096,
        "num_attention_heads": 36,
        "num_hidden_layers": 40,
        "num_key_value_heads": 36,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "scale_depth": 1.4,
        "scale_emb": 12,
        "vocab_size": 122753,
    },
    "MiniCPM3-4B": {
        "architectures": ["MiniCPM3ForCausalLM"],
        "dim_model_base": 256,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "intermediate_size": 6400,
        "kv_lora_rank": 256,
        "max_position_embeddings": 32768,
        "num_attention_heads": 40,
        "num_hidden_layers": 62,
        "num_key_value_heads": 40,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "type": "longrope",
            "long_factor": [1.0] * 16,
            "short_factor": [1.0] * 16,
            "original_max_position_embeddings": 32768,
        },
        "scale_depth": 1.4,
        "scale_emb": 12,
        "vocab_size": 73448,
    },
}


FIELDS = ("layers", "heads", "kv_heads", "head_dim", "value_dim", "feed_forward", "context", "rope_base", "rope_dimensions")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen-1.8B", (24, 16, 16, 128, 128, 5504, 8192, 10000.0, 128)),
        ("ChatGLM3-6B", (28, 32, 2, 128, 128, 13696, 8192, 10000.0, 64)),
        ("InternLM2-1.8B", (24, 16, 8, 128, 128, 8192, 32768, 1000000.0, 128)),
        ("MiniCPM-2B", (40, 36, 36, 64, 64, 5760, 4096, 10000.0, 64)),
        ("MiniCPM3-4B", (62, 40, 40, 96, 64, 6400, 32768, 10000.0, 32)),
    ],
)
def test_sizes_of_published_models_are_read(name: str, expected: tuple[float, ...]) -> None:
    """Factors of longrope are ones here: that they are read is the matter of the tiny models."""
    config = PUBLISHED[name]
    sizes = family_of_config(config["architectures"]).from_config(config)
    assert tuple(getattr(sizes, field) for field in FIELDS) == expected
