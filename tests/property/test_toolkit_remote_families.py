"""However a text is cut into chunks, a family computes the same."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rkfleet.errors import Invalid
from tests.support.remote_checkpoints import DATA, NAMES, checkpoint, fused_groups, fused_pairs
from toolkit.loading import open_model
from toolkit.simulate.cache import KvCache
from toolkit.simulate.families.internlm2 import InternLm2
from toolkit.simulate.families.registry import family_of_config
from toolkit.simulate.families.telechat2 import TeleChat2
from toolkit.simulate.hyperparameters import Hyperparameters
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


@cache
def others(name: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of a published checkpoint."""
    model = open_model(DATA / f"{name}.gguf")
    _, tensors = checkpoint(name, {tensor: model.read(tensor) for tensor in model.tensors})
    return {tensor: values.shape for tensor, values in tensors.items()}


@settings(deadline=None)
@given(kv_heads=st.integers(1, 4), share=st.integers(1, 4), pairs=st.integers(1, 4), hidden=st.integers(1, 6))
def test_fused_tensors_come_apart_into_what_they_were_made_of(kv_heads: int, share: int, pairs: int, hidden: int) -> None:
    """For any number of heads: InternLM2's groups of queries, key and value; TeleChat2's pairs of key and value."""
    heads, width = kv_heads * share, 2 * pairs
    sizes = Hyperparameters(
        architecture="",
        layers=1,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width,
        value_dim=width,
        feed_forward=1,
        vocabulary=1,
        context=1,
        norm_epsilon=1e-5,
    )
    counted = np.arange((heads + 2 * kv_heads) * width * hidden, dtype=np.float32).reshape(-1, hidden)
    query, key, value = np.split(counted, (heads * width, (heads + kv_heads) * width))
    internlm2 = {"model.layers.0.attention.wqkv.weight": fused_groups(query, key, value, heads=heads, kv_heads=kv_heads)}
    telechat2 = {"transformer.h.0.self_attention.key_value.weight": fused_pairs(key, value, kv_heads=kv_heads)}
    for family, tensors in ((InternLm2(), internlm2), (TeleChat2(), telechat2)):
        shapes = others(type(family).__name__.lower()) | {name: values.shape for name, values in tensors.items()}
        origins = family.origins(sizes, shapes)
        for name, expected in (("attn_q", query), ("attn_k", key), ("attn_v", value)):
            origin = origins.get(f"blk.0.{name}.weight")
            assert origin is not None
            assert origin.make is not None
            if origin.sources[0] not in tensors:
                continue  # TeleChat2's queries, which are a tensor of their own.
            found = origin.make([tensors[source] for source in origin.sources])
            assert found.shape == origin.shape
            np.testing.assert_array_equal(found, expected)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@cache
def config_of(name: str) -> dict[str, object]:
    model = open_model(DATA / f"{name}.gguf")
    config, _ = checkpoint(name, {tensor: model.read(tensor) for tensor in model.tensors})
    return config


@settings(deadline=None, max_examples=200)
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_a_config_with_anything_in_a_field_is_read_or_refused(data: st.DataObject, name: str) -> None:
    """Never another error; and what is read are sizes from 1 on and finite numbers."""
    config = config_of(name)
    field = data.draw(st.sampled_from(sorted(set(config) - {"architectures"})))
    family = family_of_config(config["architectures"])
    try:
        sizes = family.from_config(config | {field: data.draw(JSON)})
    except Invalid:
        return
    assert min(sizes.layers, sizes.hidden, sizes.heads, sizes.kv_heads, sizes.head_dim, sizes.vocabulary, sizes.context) >= 1
    assert np.isfinite([sizes.rope_base, sizes.embedding_scale, sizes.residual_scale, sizes.logit_scale]).all()
    assert sizes.rope_base > 0
