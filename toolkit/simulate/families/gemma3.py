"""Gemma3, text: Gemma2 without caps, with RMSNorm on heads of query and key, and two bases of rotary positions.

Five layers see a window and turn by a base of their own; the sixth sees everything, and its positions may be stretched. Source:
arXiv:2503.19786; transformers `models/gemma3/modeling_gemma3.py`; GGUF conventions as llama.cpp's architecture `gemma3`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from rkfleet.errors import Invalid
from toolkit.simulate.families.config import Config
from toolkit.simulate.families.gemma2 import Gemma2
from toolkit.simulate.families.keys import stored_number
from toolkit.simulate.families.longrope import refuse_longrope
from toolkit.simulate.hyperparameters import Hyperparameters

__all__ = ["Gemma3"]

LOCAL_BASE: Final = 10000.0  # Of layers that see a window; llama.cpp has it built in.


class Gemma3(Gemma2):
    """The family."""

    architecture = "gemma3"
    hugging_face = ("Gemma3ForCausalLM",)
    names = Gemma2.names | {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
    period = 6
    largest = 62
    caps = (0.0, 0.0)

    def from_config(self, config: Mapping[str, Any]) -> Hyperparameters:
        """Read a config.json; see `Family`. Newer files have rotary positions by kind of layer, older ones in fields beside each other."""
        read = Config(config)
        read.expect("hidden_activation", "gelu_pytorch_tanh", None)
        for field in ("sliding_window_pattern", "_sliding_window_pattern"):
            if config.get("layer_types") is None:
                read.expect(field, self.period, None)
        base = read.positive("rope_local_base_freq", LOCAL_BASE)
        nested = config.get("rope_parameters")
        if isinstance(nested, Mapping) and ("full_attention" in nested or "sliding_attention" in nested):
            full, local = (nested.get(kind) or {} for kind in ("full_attention", "sliding_attention"))
            if not isinstance(full, Mapping) or not isinstance(local, Mapping):
                raise Invalid(f"config.json: rope_parameters is {nested!r}, not positions by kind of layer")
            Config({"rope_parameters.sliding_attention.rope_type": local.get("rope_type")}).expect(
                "rope_parameters.sliding_attention.rope_type", "default", None
            )
            base = Config(local).positive("rope_theta", base)
            read = Config({field: value for field, value in config.items() if field != "rope_scaling"} | {"rope_parameters": full})
        sizes = refuse_longrope(self.windowed(read, self.sizes(read, base=1e6)))
        return msgspec.structs.replace(sizes, rope_base_local=base)

    def from_gguf(self, general: Hyperparameters, metadata: Mapping[str, Any]) -> Hyperparameters:
        """Add what is this family's own; see `Family`."""
        base = stored_number(metadata, f"{self.architecture}.rope.freq_base_swa", LOCAL_BASE)
        return msgspec.structs.replace(super().from_gguf(general, metadata), rope_base_local=base)

    def to_gguf(self, hyperparameters: Hyperparameters) -> dict[str, Any]:
        """Return what Gemma2 has, and the base of local layers where it is not the family's own."""
        base = hyperparameters.rope_base_local
        return super().to_gguf(hyperparameters) | ({f"{self.architecture}.rope.freq_base_swa": base} if base != LOCAL_BASE else {})
