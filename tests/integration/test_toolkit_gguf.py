"""`rkfleet toolkit gguf`: what it writes is the model that it read, for llama.cpp too."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from rkfleet.clock import SystemClock
from rkfleet.errors import FailedPrecondition, Invalid
from rkfleet.sample import ensure_sample
from tests.support.remote_checkpoints import DATA, NAMES, checkpoint
from tests.support.tiny_llama import sample_tokenizer, write_tiny_llama
from toolkit.adapters.open import open_adapter
from toolkit.conversion.gguf import write_gguf
from toolkit.loading import ModelSource, open_model
from toolkit.simulate.cache import KvCache
from toolkit.simulate.linear import Dense, LinearFactory
from toolkit.simulate.network import Network
from toolkit.tokens.open import open_tokenizer
from toolkit.tokens.template import template_from_directory, template_from_metadata

TEXT = "The board said: café 123\n\n  and left"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny-llama")


def greedy(model: ModelSource, prompt: list[int], count: int, factory: LinearFactory = Dense) -> list[int]:
    network = Network(model, model.family, factory)
    cache, tokens = KvCache(model.hyperparameters, len(prompt) + count), list(prompt)
    given = tokens
    for _ in range(count):
        logits = network.logits(network.hidden(network.embed(given), cache)[-1:])
        given = [int(logits[0].argmax())]
        tokens += given
    return tokens[len(prompt) :]


def llamacpp(path: Path, prompt: list[int], count: int, adapter: Path | None = None) -> list[int]:
    command = [
        sys.executable,
        "-m",
        "tests.support.llamacpp_greedy",
        str(path),
        str(count),
        json.dumps(prompt),
        *([str(adapter)] if adapter else []),
    ]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)


@pytest.mark.model
def test_a_directory_becomes_a_file_that_llamacpp_runs_with_the_same_tokens(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path / "tiny", tokenizer=sample_tokenizer(asyncio.run(ensure_sample())))
    out = tmp_path / "tiny.gguf"
    command = [sys.executable, "-m", "toolkit", "gguf", str(directory), "-o", str(out), "--type", "f32"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "20 tensors (20 F32)" in said.stdout
    assert said.stderr == ""
    theirs, ours = open_model(directory), open_model(out)
    prompt = open_tokenizer(directory).encode(TEXT)
    assert open_tokenizer(out).encode(TEXT) == open_tokenizer(ours).encode(TEXT) == prompt
    assert greedy(theirs, prompt, 12) == greedy(ours, prompt, 12) == llamacpp(out, prompt, 12)
    assert ours.hyperparameters == theirs.hyperparameters
    hello = [{"role": "user", "content": "hello"}]
    rendered = template_from_metadata(ours.metadata, SystemClock()).render(hello)
    assert rendered == template_from_directory(directory, SystemClock()).render(hello)


@pytest.mark.model
def test_an_adapter_of_peft_in_the_weights_gives_llamacpps_tokens(tmp_path: Path) -> None:
    """Where rows of queries are moved, those of the adapter move with them."""
    directory = write_tiny_llama(tmp_path / "tiny")
    model = open_model(directory)
    random = np.random.default_rng(3)
    tensors = {}
    for layer in range(2):
        for name in ("q_proj", "k_proj", "v_proj"):
            stem = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            out = model.tensors[f"blk.{layer}.attn_{name[0]}.weight"].shape[0]
            tensors[f"{stem}.lora_A.weight"] = random.standard_normal((4, 64)).astype(np.float32) * 0.3
            tensors[f"{stem}.lora_B.weight"] = random.standard_normal((out, 4)).astype(np.float32) * 0.3
    (tmp_path / "lora").mkdir()
    save_file(tensors, tmp_path / "lora" / "adapter_model.safetensors")
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    out_file = tmp_path / "joined.gguf"
    command = [sys.executable, "-m", "toolkit", "gguf", str(directory), "-o", str(out_file), "--lora", f"{tmp_path / 'lora'}@0.5"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    prompt = open_tokenizer(directory).encode(TEXT)
    adapter = open_adapter(tmp_path / "lora", model)
    apart = greedy(model, prompt, 12, adapter.factory(Dense, 0.5))
    assert apart == greedy(open_model(out_file), prompt, 12) == llamacpp(out_file, prompt, 12)
    assert apart != greedy(model, prompt, 12)
    plain, alone = tmp_path / "plain.gguf", tmp_path / "lora.gguf"
    write_gguf(model, plain)
    writer = gguf.GGUFWriter(alone, "llama")
    for key, value in (("general.type", "adapter"), ("adapter.type", "lora")):
        writer.add_string(key, value)
    writer.add_float32("adapter.lora.alpha", 4.0)
    for name, low_rank in adapter.layers.items():
        writer.add_tensor(f"{name}.weight.lora_a", low_rank.down)
        writer.add_tensor(f"{name}.weight.lora_b", low_rank.up * np.float32(low_rank.scale * 0.5))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert llamacpp(plain, prompt, 12, alone) == apart
    assert greedy(model, prompt, 12, open_adapter(alone, model).factory(Dense)) == apart


@pytest.mark.model
@pytest.mark.parametrize("name", NAMES)
def test_every_familys_directory_becomes_a_file_with_the_same_answers(name: str, tmp_path: Path) -> None:
    """For the toolkit, and for llama.cpp, which has its own reading of the keys."""
    published = open_model(DATA / f"{name}.gguf")
    config, tensors = checkpoint(name, {tensor: published.read(tensor) for tensor in published.tensors})
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, tmp_path / "model.safetensors")
    pieces = [*"abcdefghijklmnopqrstuvwxyzĠĊ", "ab"]  # llama.cpp wants a space, a line's end and a merge.
    letters = Tokenizer(models.BPE({piece: at for at, piece in enumerate(pieces)}, [("a", "b")]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "e"}')  # Without one llama.cpp takes token 11 for the end.
    prompt = [int(at) for at in np.load(DATA / f"{name}.npz")["prompt"]]
    out = tmp_path / "out.gguf"
    write_gguf(open_model(tmp_path), out, kind="f32")
    wanted = greedy(published, prompt, 8)
    assert greedy(open_model(tmp_path), prompt, 8) == greedy(open_model(out), prompt, 8) == wanted
    assert llamacpp(out, prompt, 8) == llamacpp(DATA / f"{name}.gguf", prompt, 8)


@pytest.mark.parametrize(("kind", "bound"), [("f16", 2e-3), ("bf16", 2e-2), ("q8_0", 3e-2), ("q4_0", 0.5), ("q4_1", 0.4)])
def test_every_type_keeps_the_weights_as_near_as_it_can(directory: Path, tmp_path: Path, kind: str, bound: float) -> None:
    model = open_model(directory)
    write_gguf(model, tmp_path / "out.gguf", kind=kind)
    made = open_model(tmp_path / "out.gguf")
    assert list(made.tensors) == list(model.tensors)
    for name, info in made.tensors.items():
        assert info.dtype == (kind.upper() if len(info.shape) > 1 else "F32")
        assert np.abs(made.read(name) - model.read(name)).max() <= bound


@pytest.mark.model
def test_without_a_type_a_file_stays_what_it_is(tmp_path: Path) -> None:
    model = open_model(asyncio.run(ensure_sample()))
    write_gguf(model, tmp_path / "again.gguf")
    again = open_model(tmp_path / "again.gguf")
    assert dict(again.metadata) == dict(model.metadata)
    assert [(name, info) for name, info in again.tensors.items()] == [(name, info) for name, info in model.tensors.items()]
    for name in ("token_embd.weight", "blk.3.attn_q.weight", "output_norm.weight"):
        assert np.array_equal(again.read(name), model.read(name))


def test_half_precision_stays_half_precision(tmp_path: Path) -> None:
    half = write_tiny_llama(tmp_path / "half", dtype=np.float16)
    written = write_gguf(open_model(half), tmp_path / "half.gguf")
    assert written.types == {"F16": 15, "F32": 5}


def test_what_cannot_be_written_leaves_nothing_behind(directory: Path, tmp_path: Path) -> None:
    model = open_model(directory)
    with pytest.raises(Invalid, match="--type 'q2_k' is unknown; known are f32, f16"):
        write_gguf(model, tmp_path / "x.gguf", kind="q2_k")
    with pytest.raises(FailedPrecondition, match="cannot be written"):
        write_gguf(model, tmp_path / "none" / "x.gguf")

    def stop(done: int, total: int) -> None:
        raise Invalid("stopped")

    with pytest.raises(Invalid, match="stopped"):
        write_gguf(model, tmp_path / "x.gguf", progress=stop)
    assert list(tmp_path.iterdir()) == []
    write_gguf(model, tmp_path / "x.gguf")
    with pytest.raises(Invalid, match="is the model itself"):
        write_gguf(open_model(tmp_path / "x.gguf"), tmp_path / "x.gguf")
