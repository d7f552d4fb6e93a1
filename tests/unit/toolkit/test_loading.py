"""A Hugging Face directory is opened without being read, and one that does not fit itself is refused by name."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rkfleet.errors import Invalid, NotFound
from tests.support.tiny_llama import HEADS, HIDDEN, write_tiny_llama
from toolkit.loading import HuggingFaceSource, open_model


def test_rows_of_queries_are_moved_to_where_gguf_has_them(tmp_path: Path) -> None:
    model = open_model(write_tiny_llama(tmp_path / "m"))
    theirs = load_file(tmp_path / "m" / "model.safetensors")
    query = theirs["model.layers.1.self_attn.q_proj.weight"]
    dim = HIDDEN // HEADS
    ours = model.read("blk.1.attn_q.weight")
    for head in range(HEADS):
        for pair in range(dim // 2):
            assert np.array_equal(ours[head * dim + 2 * pair], query[head * dim + pair])
            assert np.array_equal(ours[head * dim + 2 * pair + 1], query[head * dim + dim // 2 + pair])
    assert np.array_equal(model.read("blk.1.attn_v.weight"), theirs["model.layers.1.self_attn.v_proj.weight"])
    assert model.metadata["llama.attention.head_count_kv"] == 2
    assert model.metadata["tokenizer.ggml.pre"] == "gpt-2"
    with pytest.raises(NotFound, match=r"has no tensor 'blk.9.x'"):
        model.read("blk.9.x")


def test_only_the_tensors_that_are_asked_for_are_read(tmp_path: Path) -> None:
    model = open_model(write_tiny_llama(tmp_path / "m"))
    assert isinstance(model, HuggingFaceSource)
    read: list[str] = []

    class Watched:
        tensors = model.checkpoint.tensors

        def read(self, name: str) -> Any:
            read.append(name)
            return original.read(name)

    original = model.checkpoint
    object.__setattr__(model, "checkpoint", Watched())
    model.read("blk.0.attn_k.weight")
    assert read == ["model.layers.0.self_attn.k_proj.weight"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, r"architectures \['GPT2LMHeadModel'\] has none that is known"),
        ({"architectures": 7}, "architectures 7 has none"),
        ({"num_hidden_layers": 3}, r"no tensor model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, r"has model.layers.1.*and 6 more tensors, which llama has no place for"),
        ({"num_hidden_layers": 1 << 24}, "num_hidden_layers is 16777216; up to 1024"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"hidden_size": 1 << 62}, "hidden_size is 4611686018427387904"),
        ({"hidden_size": 32}, r"tensor token_embd.weight has shape \(\d+, 64\), its sizes make \(\d+, 32\)"),
        ({"intermediate_size": 95}, r"tensor blk.0.ffn_gate.weight has shape \(96, 64\), its sizes make \(95, 64\)"),
        ({"vocab_size": 5}, r"tensor token_embd.weight has shape"),
        ({"num_key_value_heads": 4}, r"tensor blk.0.attn_k.weight has shape \(32, 64\), its sizes make \(64, 64\)"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config 'gptq': its weights are packed"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_no_time(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    directory = write_tiny_llama(tmp_path / "m", **config)
    before = time.process_time()
    with pytest.raises(Invalid, match=words):
        open_model(directory)
    assert time.process_time() - before < 0.1


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ("model.embed_tokens.weight", r"no tensor model.embed_tokens.weight"),
        ("model.layers.1.self_attn.q_proj.weight", r"no tensor model.layers.1.self_attn.q_proj.weight"),
        ("model.layers.0.mlp.up_proj.weight", r"no tensor model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, tensor: str, words: str) -> None:
    directory = write_tiny_llama(tmp_path / "m")
    values = load_file(directory / "model.safetensors")
    del values[tensor]
    save_file(values, directory / "model.safetensors")
    with pytest.raises(Invalid, match=words):
        open_model(directory)


def test_a_tensor_without_a_place_is_named_and_tables_are_let_go(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path / "m")
    values = load_file(directory / "model.safetensors")
    values["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    save_file(values, directory / "model.safetensors")
    assert len(open_model(directory).tensors) == 20
    save_file({**values, "vision.patch.weight": np.ones(8, np.float32)}, directory / "model.safetensors")
    with pytest.raises(Invalid, match=r"has vision.patch.weight, which llama has no place for"):
        open_model(directory)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a":' * 5000, '{"a": 1}' + " " * (5 << 20), '{"hidden_size": 1' + "0" * 5000 + "}"])
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}) if text == "{}" else text)
    with pytest.raises(Invalid, match=r"config.json"):
        open_model(tmp_path)


def test_where_no_model_is_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        open_model(tmp_path / "none")
    with pytest.raises(NotFound, match=r"is no model: it has no config.json"):
        open_model(tmp_path)
