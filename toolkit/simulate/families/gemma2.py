"""Gemma2: Gemma with norms behind attention and feed-forward, capped scores and logits, and a window in every second layer.

Source: arXiv:2408.00118; transformers `models/gemma2/modeling_gemma2.py`; GGUF conventions as llama.cpp's architecture `gemma2`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from toolkit.simulate.families.config import Config
from toolkit.simulate.families.decoder import BLOCK, layer_kinds, stored_local_layers
from toolkit.simulate.families.gemma import Gemma
from toolkit.simulate.families.keys import stored_count, stored_number
from toolkit.simulate.families.longrope import refuse_longrope
from toolkit.simulate.hyperparameters import Hyperparameters

__all__ = ["Gemma2"]

_CAPS: Final = ("attn_logit_softcapping", "final_logit_softcapping")
QUERY_SCALAR: Final = 256.0  # Where a config.json has no query_pre_attn_scalar.


class Gemma2(Gemma):
    """The family.

    Attributes:
        period: Of how many layers the last one sees everything.
        largest: Layers of the one published model whose scores are scaled by hidden / heads and not by the width of a head. GGUF files do
            not say it, and llama.cpp knows the model by this number.
        caps: Where a config.json, or a GGUF file, has no caps on scores and logits.
        window: Where a config.json has none.
    """

    architecture = "gemma2"
    hugging_face = ("Gemma2ForCausalLM",)
    names = BLOCK | {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
    period: int = 2
    largest: int = 46
    caps: tuple[float, float] = (50.0, 30.0)
    window: int = 4096

    def from_config(self, config: Mapping[str, Any]) -> Hyperparameters:
        """Read a config.json; see `Family`. `null` for a cap is none."""
        read = Config(config)
        read.expect("hidden_act", "gelu_pytorch_tanh", "gelu_new", None)
        read.expect("hidden_activation", "gelu_pytorch_tanh", None)
        return refuse_longrope(self.windowed(read, self.sizes(read)))

    def windowed(self, config: Config, sizes: Hyperparameters) -> Hyperparameters:
        """Return sizes with windows, caps and the scale of scores."""
        scores, logits = (_cap(config, field, cap) for field, cap in zip(_CAPS, self.caps, strict=True))
        return msgspec.structs.replace(
            sizes,
            attention_scale=1 / math.sqrt(config.positive("query_pre_attn_scalar", QUERY_SCALAR)),
            attention_softcap=scores,
            final_softcap=logits,
            sliding_window=config.count("sliding_window", self.window),
            local_layers=layer_kinds(config, sizes.layers, self.implied(sizes.layers)),
        )

    def implied(self, layers: int) -> list[bool]:
        """Return for each layer whether it sees a window, in the family's own pattern."""
        return [layer % self.period < self.period - 1 for layer in range(layers)]

    def from_gguf(self, general: Hyperparameters, metadata: Mapping[str, Any]) -> Hyperparameters:
        """Add what is this family's own; see `Family`."""
        prefix = self.architecture
        return msgspec.structs.replace(
            super().from_gguf(general, metadata),
            attention_scale=stored_number(metadata, f"{prefix}.attention.scale", self.implied_scale(general)),
            attention_softcap=stored_number(metadata, f"{prefix}.attn_logit_softcapping", self.caps[0]),
            final_softcap=stored_number(metadata, f"{prefix}.final_logit_softcapping", self.caps[1]),
            sliding_window=stored_count(metadata, f"{prefix}.attention.sliding_window", self.window),
            local_layers=stored_local_layers(metadata, prefix, general.layers, self.implied(general.layers)),
        )

    def implied_scale(self, sizes: Hyperparameters) -> float:
        """Return the scale of scores that llama.cpp takes, which reads none."""
        return 1 / math.sqrt(sizes.hidden / sizes.heads if sizes.layers == self.largest else sizes.head_dim)

    def to_gguf(self, hyperparameters: Hyperparameters) -> dict[str, Any]:
        """Return windows, caps, and the pattern and scale of scores where they are not the family's own."""
        sizes, prefix = hyperparameters, self.architecture
        keys: dict[str, Any] = {f"{prefix}.attention.sliding_window": sizes.sliding_window}
        if self.caps[0] or sizes.attention_softcap:
            keys[f"{prefix}.attn_logit_softcapping"] = sizes.attention_softcap
        if self.caps[1] or sizes.final_softcap:
            keys[f"{prefix}.final_logit_softcapping"] = sizes.final_softcap
        if not math.isclose(sizes.attention_scale, self.implied_scale(sizes)):
            keys[f"{prefix}.attention.scale"] = sizes.attention_scale
        pattern = [layer in sizes.local_layers for layer in range(sizes.layers)]
        if pattern != self.implied(sizes.layers):
            keys[f"{prefix}.attention.sliding_window_pattern"] = pattern
        return keys


def _cap(config: Config, field: str, default: float) -> float:
    if field not in config.fields:
        return default
    return 0.0 if config.fields[field] is None else config.positive(field, 1.0)
