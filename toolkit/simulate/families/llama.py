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
from toolkit.simulate.families.config import Config, rope_scaling
from toolkit.simulate.hyperparameters import Hyperparameters
from toolkit.simulate.layers import attend, default_scale, rms_norm, rotate, silu
from toolkit.simulate.network import Network

__all__ = ["Llama", "interleave_rows"]

_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Llama:
    """The family."""

    architecture = "llama"
    hugging_face: tuple[str, ...] = ("LlamaForCausalLM",)

    def from_config(self, config: Mapping[str, Any]) -> Hyperparameters:
        """Read a config.json; see `Family`."""
        read = Config(config)
        hidden, heads = read.count("hidden_size"), read.count("num_attention_heads")
        head_dim = read.count("head_dim", hidden // heads)
        return Hyperparameters(
            architecture=self.architecture,
            layers=read.count("num_hidden_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=read.count("num_key_value_heads", heads),
            head_dim=head_dim,
            value_dim=head_dim,
            feed_forward=read.count("intermediate_size"),
            vocabulary=read.count("vocab_size"),
            context=read.count("max_position_embeddings"),
            norm_epsilon=read.number("rms_norm_eps"),
            rope_base=read.rope_theta(),
            rope_dimensions=head_dim,
            rope_interleaved=True,
            rope_scaling=rope_scaling(read),
        )

    def from_gguf(self, general: Hyperparameters, metadata: Mapping[str, Any]) -> Hyperparameters:  # noqa: ARG002 (see Family)
        """Add what is this family's own; see `Family`."""
        return msgspec.structs.replace(general, rope_interleaved=True)

    def to_gguf(self, hyperparameters: Hyperparameters) -> dict[str, Any]:  # noqa: ARG002 (see Family)
        """Return further metadata: none."""
        return {}

    def origins(self, hyperparameters: Hyperparameters, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Origin]:
        """Return where tensors come from; see `Family`."""
        found = {
            "token_embd.weight": Origin(("model.embed_tokens.weight",), shapes["model.embed_tokens.weight"]),
            "output_norm.weight": Origin(("model.norm.weight",), shapes["model.norm.weight"]),
        }
        if "lm_head.weight" in shapes:
            found["output.weight"] = Origin(("lm_head.weight",), shapes["lm_head.weight"])
        for layer in range(hyperparameters.layers):
            for name, theirs in _BLOCK.items():
                for kind in ("weight", "bias"):
                    source = f"model.layers.{layer}.{theirs}.{kind}"
                    if source not in shapes:
                        continue
                    heads = {"attn_q": hyperparameters.heads, "attn_k": hyperparameters.kv_heads}.get(name, 0)
                    make = interleave_rows(heads) if heads else None
                    found[f"blk.{layer}.{name}.{kind}"] = Origin((source,), shapes[source], make)
        return found

    def block(self, network: Network, x: Array, step: Step) -> Array:
        """Return what one block makes of (tokens, hidden)."""
        sizes, tokens = network.hyperparameters, x.shape[0]
        normed = rms_norm(x, network.vector(step.layer, "attn_norm.weight"), sizes.norm_epsilon)
        query = network.linear(step.layer, "attn_q")(normed).reshape(tokens, sizes.heads, sizes.head_dim)
        key = network.linear(step.layer, "attn_k")(normed).reshape(tokens, sizes.kv_heads, sizes.head_dim)
        value = network.linear(step.layer, "attn_v")(normed).reshape(tokens, sizes.kv_heads, sizes.value_dim)
        query = rotate(query, step.table, interleaved=sizes.rope_interleaved)
        key = rotate(key, step.table, interleaved=sizes.rope_interleaved)
        keys, values = step.cache.append(step.layer, key, value)
        mixed = attend(query, keys, values, scale=sizes.attention_scale or default_scale(sizes.head_dim))
        x = x + network.linear(step.layer, "attn_output")(mixed)
        normed = rms_norm(x, network.vector(step.layer, "ffn_norm.weight"), sizes.norm_epsilon)
        gate = silu(network.linear(step.layer, "ffn_gate")(normed))
        gate *= network.linear(step.layer, "ffn_up")(normed)
        return x + network.linear(step.layer, "ffn_down")(gate)

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
