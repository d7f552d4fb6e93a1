"""Options, calibration, whole models and their files, on a tiny random model; figures on the sample model."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from rkfleet.errors import FailedPrecondition, Invalid, NotFound
from rkfleet.sample import ensure_sample
from toolkit.checkpoint.base import Array, TensorInfo
from toolkit.loading import ModelSource, open_model
from toolkit.quantize.apply import (
    QuantizedLayer,
    factory_of,
    layer_dtypes,
    linear_names,
    quantize_layer,
    quantize_layers,
    refused_widths,
)
from toolkit.quantize.calibration import CalibrationSample, observe, read_samples
from toolkit.quantize.checkpoint import read_layers, stored_factory, write_checkpoint, write_layers
from toolkit.quantize.gguf_output import write_gguf
from toolkit.quantize.options import Options, parse_algorithm
from toolkit.quantize.output import Request, quantize_model
from toolkit.recipe import Recipe
from toolkit.simulate.cache import KvCache
from toolkit.simulate.families.llama import Llama
from toolkit.simulate.hyperparameters import Hyperparameters
from toolkit.simulate.linear import Dense, LinearFactory
from toolkit.simulate.network import Network
from toolkit.tokens.open import open_tokenizer

RECIPE = Recipe(maker="test", sources=(), output="safetensors", dtype="w4a16_g32")
PIECES = [[1, 5, 9, 2, 7, 11, 3, 30], [8, 8, 1, 0, 31, 12]]


class Tiny:
    """A LLaMA of two blocks with random weights."""

    path = Path("tiny")
    family = Llama()

    def __init__(self) -> None:
        self.hyperparameters = Hyperparameters(
            architecture="llama",
            layers=2,
            hidden=64,
            heads=4,
            kv_heads=2,
            head_dim=16,
            value_dim=16,
            feed_forward=96,
            vocabulary=32,
            context=64,
            norm_epsilon=1e-5,
            rope_dimensions=16,
            rope_interleaved=True,
        )
        random = np.random.default_rng(7)
        shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (32, 64), "output_norm.weight": (64,)}
        for layer in range(2):
            sizes = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64)}
            sizes |= {"ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96)}
            shapes |= {f"blk.{layer}.{name}.weight": size for name, size in sizes.items()}
            shapes |= {f"blk.{layer}.{name}.weight": (64,) for name in ("attn_norm", "ffn_norm")}
        self._values = {name: random.standard_normal(shape).astype(np.float32) / np.float32(8) for name, shape in shapes.items()}
        self.tensors = {name: TensorInfo(name, shape, "F32", 4 * int(np.prod(shape))) for name, shape in shapes.items()}
        self.metadata: dict[str, Any] = {
            "general.architecture": "llama",
            "llama.embedding_length": 64,
            "llama.attention.head_count": 4,
            "llama.attention.head_count_kv": 2,
            "llama.block_count": 2,
            "llama.feed_forward_length": 96,
            "llama.context_length": 64,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.rope.dimension_count": 16,
        }

    def read(self, name: str) -> Array:
        """Return a copy."""
        return self._values[name].copy()


def logits(source: ModelSource, factory: LinearFactory = Dense) -> Array:
    """Return the logits of the first piece."""
    network = Network(source, source.family, factory)
    return network.logits(network.hidden(network.embed(PIECES[0]), KvCache(source.hyperparameters, 16)))


def test_algorithms_are_the_vendors_words() -> None:
    """With a rank from 1 to 64 or without."""
    assert parse_algorithm("normal") == ("normal", 0)
    assert parse_algorithm("grq_r8") == ("grq", 8)
    for word in ("grq_r0", "grq_r65", "awq", "grq_r", ""):
        with pytest.raises(Invalid, match="is none of normal, grq, gdq"):
            parse_algorithm(word)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(dtype="w8a8", algorithm="grq"), "gdq and grq take w4a16"),
        (Options(dtype="w4a8_g32", algorithm="gdq"), "gdq and grq take w4a16"),
        (Options(dtype="w4a16", hybrid_rate=1.0), "hybrid rate 1.0 must be at least 0 and less than 1"),
        (Options(dtype="w4a16", hybrid_rate=float("nan")), "hybrid rate nan"),
        (Options(dtype="w4a8_g32", hybrid_rate=0.5), "has only one"),
        (Options(dtype="w8a8", optimization_level=2), "optimization level 2"),
        (Options(dtype="w8a8", low_rank=65), "rank 65"),
        (Options(dtype="w2a16"), "dtype 'w2a16' is unknown"),
        (Options(dtype="w8a8", output_layer="q6"), "output layer 'q6'"),  # type: ignore[arg-type]
    ],
)
def test_what_the_vendor_refuses_is_refused(options: Options, message: str) -> None:
    """The sentence names the rule."""
    with pytest.raises(Invalid, match=message):
        options.check()


def test_learned_rounding_needs_calibration() -> None:
    """The error says which command makes it."""
    with pytest.raises(FailedPrecondition, match="toolkit calibrate"):
        next(quantize_layers(Tiny(), Options(dtype="w4a16", algorithm="grq")))


def test_moments_are_those_of_the_inputs_and_shared_where_the_input_is() -> None:
    """Query, key and value are given the same array; its sum is kept once."""
    source = Tiny()
    inputs = observe(source, linear_names(source), PIECES)
    assert inputs["blk.0.attn_q"].moments is inputs["blk.0.attn_v"].moments
    assert inputs["blk.0.attn_q"].moments is not inputs["blk.0.attn_output"].moments
    assert inputs["output"].tokens == sum(map(len, PIECES))
    network = Network(source, source.family)
    rows = [network.hidden(network.embed(piece), KvCache(source.hyperparameters, 16)) for piece in PIECES]
    hidden = np.concatenate(rows)
    np.testing.assert_allclose(inputs["output"].moments, hidden.T @ hidden, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(inputs["output"].maxima, np.abs(hidden).max(axis=0), rtol=1e-5)


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    """It would be another model's tokenizer."""
    with pytest.raises(Invalid, match="token 99"):
        observe(Tiny(), ["output"], [[1, 99]])


def test_hybrid_layers_are_the_most_or_the_least_sensitive() -> None:
    """Without groups the worst get them, with groups the best lose them; the share is rounded down."""
    source = Tiny()
    sensitivities = {name: float(index) for index, name in enumerate(linear_names(source)[:-1])}
    coarse = layer_dtypes(source, Options(dtype="w4a16", hybrid_rate=0.25), sensitivities)
    assert [name for name, dtype in coarse.items() if dtype.name == "w4a16_g128"] == linear_names(source)[11:14]
    fine = layer_dtypes(source, Options(dtype="w4a16_g32", hybrid_rate=0.25), sensitivities)
    assert [name for name, dtype in fine.items() if dtype.name == "w4a16"] == linear_names(source)[:3]
    assert fine["output"].name == "w8a8"
    assert "output" not in layer_dtypes(source, Options(dtype="w4a16", output_layer="float"))


def test_widths_that_the_vendor_refuses_are_said() -> None:
    """One sentence for each width, with how many layers have it."""
    source = Tiny()
    sentences = refused_widths(source, layer_dtypes(source, Options(dtype="w4a16_g64")))
    assert "4 layers have 96 outputs, no multiple of the group 64: the vendor's build refuses this width" in sentences
    assert not refused_widths(source, layer_dtypes(source, Options(dtype="w4a16_g32")))


@pytest.mark.parametrize("algorithm", ["normal", "grq"])
def test_a_low_rank_brings_the_error_down(algorithm: str) -> None:
    """In the norm in which it is fitted, with every rank more."""
    source = Tiny()
    name = "blk.0.ffn_down"
    weight, inputs = source.read(f"{name}.weight"), observe(source, [name], PIECES)[name]
    errors = []
    for rank in (0, 4, 16):
        options = Options(dtype="w4a16", algorithm=parse_algorithm(algorithm)[0], low_rank=rank)
        layer = quantize_layer(name, weight, layer_dtypes(source, options)[name], options, inputs)
        a, b = layer.low_rank or (np.zeros((1, 96), np.float32), np.zeros((64, 1), np.float32))
        difference = layer.weight.dequantize() + b @ a - weight
        errors.append(float((difference**2 * np.maximum(np.diagonal(inputs.moments), 1e-9)).sum()))
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(
    "options",
    [
        Options(dtype="w8a8", optimization_level=1, low_rank=2),
        Options(dtype="w4a16_g32", algorithm="grq", low_rank=4),
        Options(dtype="w4a16", algorithm="gdq", hybrid_rate=0.5),
        Options(dtype="w4a8_g32", output_layer="same"),
        Options(dtype="w8a8_g512", output_layer="float"),
    ],
)
def test_a_directory_loads_again_with_the_same_logits(tmp_path: Path, options: Options) -> None:
    """To the last bit; layers, embeddings and norms."""
    source = Tiny()
    layers = list(quantize_layers(source, options, PIECES))
    write_checkpoint(tmp_path / "model", source, layers, RECIPE)
    again = open_model(tmp_path / "model")
    assert np.array_equal(logits(source, factory_of(layers)), logits(again, stored_factory(again.path)))
    assert msgspec.json.decode((tmp_path / "model" / "recipe.json").read_bytes(), type=Recipe) == RECIPE
    assert again.metadata["rkfleet.recipe.digest"] == RECIPE.digest
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.safetensors", "recipe.json", "rkfleet-quantized.json"]


def test_cached_layers_serve_a_second_export_of_the_same_recipe_only(tmp_path: Path) -> None:
    """The form of the output may differ, nothing else."""
    file = tmp_path / "a.qparams"
    layers = list(quantize_layers(Tiny(), Options(dtype="w4a16_g32")))
    write_layers(file, layers, RECIPE)
    there = list(read_layers(file, msgspec.structs.replace(RECIPE, output="gguf")))
    assert [one.name for one in there] == [one.name for one in layers]
    assert all(np.array_equal(one.weight.codes, other.weight.codes) for one, other in zip(there, layers, strict=True))
    with pytest.raises(FailedPrecondition, match="another recipe"):
        read_layers(file, msgspec.structs.replace(RECIPE, hybrid_rate=0.5))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """A head that lies about a layer, bytes that end too early, no file at all."""
    file = tmp_path / "a.qparams"
    write_layers(file, quantize_layers(Tiny(), Options(dtype="w4a16_g32")), RECIPE)
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'\\"shape\\":[64,64]', b'\\"shape\\":[64,62]', 1))
    with pytest.raises(Invalid, match="are not those of"):
        list(read_layers(file))
    file.write_bytes(whole[:-100])
    with pytest.raises(Invalid, match="cannot be read"):
        read_layers(file)
    with pytest.raises(NotFound):
        read_layers(tmp_path / "b.qparams")


@pytest.mark.parametrize("dtype", ["w8a8", "w8a8_g128", "w4a16", "w4a16_g32", "w4a16_g64"])
def test_gguf_holds_every_quantized_value(tmp_path: Path, dtype: str) -> None:
    """Widths here are multiples of 32: blocks repeat the scales, and nothing is lost."""
    source = Tiny()
    layers = list(quantize_layers(source, Options(dtype=dtype)))
    differences = write_gguf(tmp_path / "a.gguf", source, layers, RECIPE)
    again = open_model(tmp_path / "a.gguf")
    assert {one.name for one in differences} == {"token_embd.weight"}
    for layer in layers:
        assert np.array_equal(again.read(f"{layer.name}.weight"), layer.weight.dequantize()), layer.name
    assert json.loads(again.metadata["rkfleet.recipe"])["maker"] == "test"


def test_what_gguf_cannot_hold_is_measured(tmp_path: Path) -> None:
    """Divided inputs have no place in blocks: the layer becomes F16, and the loss is told."""
    source = Tiny()
    plain = quantize_layer(
        "blk.0.attn_q",
        source.read("blk.0.attn_q.weight"),
        layer_dtypes(source, Options(dtype="w8a8"))["output"],
        Options(dtype="w8a8"),
        None,
    )
    smooth = QuantizedLayer(plain.name, plain.dtype, plain.weight, np.full(64, 3, np.float32))
    differences = write_gguf(tmp_path / "a.gguf", source, [smooth], RECIPE)
    found = next(one for one in differences if one.name == "blk.0.attn_q.weight")
    assert (found.type, 0 < found.relative < 1e-3) == ("F16", True)


def test_calibration_files_are_the_vendors_json_or_text(tmp_path: Path) -> None:
    """Anything else is refused with what was found."""
    file = tmp_path / "data.json"
    file.write_text('[{"input": "<user>hi", "target": "hello"}, {"input": "", "target": ""}]')
    assert read_samples(file)[1] == (CalibrationSample("<user>hi", "hello"),)
    file.write_text("plain text")
    assert read_samples(file)[1] == (CalibrationSample("plain text"),)
    for content in ('[{"sample": "a.pkl"}]', "[]", "", "[1,"):
        file.write_text(content)
        with pytest.raises(Invalid, match="calibration file"):
            read_samples(file)
    with pytest.raises(NotFound):
        read_samples(tmp_path / "none.json")


@pytest.mark.model
def test_a_model_is_quantized_into_a_file_with_its_recipe(tmp_path: Path) -> None:
    """What the recipe says is in the file, beside it, and in what the person reads."""
    outcome = quantize_model(Request(source=asyncio.run(ensure_sample()), output=tmp_path / "a.gguf", dtype="w8a8_g128"))
    again = open_model(tmp_path / "a.gguf")
    assert again.metadata["rkfleet.recipe.digest"] == outcome.recipe.digest
    assert msgspec.json.decode((tmp_path / "a.recipe.json").read_bytes(), type=Recipe) == outcome.recipe
    assert any("180 layers have 576 inputs, no multiple of the group 128" in line for line in outcome.lines)
    assert open_tokenizer(again).encode("Hello") == open_tokenizer(open_model(asyncio.run(ensure_sample()))).encode("Hello")
