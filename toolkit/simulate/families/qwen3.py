"""Qwen3, dense: Qwen2's block without biases, with RMSNorm on every head of query and key.

Source: arXiv:2505.09388; transformers `models/qwen3/modeling_qwen3.py`; GGUF conventions as llama.cpp's architecture `qwen3`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.simulate.families.config import Config
from toolkit.simulate.families.decoder import BLOCK, decoder
from toolkit.simulate.families.longrope import refuse_longrope
from toolkit.simulate.families.qwen2 import Qwen2, refuse_windows
from toolkit.simulate.hyperparameters import Hyperparameters

__all__ = ["Qwen3"]

HEAD_DIM = 128  # Where a config.json has none, whatever hidden size and heads are.


class Qwen3(Qwen2):
    """The family."""

    architecture = "qwen3"
    hugging_face = ("Qwen3ForCausalLM",)
    names = BLOCK | {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}

    def from_config(self, config: Mapping[str, Any]) -> Hyperparameters:
        """Read a config.json; see `Family`."""
        read = Config(config)
        read.expect("hidden_act", "silu", None)
        read.expect("attention_bias", False, None)
        refuse_windows(read)
        return refuse_longrope(decoder(read, self.architecture, epsilon=("rms_norm_eps", 1e-6), head_dim=HEAD_DIM))
