"""InternLM2: LLaMA's block; its checkpoints keep query, key and value in one tensor, group by group.

For each key-value head `wqkv` has the rows of its queries, then of its key, then of its value. Taken apart, and with rows moved as LLaMA's
are, the model is LLaMA's in everything but the name. Source: arXiv:2403.17297; https://github.com/InternLM/InternLM,
`modeling_internlm2.py`; GGUF conventions as llama.cpp's architecture `internlm2`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from toolkit.checkpoint.base import Array
from toolkit.simulate.families.base import Origin
from toolkit.simulate.families.config import Config, check_heads, rope_scaling
from toolkit.simulate.families.llama import Llama, interleave_rows
from toolkit.simulate.families.names import holds_rows, renamed
from toolkit.simulate.hyperparameters import Hyperparameters, RopeScaling

__all__ = ["InternLm2"]

_WHOLE: Final = {"token_embd": "model.tok_embeddings", "output_norm": "model.norm", "output": "output"}
_BLOCK: Final = {
    "attn_norm": "attention_norm",
    "attn_output": "attention.wo",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
}


class InternLm2(Llama):
    """The family."""

    architecture = "internlm2"
    hugging_face = ("InternLM2ForCausalLM",)

    def from_config(self, config: Mapping[str, Any]) -> Hyperparameters:
        """Read a config.json; see `Family`.

        `rope_scaling` of the kind `dynamic` changes positions only of texts beyond `max_position_embeddings`, where the context ends.
        """
        read = Config(config)
        read.expect("hidden_act", "silu", None)
        hidden, heads = read.count("hidden_size"), read.count("num_attention_heads")
        kv_heads = read.count("num_key_value_heads", heads)
        check_heads(("num_attention_heads", heads), ("num_key_value_heads", kv_heads), head_dim=hidden // heads, hidden=hidden)
        return Hyperparameters(
            architecture=self.architecture,
            layers=read.count("num_hidden_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=hidden // heads,
            value_dim=hidden // heads,
            feed_forward=read.count("intermediate_size"),
            vocabulary=read.count("vocab_size"),
            context=read.count("max_position_embeddings"),
            norm_epsilon=read.number("rms_norm_eps", 1e-6),
            rope_base=read.rope_theta(),
            rope_dimensions=hidden // heads,
            rope_interleaved=True,
            rope_scaling=_scaling(read),
        )

    def origins(self, hyperparameters: Hyperparameters, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Origin]:
        """Return where tensors come from; see `Family`."""
        found = renamed(_WHOLE, _BLOCK, stem="model.layers", layers=hyperparameters.layers, shapes=shapes)
        heads, kv_heads, width = hyperparameters.heads, hyperparameters.kv_heads, hyperparameters.head_dim
        for layer in range(hyperparameters.layers):
            for kind in ("weight", "bias"):
                fused = f"model.layers.{layer}.attention.wqkv.{kind}"
                if not holds_rows(fused, (heads + 2 * kv_heads) * width, shapes=shapes):
                    continue
                rest = shapes[fused][1:]
                parts = {"attn_q": (0, heads), "attn_k": (heads // kv_heads, kv_heads), "attn_v": (heads // kv_heads + 1, kv_heads)}
                for name, (first, rows) in parts.items():
                    make = _take(first, rows, kv_heads, width, turned=name != "attn_v")
                    found[f"blk.{layer}.{name}.{kind}"] = Origin((fused,), (rows * width, *rest), make)
        return found


def _take(first: int, heads: int, groups: int, width: int, *, turned: bool) -> Callable[[Sequence[Array]], Array]:
    """Return a function that takes, of every group's heads, those from `first` on, and moves rows of heads that turn."""

    def make(sources: Sequence[Array]) -> Array:
        (fused,) = sources
        grouped = fused.reshape(groups, -1, width, *fused.shape[1:])
        rows = grouped[:, first : first + heads // groups].reshape(heads * width, *fused.shape[1:])
        return interleave_rows(heads)([rows]) if turned else rows

    return make


def _scaling(config: Config) -> RopeScaling | None:
    nested = config.fields.get("rope_scaling")
    if isinstance(nested, Mapping) and nested.get("rope_type", nested.get("type")) == "dynamic":
        return None
    return rope_scaling(config)
