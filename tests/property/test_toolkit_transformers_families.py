"""However a text is cut, a family computes the same."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.hugging_face_fixtures import DATA, NAMES, Fixture, run
from toolkit.simulate.network import Network

LENGTH = 24


@cache
def network(name: str) -> Network:
    fixture = Fixture(name)
    return Network(fixture, fixture.family)


@st.composite
def cuts(draw: st.DrawFn) -> list[int]:
    places = sorted(draw(st.sets(st.integers(1, LENGTH - 1))))
    return [end - start for start, end in zip([0, *places], [*places, LENGTH], strict=True)]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None)
@given(sizes=cuts())
def test_logits_do_not_depend_on_how_a_prompt_is_cut(name: str, sizes: list[int]) -> None:
    kept = np.load(DATA / f"{name}.logits.npz")
    assert np.abs(run(network(name), kept["prompt"], sizes) - kept["logits"]).max() <= 1e-4
