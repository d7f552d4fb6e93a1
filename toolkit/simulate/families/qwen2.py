"""Qwen2, Qwen2.5: LLaMA's block with biases on query, key and value, and rotary halves.

Source: arXiv:2407.10671; transformers `models/qwen2/modeling_qwen2.py`; GGUF conventions as llama.cpp's architecture `qwen2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rkfleet.errors import Invalid
from toolkit.checkpoint.base import Array
from toolkit.simulate.families.base import Origin, Step
from toolkit.simulate.families.config import Config
from toolkit.simulate.families.decoder import BLOCK, decoder, decoder_origins
from toolkit.simulate.families.longrope import refuse_longrope
from toolkit.simulate.families.sublayers import attention, gated_feed_forward
from toolkit.simulate.hyperparameters import Hyperparameters
from toolkit.simulate.layers import rms_norm
from toolkit.simulate.network import Network

__all__ = ["Qwen2"]


class Qwen2:
    """The family."""

    architecture = "qwen2"
    hugging_face: tuple[str, ...] = ("Qwen2ForCausalLM",)
    names: Mapping[str, str] = BLOCK

    def from_config(self, config: Mapping[str, Any]) -> Hyperparameters:
        """Read a config.json; see `Family`."""
        read = Config(config)
        read.expect("hidden_act", "silu", None)
        refuse_windows(read)
        sizes = decoder(read, self.architecture, epsilon=("rms_norm_eps", 1e-6))
        return refuse_longrope(sizes)

    def from_gguf(self, general: Hyperparameters, metadata: Mapping[str, Any]) -> Hyperparameters:  # noqa: ARG002 (see Family)
        """Add what is this family's own: nothing."""
        return general

    def to_gguf(self, hyperparameters: Hyperparameters) -> dict[str, Any]:  # noqa: ARG002 (see Family)
        """Return further metadata: none."""
        return {}

    def origins(self, hyperparameters: Hyperparameters, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Origin]:
        """Return where tensors come from; see `Family`."""
        return decoder_origins(hyperparameters, shapes, self.names)

    def block(self, network: Network, x: Array, step: Step) -> Array:
        """Return what one block makes of (tokens, hidden)."""
        epsilon = network.hyperparameters.norm_epsilon
        x = x + attention(network, rms_norm(x, network.vector(step.layer, "attn_norm.weight"), epsilon), step)
        return x + gated_feed_forward(network, rms_norm(x, network.vector(step.layer, "ffn_norm.weight"), epsilon), step)

    def finish(self, network: Network, x: Array) -> Array:
        """Return the last norm of (tokens, hidden)."""
        return rms_norm(x, network.tensor("output_norm.weight"), network.hyperparameters.norm_epsilon)


def refuse_windows(config: Config) -> None:
    """Refuse sliding windows of a family whose GGUF files have none.

    Raises:
        Invalid: The config.json has some in use.
    """
    config.expect("use_sliding_window", False, None)
    kinds = config.fields.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        raise Invalid(f"config.json: layer_types is {kinds!r}; this family is simulated with full_attention only")
