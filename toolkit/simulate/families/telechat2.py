"""TeleChat2: LLaMA's block with biases on what attention and feed-forward put out; key and value are one tensor, head by head.

For each key-value head `key_value` has the rows of its key, then of its value. Taken apart, and with rows moved as LLaMA's are, the model
is one of the architecture `llama`, and its GGUF files are named so: llama.cpp knows no TeleChat2 and runs them as what they are.

Source: https://github.com/Tele-AI/TeleChat2 and `modeling_telechat2.py` of the checkpoints. Positions: the published code raises the base
of rotary positions to base * alpha^(d / (d - 2)), alpha = 2^ceil(log2(length / base_seqlen) + 1) - 1 and at least 1, where length is the
text's but at least `training_seqlen`. So up to `training_seqlen` the base is constant, and the context ends there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from toolkit.checkpoint.base import Array
from toolkit.simulate.families.base import Origin
from toolkit.simulate.families.config import Config, check_heads
from toolkit.simulate.families.llama import Llama, interleave_rows
from toolkit.simulate.families.names import holds_rows, renamed
from toolkit.simulate.hyperparameters import Hyperparameters

__all__ = ["TeleChat2"]

_WHOLE: Final = {"token_embd": "transformer.word_embeddings", "output_norm": "transformer.ln_f", "output": "lm_head"}
_BLOCK: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attention.query",
    "attn_output": "self_attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TRAINED: Final = 8192  # `training_seqlen` and `base_seqlen` where a config.json has none: their defaults in the published code.


class TeleChat2(Llama):
    """The family, of checkpoints; its GGUF files are of LLaMA's."""

    hugging_face = ("TeleChat2ForCausalLM", "TeleChatForCausalLM")

    def from_config(self, config: Mapping[str, Any]) -> Hyperparameters:
        """Read a config.json; see `Family`. Fields have the names of the published code, or those of other families."""
        read = Config(config)
        read.expect("hidden_act", "silu", None)
        read.expect("apply_residual_connection_post_layernorm", False, None)
        read.expect("embed_layernorm", False, None)
        read.expect("rope_scaling", None)
        field = _name(config, "n_head", "num_attention_heads")
        hidden, heads = read.count("hidden_size"), read.count(field)
        kv_heads = read.count("num_key_value_heads", heads)
        check_heads((field, heads), ("num_key_value_heads", kv_heads), head_dim=hidden // heads, hidden=hidden)
        trained = read.count("training_seqlen", _TRAINED)
        return Hyperparameters(
            architecture=self.architecture,
            layers=read.count(_name(config, "n_layer", "num_hidden_layers")),
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=hidden // heads,
            value_dim=hidden // heads,
            feed_forward=read.count(_name(config, "ffn_hidden_size", "intermediate_size")),
            vocabulary=read.count("vocab_size"),
            context=trained,
            norm_epsilon=read.number(_name(config, "layer_norm_epsilon", "rms_norm_eps"), 1e-5),
            rope_base=_raised(read.rope_theta(), trained, read.count("base_seqlen", _TRAINED), hidden // heads),
            rope_dimensions=hidden // heads,
            rope_interleaved=True,
        )

    def origins(self, hyperparameters: Hyperparameters, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Origin]:
        """Return where tensors come from; see `Family`."""
        found = renamed(_WHOLE, _BLOCK, stem="transformer.h", layers=hyperparameters.layers, shapes=shapes)
        for name, origin in found.items():
            if ".attn_q." in name:
                found[name] = Origin(origin.sources, origin.shape, interleave_rows(hyperparameters.heads))
        for layer in range(hyperparameters.layers):
            for kind in ("weight", "bias"):
                fused = f"transformer.h.{layer}.self_attention.key_value.{kind}"
                if holds_rows(fused, 2 * hyperparameters.kv_heads * hyperparameters.head_dim, shapes=shapes):
                    shape = (shapes[fused][0] // 2, *shapes[fused][1:])
                    found[f"blk.{layer}.attn_k.{kind}"] = Origin((fused,), shape, _take(0, hyperparameters.kv_heads))
                    found[f"blk.{layer}.attn_v.{kind}"] = Origin((fused,), shape, _take(1, hyperparameters.kv_heads))
        return found


def _take(which: int, heads: int) -> Callable[[Sequence[Array]], Array]:
    """Return a function that takes keys (0) or values (1) of all heads, and moves rows of keys, which turn."""

    def make(sources: Sequence[Array]) -> Array:
        (fused,) = sources
        rows = fused.reshape(heads, 2, -1, *fused.shape[1:])[:, which].reshape(-1, *fused.shape[1:])
        return rows if which else interleave_rows(heads)([rows])

    return make


def _name(config: Mapping[str, Any], theirs: str, usual: str) -> str:
    return usual if theirs not in config and usual in config else theirs


def _raised(base: float, length: int, unscaled: int, width: int) -> float:
    if width <= 2:  # A single pair turns by the angle 1 with any base.
        return base
    alpha = max(2 ** math.ceil(math.log2(length / unscaled) + 1) - 1, 1)
    return float(base * alpha ** (width / (width - 2))) if alpha > 1 else base
