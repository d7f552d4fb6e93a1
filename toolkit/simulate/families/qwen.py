"""Qwen, the first generation (QWenLMHeadModel): one biased layer for query, key and value, rotary halves, SwiGLU.

`intermediate_size` counts both branches of the feed-forward, so each is half as wide; GGUF files keep the doubled number. Source:
arXiv:2309.16609; https://github.com/QwenLM/Qwen, `modeling_qwen.py`; GGUF conventions as llama.cpp's architecture `qwen`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from rkfleet.errors import Invalid
from toolkit.checkpoint.base import Array
from toolkit.simulate.families.base import Origin, Step
from toolkit.simulate.families.config import Config, check_heads
from toolkit.simulate.families.names import renamed
from toolkit.simulate.families.sublayers import fused_attention, gated_feed_forward
from toolkit.simulate.hyperparameters import Hyperparameters
from toolkit.simulate.layers import rms_norm
from toolkit.simulate.network import Network

__all__ = ["Qwen"]

_WHOLE: Final = {"token_embd": "transformer.wte", "output_norm": "transformer.ln_f", "output": "lm_head"}
_BLOCK: Final = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_gate": "mlp.w2",  # The published code multiplies w1(x) by silu(w2(x)).
    "ffn_up": "mlp.w1",
    "ffn_down": "mlp.c_proj",
}


class Qwen:
    """The family."""

    architecture = "qwen"
    hugging_face = ("QWenLMHeadModel",)

    def from_config(self, config: Mapping[str, Any]) -> Hyperparameters:
        """Read a config.json; see `Family`.

        Beyond `seq_length` the published code stretches positions (`use_dynamic_ntk`) and scales queries (`use_logn_attn`) by the
        length of the text; up to it both change nothing. The context ends there if either is set.
        """
        read = Config(config)
        read.expect("rotary_pct", 1.0, None)
        read.expect("no_bias", True, None)
        read.expect("scale_attn_weights", True, None)
        hidden, heads = read.count("hidden_size"), read.count("num_attention_heads")
        head_dim = read.count("kv_channels", hidden // heads)
        check_heads(("num_attention_heads", heads), ("num_attention_heads", heads), head_dim=head_dim)
        intermediate = read.count("intermediate_size")
        if intermediate % 2:
            raise Invalid(f"config.json: intermediate_size is {intermediate}, and two branches of Qwen's feed-forward cannot share it")
        context = read.count("max_position_embeddings", read.count("seq_length", 8192))
        if config.get("use_dynamic_ntk") or config.get("use_logn_attn"):
            context = min(context, read.count("seq_length", context))
        return Hyperparameters(
            architecture=self.architecture,
            layers=read.count("num_hidden_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            value_dim=head_dim,
            feed_forward=intermediate // 2,
            vocabulary=read.count("vocab_size"),
            context=context,
            norm_epsilon=read.number("layer_norm_epsilon", 1e-6),
            rope_base=read.positive("rotary_emb_base", 10000.0),
            rope_dimensions=head_dim,
        )

    def from_gguf(self, general: Hyperparameters, metadata: Mapping[str, Any]) -> Hyperparameters:  # noqa: ARG002 (see Family)
        """Add what is this family's own; see `Family`."""
        return msgspec.structs.replace(general, feed_forward=general.feed_forward // 2)

    def to_gguf(self, hyperparameters: Hyperparameters) -> dict[str, Any]:
        """Return the doubled width of the feed-forward, which takes the place of the plain one."""
        return {"qwen.feed_forward_length": hyperparameters.feed_forward * 2}

    def origins(self, hyperparameters: Hyperparameters, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Origin]:
        """Return where tensors come from; see `Family`."""
        return renamed(_WHOLE, _BLOCK, stem="transformer.h", layers=hyperparameters.layers, shapes=shapes)

    def block(self, network: Network, x: Array, step: Step) -> Array:
        """Return what one block makes of (tokens, hidden)."""
        epsilon = network.hyperparameters.norm_epsilon
        x = x + fused_attention(network, rms_norm(x, network.vector(step.layer, "attn_norm.weight"), epsilon), step)
        return x + gated_feed_forward(network, rms_norm(x, network.vector(step.layer, "ffn_norm.weight"), epsilon), step)

    def finish(self, network: Network, x: Array) -> Array:
        """Return the last norm of (tokens, hidden)."""
        return rms_norm(x, network.tensor("output_norm.weight"), network.hyperparameters.norm_epsilon)
