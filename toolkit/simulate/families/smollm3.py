"""SmolLM3: LLaMA's block, and every fourth layer without rotary positions.

Source: https://huggingface.co/blog/smollm3; arXiv:2501.18795 for layers without positions; transformers
`models/smollm3/modeling_smollm3.py`; GGUF conventions as llama.cpp's architecture `smollm3`, which has the fourth layers built in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from rkfleet.errors import Invalid
from toolkit.simulate.families.config import Config
from toolkit.simulate.families.decoder import decoder
from toolkit.simulate.families.llama import Llama
from toolkit.simulate.families.longrope import refuse_longrope
from toolkit.simulate.families.qwen2 import refuse_windows
from toolkit.simulate.hyperparameters import Hyperparameters

__all__ = ["SmolLm3"]

INTERVAL: Final = 4  # As published, and as llama.cpp has it built in.


class SmolLm3(Llama):
    """The family."""

    architecture = "smollm3"
    hugging_face = ("SmolLM3ForCausalLM",)

    def from_config(self, config: Mapping[str, Any]) -> Hyperparameters:
        """Read a config.json; see `Family`. `no_rope_layers` has a 1 for each layer that turns, a 0 for each that does not."""
        read = Config(config)
        read.expect("hidden_act", "silu", None)
        for field in ("attention_bias", "mlp_bias"):  # llama.cpp has no place for them.
            read.expect(field, False, None)
        refuse_windows(read)
        sizes = decoder(read, self.architecture, epsilon=("rms_norm_eps", 1e-6), base=2e6, tied=True, interleaved=True)
        every = read.count("no_rope_layer_interval", INTERVAL)
        turning = config.get("no_rope_layers")
        if turning is None:
            turning = [int((layer + 1) % every != 0) for layer in range(sizes.layers)]
        if not isinstance(turning, list) or len(turning) != sizes.layers or not all(one in (0, 1) for one in turning):
            raise Invalid(f"config.json: no_rope_layers is {turning!r}, not a 0 or 1 for each of {sizes.layers} layers")
        still = tuple(layer for layer, turns in enumerate(turning) if not turns)
        return msgspec.structs.replace(refuse_longrope(sizes), nope_layers=still)

    def from_gguf(self, general: Hyperparameters, metadata: Mapping[str, Any]) -> Hyperparameters:
        """Add what is this family's own; see `Family`."""
        return msgspec.structs.replace(super().from_gguf(general, metadata), nope_layers=_fourth(general.layers))

    def to_gguf(self, hyperparameters: Hyperparameters) -> dict[str, Any]:
        """Return further metadata: none.

        Raises:
            Invalid: Other layers than every fourth are without positions: GGUF has no key for it.
        """
        if hyperparameters.nope_layers != _fourth(hyperparameters.layers):
            raise Invalid(
                f"no_rope_layers leaves out layers {hyperparameters.nope_layers}; a GGUF file of smollm3 has every {INTERVAL}th without "
                "positions and cannot say otherwise: simulate the Hugging Face directory itself"
            )
        return {}


def _fourth(layers: int) -> tuple[int, ...]:
    return tuple(range(INTERVAL - 1, layers, INTERVAL))
