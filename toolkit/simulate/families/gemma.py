"""Gemma: embeddings scaled by sqrt(hidden), GELU in the gated feed-forward, norms that multiply by one more than their weight.

GGUF files hold the norms' weights with the one added, so one is added on the way in. Source: arXiv:2403.08295; transformers
`models/gemma/modeling_gemma.py`; GGUF conventions as llama.cpp's architecture `gemma`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from toolkit.checkpoint.base import Array
from toolkit.simulate.families.base import Origin, Step
from toolkit.simulate.families.config import Config
from toolkit.simulate.families.decoder import BLOCK, decoder, decoder_origins
from toolkit.simulate.families.longrope import refuse_longrope
from toolkit.simulate.families.sublayers import attention, gated_feed_forward
from toolkit.simulate.hyperparameters import Hyperparameters
from toolkit.simulate.layers import gelu_tanh, rms_norm
from toolkit.simulate.network import Network

__all__ = ["Gemma"]

HEAD_DIM = 256  # Where a config.json has none, whatever hidden size and heads are.


class Gemma:
    """The family."""

    architecture = "gemma"
    hugging_face: tuple[str, ...] = ("GemmaForCausalLM",)
    names: Mapping[str, str] = BLOCK

    def from_config(self, config: Mapping[str, Any]) -> Hyperparameters:
        """Read a config.json; see `Family`.

        The first published files say `hidden_act` gelu; the models were trained with the approximation by tanh, which is taken.
        """
        read = Config(config)
        read.expect("hidden_act", "gelu_pytorch_tanh", "gelu_new", "gelu", None)
        read.expect("hidden_activation", "gelu_pytorch_tanh", None)
        return refuse_longrope(self.sizes(read))

    def sizes(self, config: Config, *, base: float = 10000.0) -> Hyperparameters:
        """Return what all of Gemma has in its config.json."""
        config.expect("attention_bias", False, None)
        config.expect("use_bidirectional_attention", False, None)
        sizes = decoder(config, self.architecture, epsilon=("rms_norm_eps", 1e-6), head_dim=HEAD_DIM, tied=True, base=base)
        return msgspec.structs.replace(sizes, embedding_scale=math.sqrt(sizes.hidden))

    def from_gguf(self, general: Hyperparameters, metadata: Mapping[str, Any]) -> Hyperparameters:  # noqa: ARG002 (see Family)
        """Add what is this family's own; see `Family`."""
        return msgspec.structs.replace(general, embedding_scale=math.sqrt(general.hidden))

    def to_gguf(self, hyperparameters: Hyperparameters) -> dict[str, Any]:  # noqa: ARG002 (see Family)
        """Return further metadata: none."""
        return {}

    def origins(self, hyperparameters: Hyperparameters, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Origin]:
        """Return where tensors come from; see `Family`."""
        found = decoder_origins(hyperparameters, shapes, self.names)
        for name, origin in found.items():
            if name.endswith("_norm.weight"):
                found[name] = Origin(origin.sources, origin.shape, _one_more)
        return found

    def block(self, network: Network, x: Array, step: Step) -> Array:
        """Return what one block makes of (tokens, hidden); norms after attention and feed-forward are taken where there are any."""
        layer, epsilon = step.layer, network.hyperparameters.norm_epsilon
        mixed = attention(network, rms_norm(x, network.vector(layer, "attn_norm.weight"), epsilon), step)
        if network.has(layer, "post_attention_norm.weight"):
            mixed = rms_norm(mixed, network.vector(layer, "post_attention_norm.weight"), epsilon)
        x = x + mixed
        fed = gated_feed_forward(network, rms_norm(x, network.vector(layer, "ffn_norm.weight"), epsilon), step, gelu_tanh)
        if network.has(layer, "post_ffw_norm.weight"):
            fed = rms_norm(fed, network.vector(layer, "post_ffw_norm.weight"), epsilon)
        return x + fed

    def finish(self, network: Network, x: Array) -> Array:
        """Return the last norm of (tokens, hidden)."""
        return rms_norm(x, network.tensor("output_norm.weight"), network.hyperparameters.norm_epsilon)


def _one_more(sources: Sequence[Array]) -> Array:
    (weight,) = sources
    return weight + np.float32(1)
