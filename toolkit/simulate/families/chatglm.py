"""ChatGLM3 (and ChatGLM2, GLM-4 of 2024): half of every head turns, in neighbouring pairs; query, key and value come from one layer.

Gate and up of the feed-forward are one tensor too, the gate's rows first. Source: https://github.com/THUDM/ChatGLM3,
`modeling_chatglm.py`; GGUF conventions as llama.cpp's architecture `chatglm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from toolkit.checkpoint.base import Array
from toolkit.simulate.families.base import Origin, Step
from toolkit.simulate.families.config import Config, check_heads
from toolkit.simulate.families.names import renamed
from toolkit.simulate.families.sublayers import fused_attention, gated_feed_forward
from toolkit.simulate.hyperparameters import Hyperparameters
from toolkit.simulate.layers import rms_norm
from toolkit.simulate.network import Network

__all__ = ["ChatGlm"]

_WHOLE: Final = {
    "token_embd": "transformer.embedding.word_embeddings",
    "output_norm": "transformer.encoder.final_layernorm",
    "output": "transformer.output_layer",
}
_BLOCK: Final = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
_TURNING: Final = 0.5  # Share of a head's dimensions that turn: a constant of the published code.


class ChatGlm:
    """The family."""

    architecture = "chatglm"
    hugging_face = ("ChatGLMModel", "ChatGLMForConditionalGeneration")

    def from_config(self, config: Mapping[str, Any]) -> Hyperparameters:
        """Read a config.json; see `Family`.

        `apply_query_key_layer_scaling` divides by the layer's number before and multiplies by it after the scores, so it changes
        nothing. `rope_ratio` stretches the base, as in ChatGLM3-6B-32K and GLM-4.
        """
        read = Config(config)
        read.expect("rmsnorm", True, None)
        read.expect("post_layer_norm", True, None)
        read.expect("apply_residual_connection_post_layernorm", False, None)
        read.expect("original_rope", True, None)
        read.expect("pre_seq_len", None)
        read.expect("quantization_bit", 0, None)
        hidden, heads = read.count("hidden_size"), read.count("num_attention_heads")
        head_dim = read.count("kv_channels", hidden // heads)
        kv_heads = read.count("multi_query_group_num") if config.get("multi_query_attention", False) else heads
        check_heads(("num_attention_heads", heads), ("multi_query_group_num", kv_heads), head_dim=head_dim)
        return Hyperparameters(
            architecture=self.architecture,
            layers=read.count("num_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=head_dim,
            feed_forward=read.count("ffn_hidden_size"),
            vocabulary=read.count("padded_vocab_size"),
            context=read.count("seq_length"),
            norm_epsilon=read.number("layernorm_epsilon", 1e-5),
            rope_base=10000.0 * read.positive("rope_ratio", 1.0),
            rope_dimensions=int(head_dim * _TURNING),
            rope_interleaved=True,
        )

    def from_gguf(self, general: Hyperparameters, metadata: Mapping[str, Any]) -> Hyperparameters:
        """Add what is this family's own; see `Family`."""
        known = "chatglm.rope.dimension_count" in metadata
        turning = general.rope_dimensions if known else int(general.head_dim * _TURNING)
        return msgspec.structs.replace(general, rope_dimensions=turning, rope_interleaved=True)

    def to_gguf(self, hyperparameters: Hyperparameters) -> dict[str, Any]:
        """Return how many dimensions of a head turn."""
        return {"chatglm.rope.dimension_count": hyperparameters.rope_dimensions}

    def origins(self, hyperparameters: Hyperparameters, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Origin]:
        """Return where tensors come from; see `Family`. The file's `rotary_pos_emb.inv_freq` follows from the config and is left."""
        return renamed(_WHOLE, _BLOCK, stem="transformer.encoder.layers", layers=hyperparameters.layers, shapes=shapes)

    def block(self, network: Network, x: Array, step: Step) -> Array:
        """Return what one block makes of (tokens, hidden)."""
        epsilon = network.hyperparameters.norm_epsilon
        x = x + fused_attention(network, rms_norm(x, network.vector(step.layer, "attn_norm.weight"), epsilon), step)
        return x + gated_feed_forward(network, rms_norm(x, network.vector(step.layer, "ffn_norm.weight"), epsilon), step)

    def finish(self, network: Network, x: Array) -> Array:
        """Return the last norm of (tokens, hidden)."""
        return rms_norm(x, network.tensor("output_norm.weight"), network.hyperparameters.norm_epsilon)
