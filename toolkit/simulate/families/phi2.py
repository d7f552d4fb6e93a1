"""Phi-1.5, Phi-2: attention and feed-forward side by side under one LayerNorm, everything biased, a part of each head turns, GELU.

Source: https://huggingface.co/microsoft/phi-2; transformers `models/phi/modeling_phi.py`; GGUF conventions as llama.cpp's architecture
`phi2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from toolkit.checkpoint.base import Array
from toolkit.simulate.families.base import Origin, Step
from toolkit.simulate.families.config import Config
from toolkit.simulate.families.decoder import WHOLE, decoder, decoder_origins
from toolkit.simulate.families.longrope import refuse_longrope
from toolkit.simulate.families.sublayers import attention, fused_attention
from toolkit.simulate.hyperparameters import Hyperparameters
from toolkit.simulate.layers import gelu_tanh, layer_norm
from toolkit.simulate.network import Network

__all__ = ["Phi2"]

_WHOLE: Final = WHOLE | {"output_norm": "model.final_layernorm"}
_BLOCK: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.dense",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
PARTIAL: Final = 0.5  # Where a config.json has no partial_rotary_factor.


class Phi2:
    """The family."""

    architecture = "phi2"
    hugging_face = ("PhiForCausalLM",)

    def from_config(self, config: Mapping[str, Any]) -> Hyperparameters:
        """Read a config.json; see `Family`."""
        read = Config(config)
        read.expect("hidden_act", "gelu_new", "gelu_pytorch_tanh", None)
        read.expect("qk_layernorm", False, None)
        return refuse_longrope(decoder(read, self.architecture, epsilon=("layer_norm_eps", 1e-5), partial=PARTIAL))

    def from_gguf(self, general: Hyperparameters, metadata: Mapping[str, Any]) -> Hyperparameters:  # noqa: ARG002 (see Family)
        """Add what is this family's own: nothing."""
        return general

    def to_gguf(self, hyperparameters: Hyperparameters) -> dict[str, Any]:
        """Return the key of LayerNorm's epsilon."""
        return {f"{self.architecture}.attention.layer_norm_epsilon": hyperparameters.norm_epsilon}

    def origins(self, hyperparameters: Hyperparameters, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Origin]:
        """Return where tensors come from; see `Family`."""
        return decoder_origins(hyperparameters, shapes, _BLOCK, _WHOLE)

    def block(self, network: Network, x: Array, step: Step) -> Array:
        """Return what one block makes of (tokens, hidden)."""
        weight, bias = (network.vector(step.layer, f"attn_norm.{kind}") for kind in ("weight", "bias"))
        normed = layer_norm(x, weight, bias, network.hyperparameters.norm_epsilon)
        attends = fused_attention if network.has(step.layer, "attn_qkv") else attention
        fed = network.linear(step.layer, "ffn_down")(gelu_tanh(network.linear(step.layer, "ffn_up")(normed)))
        return x + attends(network, normed, step) + fed

    def finish(self, network: Network, x: Array) -> Array:
        """Return the last norm of (tokens, hidden)."""
        weight, bias = (network.tensor(f"output_norm.{kind}") for kind in ("weight", "bias"))
        return layer_norm(x, weight, bias, network.hyperparameters.norm_epsilon)
