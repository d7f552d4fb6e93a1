"""However a text is cut into chunks, a family computes the same."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.remote_checkpoints import DATA, NAMES
from toolkit.loading import open_model
from toolkit.simulate.cache import KvCache
from toolkit.simulate.network import Network


@cache
def network(name: str) -> Network:
    model = open_model(DATA / f"{name}.gguf")
    return Network(model, model.family)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(NAMES),
    tokens=st.lists(st.integers(0, 39), min_size=2, max_size=24),
    cuts=st.sets(st.integers(1, 23)),
)
def test_chunks_change_nothing(name: str, tokens: list[int], cuts: set[int]) -> None:
    model = network(name)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(tokens)), len(tokens)]
    whole, pieces = (KvCache(model.hyperparameters, 32) for _ in range(2))
    expected = model.logits(model.hidden(model.embed(tokens), whole))
    found = np.concatenate([model.logits(model.hidden(model.embed(tokens[start:end]), pieces)) for start, end in pairwise(bounds)])
    assert pieces.length == whole.length == len(tokens)
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=0)


@settings(deadline=None, max_examples=30)
@given(name=st.sampled_from(NAMES), tokens=st.lists(st.integers(0, 39), min_size=2, max_size=16), later=st.integers(0, 39))
def test_a_later_token_changes_nothing_before_it(name: str, tokens: list[int], later: int) -> None:
    model = network(name)
    changed = [*tokens[:-1], later]
    one, other = (model.logits(model.hidden(model.embed(each), KvCache(model.hyperparameters, 32))) for each in (tokens, changed))
    np.testing.assert_allclose(one[:-1], other[:-1], atol=2e-4, rtol=0)
