"""The chat command over a tiny random model: adapters, quantized types, plain text, and what is said of times."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from rkfleet.errors import FleetError, Invalid
from tests.support.tiny_llama import HIDDEN, write_tiny_llama
from toolkit.commands.app import app
from toolkit.commands.chat import LABEL

GREEDY = ("--temperature", "0", "--max-new-tokens", "6", "--context", "128")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("toolkit") / "model")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("toolkit") / "adapter"
    directory.mkdir()
    random = np.random.default_rng(3)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    weights = {
        f"{prefix}.lora_A.weight": random.normal(size=(2, HIDDEN)).astype(np.float32),
        f"{prefix}.lora_B.weight": random.normal(size=(HIDDEN, 2)).astype(np.float32),
    }
    save_file(weights, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def answer(*arguments: object, given: str = "") -> list[dict]:
    done = CliRunner().invoke(app, ["chat", *map(str, arguments), "--output", "json"], input=given, catch_exceptions=True)
    if isinstance(done.exception, FleetError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_dtypes_and_adapters_change_what_is_said_and_nothing_else_does(model, adapter):
    asked = (model, *GREEDY, "--prompt", "the board said")
    plain, again, quantized, adapted, unscaled = (
        answer(*asked, *more)[0]["tokens"]
        for more in ((), ("--seed", "5"), ("--dtype", "w4a16"), ("--lora", adapter), ("--lora", f"{adapter}@0"))
    )
    assert plain == again == unscaled
    assert plain != quantized
    assert plain != adapted


def test_a_prompts_file_belongs_to_the_adapter(model, adapter, tmp_path):
    asked = (model, *GREEDY, "--prompt", "the board said", "--prompt-cache", tmp_path / "prompt")
    first = answer(*asked, "--lora", adapter)[0]
    second = answer(*asked, "--lora", adapter)[0]
    assert second["tokens"] == first["tokens"]
    assert second["reused_tokens"] == first["prompt_tokens"] - 1
    with pytest.raises(Invalid, match="made by another model, dtype or adapter"):
        answer(*asked, "--lora", f"{adapter}@0.5")


def test_every_line_is_a_turn_and_every_time_is_labelled(model):
    answers = answer(model, *GREEDY, given="the board\n\nthe model\n")
    assert len(answers) == 2
    assert answers[1]["reused_tokens"] >= answers[0]["prompt_tokens"]
    assert {one["measured"] for one in answers} == {LABEL}
    done = CliRunner().invoke(app, ["chat", str(model), *GREEDY, "--prompt", "the board", "--stats"])
    assert LABEL in done.stderr
    assert LABEL not in done.stdout


def test_plain_text_has_no_template(model):
    templated, raw = (answer(model, *GREEDY, "--prompt", "the board", *more)[0] for more in ((), ("--raw",)))
    assert raw["prompt_tokens"] < templated["prompt_tokens"]


def test_what_the_vendor_has_not_is_refused_by_name(model):
    with pytest.raises(Invalid, match="dtype 'w9a9' is unknown"):
        answer(model, "--prompt", "x", "--dtype", "w9a9")
    with pytest.raises(Invalid, match="algorithm 'grq' does not go with dtype 'w8a8'"):
        answer(model, "--prompt", "x", "--dtype", "w8a8", "--algorithm", "grq")
    with pytest.raises(Invalid, match="scale 'much' is no number"):
        answer(model, "--prompt", "x", "--lora", "there@much")
