"""Numbers in the head of a GGUF file that make no network are refused by their key."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from rkfleet.errors import Invalid
from toolkit.checkpoint.gguf import GgufCheckpoint
from toolkit.simulate.hyperparameters import from_gguf

TINY = Path(__file__).parents[2] / "data/toolkit/families/llama.gguf"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 0), ("block_count", -1), ("block_count", math.nan), ("block_count", math.inf), ("block_count", 2.5),
        ("block_count", "2"), ("block_count", 1 << 40), ("embedding_length", 0), ("attention.head_count", -4),
        ("attention.head_count_kv", 3), ("attention.key_length", 0), ("feed_forward_length", -48), ("context_length", math.nan),
        ("attention.layer_norm_rms_epsilon", math.nan), ("attention.layer_norm_rms_epsilon", 0.0), ("rope.freq_base", math.inf),
        ("rope.freq_base", -1.0), ("rope.dimension_count", 3), ("rope.scaling.type", "yarn"),
    ],
)  # fmt: skip
def test_a_key_that_makes_no_network_is_named(key: str, value: Any) -> None:
    metadata = {**GgufCheckpoint(TINY).metadata, f"llama.{key}": value}
    with pytest.raises(Invalid, match=key):
        from_gguf(metadata, vocabulary=40)


def test_a_key_that_is_missing_is_named() -> None:
    metadata = dict(GgufCheckpoint(TINY).metadata)
    del metadata["llama.block_count"]
    with pytest.raises(Invalid, match=r"llama\.block_count is None"):
        from_gguf(metadata, vocabulary=40)
