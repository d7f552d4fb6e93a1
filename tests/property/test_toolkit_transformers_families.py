"""However a text is cut, a family computes the same; whatever stands in a config.json, it is read or refused."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rkfleet.errors import Invalid
from tests.support.hugging_face_fixtures import DATA, NAMES, Fixture, fields, run
from toolkit.simulate.families.registry import family_of_config
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


KEYS = st.sampled_from(["rope_type", "factor", "rope_theta", "full_attention", "sliding_attention", "a"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**1100), 2**1100) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300)
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_a_config_with_anything_in_a_field_is_read_or_refused(data: st.DataObject, name: str) -> None:
    """Never another error; and what is read are sizes from 1 on and finite numbers."""
    config = fields(name)
    field = data.draw(st.sampled_from(sorted({*config, "rope_scaling", "rope_theta", "head_dim"} - {"architectures"})))
    family = family_of_config(config["architectures"])
    try:
        sizes = family.from_config(config | {field: data.draw(JSON)})
    except Invalid:
        return
    assert min(sizes.layers, sizes.hidden, sizes.heads, sizes.kv_heads, sizes.head_dim, sizes.vocabulary, sizes.context) >= 1
    assert np.isfinite([sizes.rope_base, sizes.attention_scale, sizes.attention_softcap, sizes.final_softcap, sizes.norm_epsilon]).all()
    assert sizes.rope_base > 0
