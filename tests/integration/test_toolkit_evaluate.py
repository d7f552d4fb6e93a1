"""Perplexity and comparisons on the sample model: held against llama.cpp's own log-probabilities."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from rkfleet.errors import Invalid
from rkfleet.sample import SMOLLM2, ensure_sample
from toolkit.evaluate.compare import Reference
from toolkit.evaluate.perplexity import log_probabilities, measure
from toolkit.evaluate.sensitivity import measure_blocks
from toolkit.evaluate.text import Window
from toolkit.evaluate.texts import EVALUATION
from toolkit.loading import open_model
from toolkit.quantize.apply import quantized_factory
from toolkit.quantize.options import Options
from toolkit.simulate.network import Network
from toolkit.tokens.open import open_tokenizer

DATA = Path(__file__).parents[1] / "data/toolkit"
TINY = DATA / "families/llama.gguf"


@pytest.fixture(scope="module")
def sample_model() -> Path:
    return asyncio.run(ensure_sample())


class LlamaCpp(msgspec.Struct, rename="camel"):
    """What tests/oracles/llamacpp_perplexity.py wrote."""

    model: str
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]


@pytest.mark.model
def test_perplexity_of_the_sample_is_llamacpps_within_half_a_percent(sample_model: Path) -> None:
    told = msgspec.json.decode((DATA / "llamacpp_perplexity.json").read_bytes(), type=LlamaCpp)
    assert told.model == SMOLLM2.sha256
    model = open_model(sample_model)
    assert open_tokenizer(model).encode(EVALUATION.read_text())[: len(told.tokens)] == list(told.tokens)
    network, window = Network(model, model.family), Window(told.tokens, 1)
    ours = np.concatenate(list(log_probabilities(network, window)))
    theirs = np.array(told.log_probabilities)
    ratio = float(np.exp(theirs.mean() - ours.mean()))
    apart = np.abs(ours - theirs)
    print(f"perplexity {np.exp(-ours.mean()):.4f}, llama.cpp {np.exp(-theirs.mean()):.4f}, {ratio - 1:+.3%}")
    print(f"log-probabilities of tokens apart by {apart.mean():.4f}, at most {apart.max():.3f}")
    assert abs(ratio - 1) < 0.005
    assert apart.mean() < 0.1  # llama.cpp computes with activations of eight bits.


def tiny() -> tuple[Network, Network, tuple[Window, ...]]:
    """Return a random model of 40 words, the same in four bits, and a text."""
    model = open_model(TINY)
    quantized = Network(model, model.family, quantized_factory(model, Options(dtype="w4a16")))
    tokens = tuple(int(one) for one in np.random.default_rng(3).integers(3, 40, 48))
    return Network(model, model.family), quantized, (Window(tokens[:24], 1), Window(tokens[24:], 1))


def test_a_network_against_itself_differs_in_nothing() -> None:
    full, _, found = tiny()
    same = Reference(full, found).against(full)
    assert same.perplexity_change == pytest.approx(0, abs=1e-6)
    assert same.divergence < 1e-6
    assert same.agreement == 1
    assert same.cosine_logits == pytest.approx(1, abs=1e-6)
    assert same.perplexity.value == pytest.approx(measure(full, found).value)


def test_what_four_bits_cost_is_seen_in_every_measure() -> None:
    full, quantized, found = tiny()
    one = Reference(full, found).against(quantized)
    assert one.divergence > 0.001
    assert one.divergence_99 > one.divergence
    assert one.cosine_logits < 0.9999
    assert one.cosine_hidden < 0.9999
    assert one.perplexity.tokens == 46


def test_blocks_alone_suffer_and_an_untouched_network_does_not() -> None:
    full, quantized, found = tiny()
    blocks = measure_blocks(full, quantized, found)
    assert [one.name for one in blocks] == ["blk.0", "blk.1", "output"]
    assert all(one.divergence > 0 for one in blocks)
    assert all(one.divergence < 1e-6 for one in measure_blocks(full, full, found))


def test_weights_that_are_no_numbers_are_told_instead_of_a_perplexity() -> None:
    full, _, found = tiny()
    full.tensor("output_norm.weight")[3] = np.nan
    with pytest.raises(Invalid, match="computes no numbers"):
        measure(full, found)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "toolkit", *words], capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.model
def test_commands_tell_the_same_figures_in_every_form_and_what_they_are(sample_model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text(EVALUATION.read_text()[:300])
    words = ("compare", str(sample_model), "--dtype", "w8a8", "--text", str(text))
    table, whole = run(*words), json.loads(run(*words, "--output", "json").stdout)
    (one,) = whole["dtypes"]
    assert f"{one['perplexity']['value']:.4f}" in table.stdout
    assert "simulated on this PC" in table.stdout
    assert whole["reference"]["tokens"] == one["perplexity"]["tokens"]
    alone = json.loads(run("perplexity", str(sample_model), "--text", str(text), "--output", "json").stdout)
    assert alone["value"] == pytest.approx(whole["reference"]["value"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("compare", str(TINY), "--dtype", "w3a3"), "dtype 'w3a3' is unknown"),
        (("perplexity", str(TINY), "--dtype", "w8a8", "--algorithm", "grq"), "algorithm 'grq' does not go with dtype 'w8a8'"),
        (("perplexity", str(TINY), "--text", "none.txt"), "text 'none.txt' cannot be read"),
        (("perplexity", str(TINY), "--context", "1"), "context 1 is too short"),
        (("compare", str(TINY), "--plot", "blocks.pdf"), "plot 'blocks.pdf' must end with .svg or .png"),
        (("profile", str(TINY), "--dtype", "w4a16", "--soc", "rk3588"), "row RK3588 of table quantized_dtype"),
        (("recommend", str(TINY), "--max-loss", "-1"), "max loss -1.0 must be 0 or more"),
        (("recommend", str(TINY), "--soc", "rk3399"), "soc 'rk3399' has no row"),
        (("recommend", str(TINY), "--board-memory", "lots"), "board memory 'lots'"),
    ],
)
def test_what_cannot_be_is_refused_by_its_field_and_value(words: tuple[str, ...], told: str) -> None:
    done = run(*words)
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.model
def test_a_report_has_a_table_plots_and_the_next_command(sample_model: Path, tmp_path: Path) -> None:
    words = ("--dtype", "w8a8", "--tokens", "40", "--report", str(tmp_path / "report"))
    done = run("recommend", str(sample_model), *words, "--soc", "rk3588", "--output", "json")
    (choice,) = json.loads(done.stdout)["choices"]
    text = (tmp_path / "report/report.md").read_text()
    assert choice["verdict"]["word"] in text
    assert choice["figures"]["tokens_per_second"]["origin"] in text
    assert "rkfleet toolkit convert" in choice["command"]
    for name in ("choice.svg", "blocks.svg"):
        assert f"({name})" in text
        assert (tmp_path / "report" / name).read_text().lstrip().startswith("<?xml")
    assert json.loads((tmp_path / "report/report.json").read_text())["choices"][0]["dtype"] == "w8a8"
