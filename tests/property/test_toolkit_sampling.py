"""What must hold of every draw: it is among the tokens that were asked for, and as frequent as its probability says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rkfleet.errors import Invalid
from toolkit.session.sampling import PENALTY_TOKENS, Sampler, Sampling

logits = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=60).map(lambda values: np.array(values, np.float32))
PLAIN = Sampling(temperature=1.0, top_k=0, top_p=1.0, repeat_penalty=1.0)


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores.astype(np.float64) - scores.max())
    return powers / powers.sum()


@given(logits=logits, top_k=st.integers(1, 70), top_p=st.floats(0, 1), temperature=st.floats(0.05, 2), seed=st.integers(0, 1 << 40))
def test_a_draw_is_among_the_most_probable_and_in_the_nucleus(logits, top_k, top_p, temperature, seed):
    asked = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, repeat_penalty=1.0, seed=seed)
    token = Sampler(asked).sample(logits, [])

    better = np.sort(logits[logits > logits[token]])[::-1]
    assert better.size < top_k
    kept = _softmax(np.sort(logits)[::-1][: min(top_k, logits.size)])
    assert kept[: better.size].sum() < top_p + 1e-9 or better.size == 0


@given(logits=logits, seed=st.integers(0, 1 << 40))
def test_no_temperature_and_one_candidate_take_the_most_probable(logits, seed):
    for asked in (Sampling(temperature=0.0, repeat_penalty=1.0, seed=seed), Sampling(top_k=1, repeat_penalty=1.0, seed=seed)):
        assert Sampler(asked).sample(logits, []) == int(np.argmax(logits))


@given(logits=logits, mirostat=st.sampled_from([1, 2]), tau=st.floats(0.1, 12), seed=st.integers(0, 1 << 40))
def test_mirostat_leaves_a_head_of_the_ranking_that_sums_to_one(logits, mirostat, tau, seed):
    sampler = Sampler(Sampling(temperature=1.0, mirostat=mirostat, mirostat_tau=tau, repeat_penalty=1.0, seed=seed))
    for _ in range(5):
        tokens, probabilities = sampler.candidates(logits, [])
        assert 1 <= tokens.size <= logits.size
        assert abs(probabilities.sum() - 1) < 1e-9
        assert set(logits[tokens]) == set(np.sort(logits)[::-1][: tokens.size])
        assert sampler.sample(logits, []) in tokens


@given(logits=logits, said=st.lists(st.integers(-3, 59), max_size=200), frequency=st.floats(-2, 2), presence=st.floats(-2, 2))
def test_penalties_move_only_what_was_said_lately(logits, said, frequency, presence):
    asked = Sampling(temperature=1.0, top_k=0, top_p=1.0, repeat_penalty=1.3, frequency_penalty=frequency, presence_penalty=presence)
    tokens, probabilities = Sampler(asked).candidates(logits, said)

    expected = logits.astype(np.float64)
    lately = said[-PENALTY_TOKENS:]
    for token in {one for one in lately if 0 <= one < logits.size}:
        expected[token] = expected[token] / 1.3 if expected[token] > 0 else expected[token] * 1.3
        expected[token] -= frequency * lately.count(token) + presence
    np.testing.assert_allclose(probabilities, _softmax(expected)[tokens], atol=1e-9)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_one_seed_gives_one_row_of_draws(seed):
    row = np.random.default_rng(seed).normal(size=50).astype(np.float32)
    asked = Sampling(temperature=1.3, seed=seed)
    first, second = Sampler(asked), Sampler(asked)
    assert [first.sample(row, []) for _ in range(20)] == [second.sample(row, []) for _ in range(20)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_are_as_frequent_as_the_softmax_says(temperature):
    row = np.array([2.0, 1.5, 1.0, 0.0, -0.5, -1.0, 0.7, 0.2], np.float32)
    sampler = Sampler(Sampling(temperature=temperature, top_k=0, top_p=1.0, repeat_penalty=1.0, seed=7))
    draws = 20_000
    counted = np.bincount([sampler.sample(row, []) for _ in range(draws)], minlength=row.size)
    expected = draws * _softmax(row / temperature)
    chi_square = float(((counted - expected) ** 2 / expected).sum())
    assert chi_square < 24.3  # 7 degrees of freedom, one chance in a thousand.


def test_mirostat_comes_to_the_surprise_that_was_asked_for():
    row = (-1.1 * np.log(np.arange(1, 2001))).astype(np.float32)  # Zipf's law, as the paper assumes.
    shares = _softmax(row)
    for mirostat in (1, 2):
        sampler = Sampler(Sampling(temperature=1.0, mirostat=mirostat, mirostat_tau=4.0, repeat_penalty=1.0, seed=3))
        surprises = []
        for _ in range(600):
            tokens, probabilities = sampler.candidates(row, [])
            token = sampler.sample(row, [])
            surprises.append(-np.log2(probabilities[list(tokens).index(token)]))
        assert abs(np.mean(surprises[200:]) - 4.0) < 0.4
    assert -np.sum(shares * np.log2(shares)) > 6  # Without it the text would surprise more.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("top_k", -2),
        ("top_p", 1.5),
        ("repeat_penalty", 0.0),
        ("frequency_penalty", 2.5),
        ("presence_penalty", -2.5),
        ("mirostat", 3),
        ("mirostat_tau", -1.0),
        ("mirostat_eta", 1.5),
        ("seed", -1),
    ],
)
def test_a_value_outside_its_range_is_named(field, value):
    with pytest.raises(Invalid, match=f"{field} is {value!r}; take one from"):
        Sampling(**{field: value})


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(Invalid, match="no numbers"):
        Sampler(PLAIN).sample(np.full(4, np.nan, np.float32), [])
