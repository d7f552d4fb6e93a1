"""LLaMA, TinyLLaMA, Llama 3, SmolLM2: pre-norm blocks with RMSNorm, rotary positions, grouped queries and SwiGLU.

Its GGUF files hold the rows of query and key in the order that makes rotary pairs neighbours; checkpoints of Hugging Face have halves, so
rows are moved on the way in. Source: arXiv:2302.13971, arXiv:2407.21783; transformers `models/llama/modeling_llama.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from toolkit.checkpoint.base import Array
from toolkit.simulate.families.base import Origin, Step
from toolkit.simulate.families.config import Config
from toolkit.simulate.families.decoder import BLOCK, decoder, decoder_origins
from toolkit.simulate.families.longrope import Constant, refuse_longrope
from toolkit.simulate.families.sublayers import attention, gated_feed_forward
from toolkit.simulate.hyperparameters import Hyperparameters
from toolkit.simulate.layers import rms_norm
from toolkit.simulate.network import Network
from toolkit.simulate.rope import frequencies

__all__ = ["Llama", "interleave_rows"]


class Llama:
    """The family."""

    architecture = "llama"
    hugging_face: tuple[str, ...] = ("LlamaForCausalLM",)

    def from_config(self, config: Mapping[str, Any]) -> Hyperparameters:
        """Read a config.json; see `Family`. Biases are taken where the checkpoint has them."""
        read = Config(config)
        read.expect("hidden_act", "silu", None)
        sizes = decoder(read, self.architecture, epsilon=("rms_norm_eps", 1e-6), interleaved=True)
        if sizes.rope_scaling is not None and sizes.rope_scaling.kind == "llama3":
            return sizes
        return refuse_longrope(sizes)

    def from_gguf(self, general: Hyperparameters, metadata: Mapping[str, Any]) -> Hyperparameters:  # noqa: ARG002 (see Family)
        """Add what is this family's own; see `Family`."""
        return msgspec.structs.replace(general, rope_interleaved=True)

    def to_gguf(self, hyperparameters: Hyperparameters) -> dict[str, Any]:  # noqa: ARG002 (see Family)
        """Return further metadata: none."""
        return {}

    def origins(self, hyperparameters: Hyperparameters, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Origin]:
        """Return where tensors come from; see `Family`."""
        found = decoder_origins(hyperparameters, shapes, BLOCK)
        for name, origin in found.items():
            heads = {"attn_q": hyperparameters.heads, "attn_k": hyperparameters.kv_heads}.get(name.split(".")[-2], 0)
            if heads:
                found[name] = Origin(origin.sources, origin.shape, interleave_rows(heads))
        scaling = hyperparameters.rope_scaling
        if scaling is not None and scaling.kind == "llama3":
            factors = frequencies(msgspec.structs.replace(hyperparameters, rope_scaling=None)) / frequencies(hyperparameters)
            found["rope_freqs.weight"] = Origin((), factors.shape, Constant(tuple(factors.tolist())))
        return found

    def block(self, network: Network, x: Array, step: Step) -> Array:
        """Return what one block makes of (tokens, hidden)."""
        epsilon = network.hyperparameters.norm_epsilon
        x = x + attention(network, rms_norm(x, network.vector(step.layer, "attn_norm.weight"), epsilon), step)
        return x + gated_feed_forward(network, rms_norm(x, network.vector(step.layer, "ffn_norm.weight"), epsilon), step)

    def finish(self, network: Network, x: Array) -> Array:
        """Return the last norm of (tokens, hidden)."""
        return rms_norm(x, network.tensor("output_norm.weight"), network.hyperparameters.norm_epsilon)


def interleave_rows(heads: int) -> Callable[[Sequence[Array]], Array]:
    """Return a function that moves the rows of every head from halves (i, i + n/2) to neighbours (2i, 2i + 1)."""

    def make(sources: Sequence[Array]) -> Array:
        (rows,) = sources
        shape = rows.shape
        return rows.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)

    return make
