"""Families whose checkpoints bring code of their own: against llama.cpp, against torch, and from their publishers' names.

The fixtures are made by tests/oracles/llamacpp_logits.py and tests/oracles/torch_logits.py.
"""

from __future__ import annotations

from typing import Any

import gguf
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from rkfleet.errors import Invalid
from tests.support.remote_checkpoints import DATA, NAMES, checkpoint
from toolkit.checkpoint.base import Array, TensorInfo
from toolkit.loading import ModelSource, open_model
from toolkit.simulate.cache import KvCache
from toolkit.simulate.families.base import Family
from toolkit.simulate.families.registry import family_of_config
from toolkit.simulate.hyperparameters import Hyperparameters, from_gguf
from toolkit.simulate.network import Network

CAPACITY = 256  # As the oracle's context; beyond it, and only there, the tiny models with longrope have other positions.
TOLERANCE = 2e-5  # 3e-6 was reached; the issue asks for 1e-4.


class Checkpoint:
    """A publisher's tensors in the house's form, by way of `origins`."""

    def __init__(self, family: Family, config: dict[str, Any], tensors: dict[str, NDArray[np.float32]]) -> None:
        self.family = family
        self.hyperparameters: Hyperparameters = family.from_config(config)
        self.origins = family.origins(self.hyperparameters, {name: values.shape for name, values in tensors.items()})
        self.tensors = {name: TensorInfo(name, origin.shape, "F32", 0) for name, origin in self.origins.items()}
        self._theirs = tensors

    def read(self, name: str) -> Array:
        origin = self.origins[name]
        sources = [self._theirs[source] for source in origin.sources]
        return sources[0] if origin.make is None else np.asarray(origin.make(sources))


def opened(name: str) -> ModelSource:
    return open_model(DATA / f"{name}.gguf")


def published(name: str) -> Checkpoint:
    """Return the model as it comes from its publisher."""
    model = opened(name)
    config, tensors = checkpoint(name, {tensor: model.read(tensor) for tensor in model.tensors})
    return Checkpoint(family_of_config(config["architectures"]), config, tensors)


def log_probabilities(logits: Array) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def run(network: Network, prompt: NDArray[np.int64], chunk: int) -> Array:
    """Return logits after every token, run in chunks over one cache."""
    cache = KvCache(network.hyperparameters, CAPACITY)
    parts = [prompt[start : start + chunk] for start in range(0, len(prompt), chunk)]
    return np.concatenate([network.logits(network.hidden(network.embed(part), cache)) for part in parts])


@pytest.mark.parametrize("chunk", [12, 7, 1])
@pytest.mark.parametrize("name", NAMES)
def test_a_family_computes_what_llama_cpp_computes(name: str, chunk: int) -> None:
    """In one prefill, in two, and token by token over the cache."""
    model, kept = opened(name), np.load(DATA / f"{name}.npz")
    found = log_probabilities(run(Network(model, model.family), kept["prompt"], chunk))
    assert np.abs(found - kept["log_probabilities"]).max() < TOLERANCE


@pytest.mark.parametrize("name", ["minicpm3", "chatglm", "telechat2"])
def test_a_published_checkpoint_computes_what_torch_computes(name: str) -> None:
    """Transformers' MiniCPM3; its GLM-4, whose block is ChatGLM3's; for TeleChat2 a description of its own in the oracle."""
    source, kept = published(name), np.load(DATA / f"{name}.torch.npz")
    found = run(Network(source, source.family), kept["prompt"], len(kept["prompt"]))
    assert np.abs(found - kept["logits"]).max() < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_a_published_checkpoint_becomes_the_tensors_of_its_gguf_file(name: str) -> None:
    """Bit for bit, and no tensor of the checkpoint is left out."""
    source, model = published(name), opened(name)
    assert sorted(source.tensors) == sorted(model.tensors)
    for tensor, info in model.tensors.items():
        values = source.read(tensor)
        assert (tensor, values.shape) == (tensor, info.shape) == (tensor, source.tensors[tensor].shape)
        np.testing.assert_array_equal(values, model.read(tensor))
    used = {theirs for origin in source.origins.values() for theirs in origin.sources}
    assert used == set(source._theirs)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_says_what_the_gguf_file_says(name: str) -> None:
    theirs, ours = published(name).hyperparameters, Network(opened(name), opened(name).family).hyperparameters
    for field in msgspec.structs.fields(Hyperparameters):
        left, right = getattr(theirs, field.name), getattr(ours, field.name)
        if field.name == "rope_scaling":
            left, right = stretched(theirs), stretched(ours)
        assert (field.name, left) == (field.name, pytest.approx(right) if isinstance(right, float) else right)


def stretched(sizes: Hyperparameters) -> tuple[Any, ...] | None:
    """Return what of longrope counts; a GGUF file without factors stretches nothing."""
    scaling = sizes.rope_scaling
    if scaling is None or not scaling.factors_short:
        return None
    return scaling.original_context, scaling.attention_factor, scaling.factors_short, scaling.factors_long


@pytest.mark.parametrize("name", NAMES)
def test_keys_of_a_family_come_back_from_a_gguf_file(name: str) -> None:
    """What `to_gguf` writes into the file's metadata is what `from_gguf` had read there."""
    model = opened(name)
    written = dict(model.metadata) | model.family.to_gguf(model.hyperparameters)
    vocabulary = model.tensors["token_embd.weight"].shape[0]
    again = model.family.from_gguf(from_gguf(written, vocabulary=vocabulary), written)
    for field in msgspec.structs.fields(Hyperparameters):
        left, right = getattr(again, field.name), getattr(model.hyperparameters, field.name)
        assert (field.name, left) == (field.name, pytest.approx(right) if isinstance(right, float) else right)
    for key in model.family.to_gguf(published(name).hyperparameters):
        assert key in model.metadata or (name == "minicpm3" and "rope.scaling" in key)  # Files of MiniCPM3 leave them out.


@pytest.mark.parametrize("name", [name for name in NAMES if name != "telechat2"])  # llama.cpp has no names for TeleChat2's.
def test_names_are_those_that_llama_cpp_gives_to_published_tensors(name: str) -> None:
    """Held against the table of the `gguf` package; tensors that are taken apart are in no table."""
    source = published(name)
    architectures = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(architectures[source.family.architecture], 2)
    whole = {origin.sources[0]: ours for ours, origin in source.origins.items() if origin.sources and "wqkv" not in origin.sources[0]}
    for theirs, ours in whole.items():
        bare = theirs.removeprefix("transformer.") if name == "chatglm" else theirs  # As its converter takes it off.
        found = table.get_name(bare, try_suffixes=(".weight", ".bias"))
        assert (theirs, found) == (theirs, ours)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("qwen", {"rotary_pct": 0.5}, "rotary_pct is 0.5"),
        ("qwen", {"no_bias": False}, "no_bias is False"),
        ("qwen", {"intermediate_size": 95}, "intermediate_size is 95"),
        ("qwen", {"hidden_size": "32"}, "hidden_size is '32'"),
        ("chatglm", {"rmsnorm": False}, "rmsnorm is False"),
        ("chatglm", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm is True"),
        ("chatglm", {"pre_seq_len": 128}, "pre_seq_len is 128"),
        ("chatglm", {"quantization_bit": 4}, "quantization_bit is 4"),
        ("chatglm", {"post_layer_norm": 1}, "post_layer_norm is 1"),
        ("chatglm", {"multi_query_group_num": 0}, "multi_query_group_num is 0"),
        ("internlm2", {"num_key_value_heads": 3}, "num_attention_heads is 4, which is no multiple of num_key_value_heads, 3"),
        ("internlm2", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("internlm2", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "'yarn'"),
        ("minicpm", {"hidden_act": "fatrelu"}, "hidden_act is 'fatrelu'; .*MiniCPM-S"),
        ("minicpm", {"sparse_config": {"kernel_size": 32}}, "sparse_config is .*MiniCPM4"),
        ("minicpm", {"num_experts": 8}, "num_experts is 8"),
        ("minicpm", {"use_output_gate": True}, "use_output_gate is True"),
        ("minicpm", {"use_output_norm": True}, "use_output_norm is True"),
        ("minicpm", {"attn_use_rope": False}, "attn_use_rope is False"),
        ("minicpm", {"dim_model_base": 0}, "dim_model_base is 0"),
        ("minicpm", {"scale_depth": None}, "scale_depth is None"),
        ("minicpm3", {"scale_emb": None}, "scale_emb is None"),
        ("minicpm4", {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "short_factor is 1 numbers"),
        ("minicpm4", {"rope_scaling": {"rope_type": "longrope", "short_factor": [1, 1, 1, -1.0]}}, "short_factor has -1.0"),
        ("chatglm", {"rope_ratio": -1}, "rope_ratio is -1.0"),
        ("qwen", {"kv_channels": 7}, "heads of 7 dimensions"),
        ("internlm2", {"hidden_size": 34}, "num_attention_heads is 4, which does not divide hidden_size, 34"),
        ("minicpm3", {"num_key_value_heads": 2}, "num_key_value_heads is 2"),
        ("minicpm3", {"q_lora_rank": None}, "q_lora_rank is None"),
        ("telechat2", {"embed_layernorm": True}, "embed_layernorm is True"),
        ("telechat2", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling is "),
        ("telechat2", {"n_head": 3}, "n_head is 3"),
    ],
)
def test_a_field_that_would_change_the_computation_is_refused(name: str, change: dict[str, Any], told: str) -> None:
    model = opened(name)
    config, _ = checkpoint(name, {tensor: model.read(tensor) for tensor in model.tensors})
    family = family_of_config(config["architectures"])
    with pytest.raises(Invalid, match=told):
        family.from_config(config | change)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_that_lacks_a_tensor_is_told_which(name: str) -> None:
    """For every tensor but the output layer, without which the embeddings take its place, and biases."""
    source = published(name)
    shapes = {theirs: values.shape for theirs, values in source._theirs.items()}
    for theirs, origin in ((origin.sources[0], ours) for ours, origin in source.origins.items() if origin.sources):
        left = {other: shape for other, shape in shapes.items() if other != theirs}
        if origin == "output.weight" or theirs.endswith(".bias"):
            assert origin not in source.family.origins(source.hyperparameters, left)
        elif name not in ("llama", "minicpm", "minicpm4"):
            with pytest.raises(Invalid, match=f"has no tensor {theirs}"):
                source.family.origins(source.hyperparameters, left)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("internlm2", "model.layers.1.attention.wqkv.weight"), ("telechat2", "transformer.h.1.self_attention.key_value.weight")],
)
def test_a_fused_tensor_of_other_heads_is_refused(name: str, tensor: str) -> None:
    source = published(name)
    shapes = {theirs: values.shape for theirs, values in source._theirs.items()}
    with pytest.raises(Invalid, match=f"tensor {tensor} has shape \\(31, 32\\)"):
        source.family.origins(source.hyperparameters, shapes | {tensor: (31, 32)})


def test_a_whole_number_is_the_number_that_a_family_computes_with() -> None:
    config, _ = checkpoint("qwen", {tensor: opened("qwen").read(tensor) for tensor in opened("qwen").tensors})
    family = family_of_config(config["architectures"])
    assert family.from_config(config | {"rotary_pct": 1}) == family.from_config(config)


def test_the_first_telechat_is_refused_with_what_is_known() -> None:
    with pytest.raises(Invalid, match="TeleChat of the first generation is not simulated"):
        family_of_config(["TelechatForCausalLM"])


def test_names_of_another_type_in_a_config_are_unknown() -> None:
    with pytest.raises(Invalid, match="has none that is known"):
        family_of_config([{"a": 1}])


@pytest.mark.parametrize(
    ("name", "key", "value", "told"),
    [
        ("minicpm", "minicpm.logit_scale", 0.0, "minicpm.logit_scale is 0.0"),
        ("minicpm", "minicpm.embedding_scale", "five", "minicpm.embedding_scale is 'five'"),
        ("minicpm3", "minicpm3.attention.kv_lora_rank", None, "minicpm3.attention.kv_lora_rank is None"),
        ("minicpm4", "minicpm.rope.scaling.attn_factor", float("nan"), "minicpm.rope.scaling.attn_factor is nan"),
        ("minicpm4", "minicpm.rope.scaling.original_context_length", 0, "original_context_length is 0"),
        ("chatglm", "chatglm.rope.dimension_count", "half", "chatglm.rope.dimension_count is 'half'"),
        ("chatglm", "chatglm.rope.dimension_count", 10, "chatglm.rope.dimension_count is 10, not an even number up to a head's 8"),
        ("minicpm3", "minicpm3.rope.dimension_count", 3, "minicpm3.rope.dimension_count is 3"),
        ("internlm2", "internlm2.attention.head_count_kv", 3, "internlm2.attention.head_count_kv is 3"),
        ("internlm2", "internlm2.attention.head_count_kv", 0, "internlm2.attention.head_count_kv is 0"),
    ],
)
def test_a_gguf_file_without_a_familys_numbers_is_refused(name: str, key: str, value: Any, told: str) -> None:
    model = opened(name)
    metadata = dict(model.metadata) | {key: value}
    with pytest.raises(Invalid, match=told):
        model.family.from_gguf(from_gguf(metadata, vocabulary=40), metadata)


def test_an_early_minicpm_file_without_scales_has_those_of_published_models() -> None:
    model = opened("minicpm")
    metadata = {key: value for key, value in model.metadata.items() if not key.endswith("_scale")}
    sizes = model.family.from_gguf(from_gguf(metadata, vocabulary=40), metadata)
    assert (sizes.embedding_scale, sizes.logit_scale) == (12.0, 256 / 32)
    assert sizes.residual_scale == pytest.approx(1.4 / 2**0.5)


def test_telechat2_takes_the_names_of_other_families_too() -> None:
    config, _ = checkpoint("telechat2", {name: opened("telechat2").read(name) for name in opened("telechat2").tensors})
    usual = {"n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "ffn_hidden_size": "intermediate_size"}
    usual |= {"layer_norm_epsilon": "rms_norm_eps"}
    family = family_of_config(["TeleChat2ForCausalLM"])
    assert family.from_config({usual.get(name, name): value for name, value in config.items()}) == family.from_config(config)


def test_chatglm_files_without_a_count_of_turning_dimensions_turn_half_a_head() -> None:
    model = opened("chatglm")
    metadata = {key: value for key, value in model.metadata.items() if key != "chatglm.rope.dimension_count"}
    assert model.family.from_gguf(from_gguf(metadata, vocabulary=40), metadata) == model.hyperparameters


class Altered:
    """A model with other tensors."""

    def __init__(self, model: ModelSource, tensors: dict[str, NDArray[np.float32]]) -> None:
        self.hyperparameters = model.hyperparameters
        self.tensors = {name: TensorInfo(name, values.shape, "F32", values.nbytes) for name, values in tensors.items()}
        self._values = tensors

    def read(self, name: str) -> Array:
        return self._values[name]


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ({"rope_factors_long.weight": np.ones(4, np.float32)}, "rope_factors_short.weight: the model has nothing"),
        (
            {"rope_factors_long.weight": np.ones(4, np.float32), "rope_factors_short.weight": np.ones(3, np.float32)},
            r"rope_factors_short.weight: the model has shape \(3,\)",
        ),
    ],
)
def test_factors_of_longrope_that_do_not_fit_are_refused(kept: dict[str, NDArray[np.float32]], told: str) -> None:
    model = opened("minicpm4")
    tensors = {name: model.read(name) for name in model.tensors if not name.startswith("rope_factors")}
    with pytest.raises(Invalid, match=told):
        Network(Altered(model, tensors | kept), model.family)


def test_longrope_follows_the_room_that_was_asked_for() -> None:
    """As in llama.cpp: a cache beyond the original context has the long factors from the first token on."""
    model = opened("minicpm4")
    network = Network(model, model.family)
    prompt = np.load(DATA / "minicpm4.npz")["prompt"]
    found = []
    for capacity in (128, 129, CAPACITY):
        cache = KvCache(network.hyperparameters, capacity)
        found.append(network.logits(network.hidden(network.embed(prompt), cache)))
    assert np.array_equal(found[1], found[2])
    assert np.abs(found[0] - found[1]).max() > 1e-3
