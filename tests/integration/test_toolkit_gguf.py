"""`rkfleet toolkit gguf`: what it writes is the model that it read, for llama.cpp too."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rkfleet.clock import SystemClock
from rkfleet.errors import FailedPrecondition, Invalid
from rkfleet.sample import ensure_sample
from tests.support.tiny_llama import sample_tokenizer, write_tiny_llama
from toolkit.conversion.gguf import write_gguf
from toolkit.loading import ModelSource, open_model
from toolkit.simulate.cache import KvCache
from toolkit.simulate.network import Network
from toolkit.tokens.open import open_tokenizer
from toolkit.tokens.template import template_from_directory, template_from_metadata

TEXT = "The board said: café 123\n\n  and left"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny-llama")


def greedy(model: ModelSource, prompt: list[int], count: int) -> list[int]:
    network = Network(model, model.family)
    cache, tokens = KvCache(model.hyperparameters, len(prompt) + count), list(prompt)
    given = tokens
    for _ in range(count):
        logits = network.logits(network.hidden(network.embed(given), cache)[-1:])
        given = [int(logits[0].argmax())]
        tokens += given
    return tokens[len(prompt) :]


def llamacpp(path: Path, prompt: list[int], count: int) -> list[int]:
    command = [sys.executable, "-m", "tests.support.llamacpp_greedy", str(path), str(count), json.dumps(prompt)]
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
