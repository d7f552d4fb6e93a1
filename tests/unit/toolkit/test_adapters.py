"""LoRA: joined and kept apart are the same, and both are what PEFT computes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rkfleet.errors import FleetError, Invalid, NotFound
from tests.support.remote_checkpoints import DATA as FAMILIES
from tests.support.remote_checkpoints import NAMES, checkpoint
from toolkit.adapters.base import Adapter, JoinedSource, LowRank
from toolkit.adapters.open import open_adapter, parse_adapter
from toolkit.checkpoint.base import Array
from toolkit.loading import open_model
from toolkit.simulate.cache import KvCache
from toolkit.simulate.linear import Dense, LinearFactory
from toolkit.simulate.network import Network, Source

DATA = Path(__file__).parents[2] / "data" / "toolkit" / "lora"
MODEL = open_model(DATA / "base")
PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


def logits(source: Source = MODEL, factory: LinearFactory = Dense) -> Array:
    tokens = np.load(DATA / "logits.npz")["tokens"]
    network = Network(source, MODEL.family, factory)
    return network.logits(network.hidden(network.embed(tokens), KvCache(MODEL.hyperparameters, len(tokens))))


def test_a_directory_of_hugging_face_gives_the_logits_of_torch() -> None:
    assert np.abs(logits() - np.load(DATA / "logits.npz")["base"]).max() <= 1e-4


@pytest.mark.parametrize("name", ["attention", "stabilized", "head"])
def test_an_adapter_gives_the_logits_of_peft_joined_and_apart(name: str) -> None:
    adapter = open_adapter(DATA / name, MODEL)
    theirs = np.load(DATA / "logits.npz")[name]
    apart = logits(factory=adapter.factory(Dense))
    assert np.abs(apart - theirs).max() <= 1e-4
    assert np.abs(logits(JoinedSource(MODEL, [(adapter, 1.0)])) - apart).max() <= 1e-4
    assert np.abs(logits(factory=adapter.joined(Dense)) - apart).max() <= 1e-4
    assert np.abs(theirs - np.load(DATA / "logits.npz")["base"]).max() > 1


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_of_every_layer_of_a_family_is_the_model_with_it_in_the_checkpoint(name: str, tmp_path: Path) -> None:
    """Where a family takes tensors apart, moves rows or renames, B goes the same way."""
    published = open_model(FAMILIES / f"{name}.gguf")
    config, tensors = checkpoint(name, {tensor: published.read(tensor) for tensor in published.tensors})
    random = np.random.default_rng(1)
    changed, halves = dict(tensors), {}
    for key, value in tensors.items():
        if value.ndim == 2 and key.endswith(".weight") and (".layers." in key or ".h." in key):
            down, up = (random.standard_normal(shape).astype(np.float32) / 5 for shape in ((2, value.shape[1]), (value.shape[0], 2)))
            stem = f"base_model.model.{key.removesuffix('.weight')}"
            halves |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
            changed[key] = value + 2 * (up @ down)
    models = []
    for place, values in (("base", tensors), ("changed", changed)):
        (tmp_path / place).mkdir()
        (tmp_path / place / "config.json").write_text(json.dumps(config))
        save_file({key: np.ascontiguousarray(value) for key, value in values.items()}, tmp_path / place / "model.safetensors")
        models.append(open_model(tmp_path / place))
    base, whole = models
    save_file(halves, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    adapter = open_adapter(tmp_path, base)
    prompt = np.load(FAMILIES / f"{name}.npz")["prompt"]

    def answers(source: Source, factory: LinearFactory = Dense) -> Array:
        network = Network(source, base.family, factory)
        return network.logits(network.hidden(network.embed(prompt), KvCache(source.hyperparameters, len(prompt))))

    assert np.abs(answers(base, adapter.factory(Dense)) - answers(whole)).max() <= 1e-4
    assert np.abs(answers(JoinedSource(base, [(adapter, 1.0)])) - answers(whole)).max() <= 1e-4


def test_a_scale_of_none_is_the_model_and_half_of_twice_is_once() -> None:
    adapter = open_adapter(DATA / "attention", MODEL)
    assert np.array_equal(logits(factory=adapter.factory(Dense, 0.0)), logits())
    twice = adapter.factory(adapter.factory(Dense, 0.5), 0.5)
    assert np.abs(logits(factory=twice) - logits(factory=adapter.factory(Dense))).max() <= 1e-4


def write_gguf_adapter(path: Path, adapter: Adapter, **keys: Any) -> Path:
    """Write as llama.cpp's converter does; a scale of one is an alpha of the rank."""
    (rank,) = {low_rank.down.shape[0] for low_rank in adapter.layers.values()}
    fields = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": float(rank), **keys}
    writer = gguf.GGUFWriter(path, fields.pop("general.architecture", "llama"))
    for key, value in fields.items():
        writer.add_float32(key, value) if isinstance(value, float) else writer.add_string(key, value)
    for name, low_rank in adapter.layers.items():
        writer.add_tensor(f"{name}.weight.lora_a", low_rank.down)
        writer.add_tensor(f"{name}.weight.lora_b", low_rank.up * np.float32(low_rank.scale))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_adapter_in_gguf_is_the_same_adapter(tmp_path: Path) -> None:
    adapter = open_adapter(DATA / "attention", MODEL)
    again = open_adapter(write_gguf_adapter(tmp_path / "a.gguf", adapter), MODEL)
    assert np.abs(logits(factory=again.factory(Dense)) - logits(factory=adapter.factory(Dense))).max() <= 1e-4


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"general.type": "model"}, "is no LoRA"),
        ({"adapter.type": "control_vector"}, "is no LoRA"),
        ({"general.architecture": "qwen2"}, "is for 'qwen2', the model is 'llama'"),
        ({"adapter.lora.alpha": "much"}, "adapter.lora.alpha is 'much'"),
    ],
)
def test_a_gguf_file_that_is_no_adapter_of_this_model_is_refused(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    adapter = open_adapter(DATA / "attention", MODEL)
    with pytest.raises(Invalid, match=words):
        open_adapter(write_gguf_adapter(tmp_path / "a.gguf", adapter, **keys), MODEL)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"use_dora": True}, "use_dora True: DoRA rescales"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\]: whole layers are replaced"),
        ({"fan_in_fan_out": True}, "weights are transposed"),
        ({"bias": "all"}, "bias 'all': biases are replaced"),
        ({"r": "four"}, "has r 'four', not a number"),
        ({"lora_alpha": None}, "has lora_alpha None, not a number"),
        ({"rank_pattern": {"q_proj": -1}}, r"rank_pattern\['q_proj'\] -1"),
    ],
)
def test_an_adapter_of_another_kind_is_refused_with_its_field(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    shutil.copytree(DATA / "attention", tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(Invalid, match=words):
        open_adapter(tmp_path / "a", MODEL)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{PREFIX}.lora_B.weight": None}, "which is no half of a LoRA"),
        ({f"{PREFIX}.lora_B.weight": (32, 3)}, r"shapes \(4, 32\) and \(32, 3\)"),
        ({f"{PREFIX}.lora_A.weight": (4, 31)}, r"changes blk.0.attn_q as \(32, 31\), the model has \(32, 32\)"),
        ({"base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": (4, 32)}, "which is no half of a LoRA"),
        ({"base_model.model.x.lora_A.weight": (4, 32), "base_model.model.x.lora_B.weight": (32, 4)}, "changes x.weight, which llama"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": (4, 48)}, "which is no half of a LoRA"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, tensors: dict[str, tuple[int, ...] | None], words: str) -> None:
    shutil.copytree(DATA / "attention", tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    values = load_file(file)
    for name, shape in tensors.items():
        if shape is None:
            del values[name]
        else:
            values[name] = np.ones(shape, np.float32)
    save_file(values, file)
    with pytest.raises(Invalid, match=words):
        open_adapter(tmp_path / "a", MODEL)


def test_an_adapter_for_another_model_is_refused_where_it_does_not_fit() -> None:
    wrong = Adapter(Path("x"), {"blk.0.attn_q": LowRank(np.ones((1, 8), np.float32), np.ones((8, 1), np.float32), 1.0)})
    with pytest.raises(Invalid, match=r"changes blk.0.attn_q as \(8, 8\), the model has \(32, 32\)"):
        logits(factory=wrong.factory(Dense))
    with pytest.raises(Invalid, match="which the model does not have"):
        Adapter(Path("x"), {"blk.9.attn_q": wrong.layers["blk.0.attn_q"]}).check(MODEL)


@pytest.mark.parametrize(
    ("place", "error", "words"),
    [("none", NotFound, "does not exist"), (".", NotFound, "is no adapter: it has no adapter_config.json")],
)
def test_where_no_adapter_is_that_is_said(place: str, error: type[FleetError], words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        open_adapter(tmp_path / place, MODEL)


def test_a_scale_stands_after_the_last_at_sign(tmp_path: Path) -> None:
    assert parse_adapter("a/b") == (Path("a/b"), 1.0)
    assert parse_adapter("a@b/c@0.5") == (Path("a@b/c"), 0.5)
    (tmp_path / "x@1").mkdir()
    assert parse_adapter(f"{tmp_path}/x@1") == (tmp_path / "x@1", 1.0)
    with pytest.raises(Invalid, match="scale 'x' is no number; write PATH@SCALE"):
        parse_adapter("a@x")
    with pytest.raises(Invalid, match="scale nan is not from"):
        parse_adapter("a@nan")
