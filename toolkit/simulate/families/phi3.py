"""Phi-3, Phi-3.5, Phi-4: LLaMA's block with query, key and value in one tensor, gate and up in another, longrope, a sliding window.

Source: arXiv:2404.14219; transformers `models/phi3/modeling_phi3.py`; GGUF conventions as llama.cpp's architecture `phi3`, which keeps
both fused tensors as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from toolkit.checkpoint.base import Array
from toolkit.simulate.families.base import Origin, Step
from toolkit.simulate.families.config import Config
from toolkit.simulate.families.decoder import decoder, decoder_origins
from toolkit.simulate.families.keys import stored_count
from toolkit.simulate.families.longrope import factor_origins, longrope_keys, stored_longrope
from toolkit.simulate.families.sublayers import fused_attention, gated_feed_forward
from toolkit.simulate.hyperparameters import Hyperparameters
from toolkit.simulate.layers import rms_norm
from toolkit.simulate.network import Network

__all__ = ["Phi3"]

_BLOCK: Final = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}


class Phi3:
    """The family."""

    architecture = "phi3"
    hugging_face = ("Phi3ForCausalLM",)

    def from_config(self, config: Mapping[str, Any]) -> Hyperparameters:
        """Read a config.json; see `Family`. A window that is as long as the context hides nothing and is left out."""
        read = Config(config)
        read.expect("hidden_act", "silu", None)
        sizes = decoder(read, self.architecture, epsilon=("rms_norm_eps", 1e-5), partial=1.0)
        return _windowed(sizes, read.count("sliding_window", sizes.context))

    def from_gguf(self, general: Hyperparameters, metadata: Mapping[str, Any]) -> Hyperparameters:
        """Add what is this family's own; see `Family`. llama.cpp ignores the window of this architecture; the toolkit does not."""
        key = f"{self.architecture}.attention.sliding_window"
        sizes = _windowed(general, stored_count(metadata, key, general.context) if metadata.get(key) else general.context)
        return sizes if sizes.rope_scaling else msgspec.structs.replace(sizes, rope_scaling=stored_longrope(general, metadata))

    def to_gguf(self, hyperparameters: Hyperparameters) -> dict[str, Any]:
        """Return the window and longrope."""
        window = {f"{self.architecture}.attention.sliding_window": hyperparameters.sliding_window} if hyperparameters.sliding_window else {}
        return longrope_keys(hyperparameters) | window

    def origins(self, hyperparameters: Hyperparameters, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Origin]:
        """Return where tensors come from; see `Family`."""
        return decoder_origins(hyperparameters, shapes, _BLOCK) | factor_origins(hyperparameters)

    def block(self, network: Network, x: Array, step: Step) -> Array:
        """Return what one block makes of (tokens, hidden)."""
        epsilon = network.hyperparameters.norm_epsilon
        x = x + fused_attention(network, rms_norm(x, network.vector(step.layer, "attn_norm.weight"), epsilon), step)
        return x + gated_feed_forward(network, rms_norm(x, network.vector(step.layer, "ffn_norm.weight"), epsilon), step)

    def finish(self, network: Network, x: Array) -> Array:
        """Return the last norm of (tokens, hidden)."""
        return rms_norm(x, network.tensor("output_norm.weight"), network.hyperparameters.norm_epsilon)


def _windowed(sizes: Hyperparameters, window: int) -> Hyperparameters:
    if window >= sizes.context:
        return sizes
    return msgspec.structs.replace(sizes, sliding_window=window, local_layers=tuple(range(sizes.layers)))
