"""Predictions of speed and memory: they grow with what they depend on, and their intervals hold them."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from toolkit.performance.facts import Facts
from toolkit.performance.fit import fit
from toolkit.performance.model import Figures, Usage, predict

PLACES = st.sampled_from([("rk3588", "w8a8"), ("rk3588", "w8a8_g512"), ("rk3576", "w8a8"), ("rk3576", "w4a16"), ("rk3576", "w4a16_g128")])
FACTS = st.builds(
    Facts,
    name=st.just(""),
    parameters=st.integers(500_000_000, 8_000_000_000),
    cache_bytes_per_token=st.integers(1 << 10, 1 << 20),
    attention_width=st.integers(1 << 10, 1 << 20),
)
USAGES = st.builds(Usage, prompt_tokens=st.integers(1, 16384), context_tokens=st.integers(1, 16384))


def figures(facts: Facts, place: tuple[str, str], usage: Usage) -> Figures:
    found = predict(facts, *place, usage)
    assert found is not None
    return found


@given(FACTS, PLACES, USAGES, st.integers(1, 1000))
def test_more_of_anything_is_never_cheaper(facts: Facts, place: tuple[str, str], usage: Usage, more: int) -> None:
    base = figures(facts, place, usage)
    larger = figures(msgspec.structs.replace(facts, parameters=facts.parameters + more * 1_000_000), place, usage)
    assert larger.tokens_per_second.value <= base.tokens_per_second.value
    assert larger.first_token_seconds.value >= base.first_token_seconds.value
    assert larger.memory_bytes.value >= base.memory_bytes.value
    longer = figures(facts, place, msgspec.structs.replace(usage, prompt_tokens=usage.prompt_tokens + more))
    assert longer.first_token_seconds.value >= base.first_token_seconds.value
    wider = figures(facts, place, msgspec.structs.replace(usage, context_tokens=usage.context_tokens + more))
    assert wider.memory_bytes.value > base.memory_bytes.value


@given(FACTS, PLACES, USAGES)
def test_an_interval_holds_its_figure_and_all_are_positive(facts: Facts, place: tuple[str, str], usage: Usage) -> None:
    found = figures(facts, place, usage)
    for one in (found.first_token_seconds, found.tokens_per_second, found.memory_bytes):
        assert 0 < one.low <= one.value <= one.high


@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.001, 1000)), min_size=4, max_size=12))
def test_a_line_through_anything_is_not_negative_and_has_a_spread(rows: list[tuple[float, float]]) -> None:
    line = fit([x for x, _ in rows], [y for _, y in rows])
    assert line is not None
    assert line.base >= 0
    assert line.slope >= 0
    assert line.spread >= 1
    assert line.at(line.smallest) <= line.at(line.largest)
