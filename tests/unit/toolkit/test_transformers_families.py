"""Families that transformers knows, against its logits; the fixtures are made by tests/oracles/transformers_logits.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rkfleet.errors import Invalid
from tests.support.hugging_face_fixtures import DATA, NAMES, Fixture, fields, run, write_gguf
from toolkit.loading import open_model
from toolkit.simulate.families.registry import family_of_config
from toolkit.simulate.network import Network

TOLERANCE = 1e-4  # The issue's; docs/reference/toolkit-families.md says what was reached.


@pytest.mark.parametrize("name", NAMES)
def test_a_family_computes_what_transformers_computes(name: str) -> None:
    """In one prefill, and in a prefill followed by one token at a time over the cache."""
    fixture, kept = Fixture(name), np.load(DATA / f"{name}.logits.npz")
    network, prompt = Network(fixture, fixture.family), kept["prompt"]
    for sizes in ([24], [10] + [1] * 14):
        assert np.abs(run(network, prompt, sizes) - kept["logits"]).max() <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_of_a_checkpoint_has_a_place(name: str) -> None:
    fixture = Fixture(name)
    assert {source for origin in fixture.origins.values() for source in origin.sources} == set(fixture.theirs)
    for tensor, info in fixture.tensors.items():
        assert (tensor, fixture.read(tensor).shape) == (tensor, info.shape)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_computes_the_same_from_its_gguf_file(name: str, tmp_path: Path) -> None:
    """Keys and tensors say all that config.json said."""
    fixture, kept = Fixture(name), np.load(DATA / f"{name}.logits.npz")
    write_gguf(fixture, tmp_path / "model.gguf")
    model = open_model(tmp_path / "model.gguf")
    assert np.abs(run(Network(model, model.family), kept["prompt"], [24]) - kept["logits"]).max() <= TOLERANCE


FELT: list[tuple[str, dict[str, Any]]] = [
    ("hf-llama3", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    ("hf-llama-linear", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    ("qwen3", {"rms_norm_eps": 0.1}),
    ("phi2", {"rope_parameters": {"partial_rotary_factor": 0.25}}),
    ("phi3-window", {"sliding_window": 8}),
    ("phi3-long", {"original_max_position_embeddings": 64}),
    ("phi3-partial", {"rope_parameters": {"partial_rotary_factor": 0.5}}),
    ("gemma2", {"sliding_window": 7}),
    ("gemma2", {"attn_logit_softcapping": 2.0}),
    ("gemma2-scaled", {"query_pre_attn_scalar": 16}),
    ("gemma2-scaled", {"final_logit_softcapping": None}),
    ("gemma3", {"sliding_window": 7}),
    ("gemma3-linear", {"layer_types": ["sliding_attention"] * 6}),
    ("smollm3", {"no_rope_layers": [1] * 5}),
]


@pytest.mark.parametrize(("name", "changes"), FELT)
def test_a_field_that_counts_is_felt(name: str, changes: dict[str, Any]) -> None:
    """The fixtures would tell if it were ignored: by a hundred times what they allow."""
    kept = np.load(DATA / f"{name}.logits.npz")
    fixture = Fixture(name, **changes)
    assert np.abs(run(Network(fixture, fixture.family), kept["prompt"], [24]) - kept["logits"]).max() > 100 * TOLERANCE


REFUSED: list[tuple[str, str, Any]] = [
    ("hf-llama", "hidden_act", "gelu"),
    ("hf-llama", "tie_word_embeddings", "yes"),
    ("hf-llama", "num_key_value_heads", 3),
    ("hf-llama", "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
    ("hf-llama", "rope_scaling", {"rope_type": "dynamic", "factor": 4.0}),
    ("hf-llama", "rope_scaling", {"rope_type": "linear", "factor": 0.0}),
    ("hf-llama", "partial_rotary_factor", 0.5),
    ("hf-llama", "num_hidden_layers", 1 << 20),
    ("qwen2", "use_sliding_window", True),
    ("qwen2", "layer_types", ["full_attention", "sliding_attention", "full_attention"]),
    ("qwen3", "attention_bias", True),
    ("qwen3", "hidden_act", "relu"),
    ("phi2", "qk_layernorm", True),
    ("phi2", "hidden_act", "gelu"),
    ("phi2", "rope_parameters", {"partial_rotary_factor": 1.5}),
    ("phi3", "hidden_act", "gelu"),
    ("phi3", "sliding_window", -1),
    ("phi3-short", "rope_parameters", {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}),
    ("gemma", "hidden_act", "relu"),
    ("gemma", "attention_bias", True),
    ("gemma2", "layer_types", ["chunked_attention"] * 3),
    ("gemma2", "attn_logit_softcapping", -1.0),
    ("gemma3", "use_bidirectional_attention", True),
    ("gemma3", "rope_parameters", {"full_attention": {}, "sliding_attention": {"rope_type": "linear", "factor": 2.0}}),
    ("smollm3", "no_rope_layers", [1, 1]),
    ("smollm3", "use_sliding_window", True),
    ("smollm3", "attention_bias", True),
    ("smollm3", "mlp_bias", True),
]


@pytest.mark.parametrize(("name", "field", "value"), REFUSED)
def test_a_field_that_cannot_be_computed_is_refused(name: str, field: str, value: Any) -> None:
    config = fields(name) | {field: value}
    with pytest.raises(Invalid, match=field.replace("rope_parameters", "rope_scaling|rope_parameters|partial_rotary_factor")):
        family_of_config(config["architectures"]).from_config(config)


def test_an_output_layer_that_is_neither_there_nor_tied_is_refused() -> None:
    with pytest.raises(Invalid, match=r"lm_head\.weight"):
        Fixture("qwen2-tied", tie_word_embeddings=False)


def test_older_files_say_the_same_in_other_fields() -> None:
    """Before `rope_parameters` there were `rope_theta`, `rope_scaling` and `partial_rotary_factor` beside each other."""
    old = {
        "hf-llama3": {
            "rope_parameters": None,
            "rope_theta": 10000.0,
            "rope_scaling": {key: value for key, value in fields("hf-llama3")["rope_parameters"].items() if key != "rope_theta"},
        },
        "phi2": {"rope_parameters": None, "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        "gemma3-linear": {
            "rope_parameters": None,
            "layer_types": None,
            "sliding_window_pattern": 6,
            "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        "smollm3": {"no_rope_layers": None, "no_rope_layer_interval": 4},
    }
    for name, changes in old.items():
        assert Fixture(name, **changes).hyperparameters == Fixture(name).hyperparameters


def test_layers_without_positions_that_gguf_cannot_name_are_refused() -> None:
    fixture = Fixture("smollm3", no_rope_layers=[0, 1, 1, 1, 1])
    assert fixture.hyperparameters.nope_layers == (0,)
    with pytest.raises(Invalid, match="no_rope_layers"):
        fixture.family.to_gguf(fixture.hyperparameters)
