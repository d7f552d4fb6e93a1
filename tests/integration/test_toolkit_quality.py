"""What quantization costs the sample model, as docs/concepts/quantization.md tells it."""

from __future__ import annotations

import asyncio

import pytest

from rkfleet.sample import ensure_sample
from toolkit.evaluate.compare import Reference
from toolkit.evaluate.text import windows
from toolkit.evaluate.texts import CALIBRATION, EVALUATION
from toolkit.loading import open_model
from toolkit.quantize.apply import quantized_factory
from toolkit.quantize.calibration import read_samples, tokenize
from toolkit.quantize.options import Options
from toolkit.simulate.network import Network
from toolkit.tokens.open import open_tokenizer


@pytest.mark.model
@pytest.mark.timeout(600)
def test_eight_bits_cost_the_sample_a_percent_at_most_and_grq_keeps_more_of_it_than_normal() -> None:
    """What docs/concepts/quantization.md promises: all of both texts."""
    source = open_model(asyncio.run(ensure_sample()))
    tokenizer = open_tokenizer(source)
    pieces = tokenize(read_samples(CALIBRATION)[1], tokenizer)
    full = Reference(Network(source, source.family), windows(EVALUATION.read_text(), tokenizer))
    found = {}
    for options in (
        Options(dtype="w8a8", optimization_level=1),
        Options(dtype="w4a16_g128"),
        Options(dtype="w4a16_g128", algorithm="grq"),
    ):
        one = full.against(Network(source, source.family, quantized_factory(source, options, pieces)))
        found[options.dtype, options.algorithm] = one
        print(f"{options.dtype} {options.algorithm}: perplexity {one.perplexity_change:+.2%}, divergence {one.divergence:.4f}")
    assert abs(found["w8a8", "normal"].perplexity_change) < 0.01
    assert found["w4a16_g128", "grq"].perplexity.value < found["w4a16_g128", "normal"].perplexity.value
    assert found["w4a16_g128", "grq"].divergence < found["w4a16_g128", "normal"].divergence
