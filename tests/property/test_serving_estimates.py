"""What the serving side infers from requests: prefill curves that never fall, and places that never mix two users."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.serving.prefill import PAIRS_PER_BIN, Estimates, Point, fit
from agent.serving.slots import Owner, Slots
from rkfleet.benchmarks import load_table

PAIRS = st.lists(st.tuples(st.integers(1, 32768), st.floats(0.001, 500)), max_size=60)
LENGTHS = st.lists(st.integers(0, 100_000), min_size=2, max_size=12)


def learned(pairs: list[tuple[int, float]]) -> Estimates:
    estimates = Estimates()
    for tokens, seconds in pairs:
        estimates.learn("u", prompt_bytes=tokens * 4, prompt_tokens=tokens, cached_tokens=0, seconds=seconds)
    return estimates


@given(PAIRS, LENGTHS)
def test_a_longer_prompt_is_never_estimated_to_be_faster(pairs: list[tuple[int, float]], lengths: list[int]) -> None:
    estimates = learned(pairs)
    seconds = [estimates.seconds("u", tokens) for tokens in sorted(lengths)]
    if None in seconds:
        assert set(seconds) == {None}
        return
    assert all(left <= right + 1e-6 for left, right in itertools.pairwise(seconds))
    assert min(seconds) >= 0


@given(st.lists(st.tuples(st.floats(1, 1e5), st.floats(0, 500)), max_size=30))
def test_a_fit_keeps_every_length_and_the_sum_of_seconds(pairs: list[tuple[float, float]]) -> None:
    points = [Point(*pair) for pair in sorted(pairs)]
    fitted = fit(points)
    assert [point.tokens for point in fitted] == [point.tokens for point in points]
    assert abs(sum(point.seconds for point in fitted) - sum(point.seconds for point in points)) < 1e-6 * max(1, len(points)) * 500


@given(st.floats(0.001, 0.02), st.floats(0, 2), st.integers(100, 30_000))
def test_a_straight_board_is_learned_whatever_one_request_says(slope: float, fixed: float, asked: int) -> None:
    """One request in nine that took a hundred times as long changes nothing."""
    pairs = [(tokens, fixed + slope * tokens) for tokens in (64, 256, 1024, 4096) for _ in range(PAIRS_PER_BIN - 1)]
    estimates = learned([*pairs, *((tokens, 100 * (fixed + slope * tokens)) for tokens in (64, 256, 1024, 4096))])
    assert estimates.seconds("u", asked) == pytest.approx(fixed + slope * asked, rel=0.02)


def test_the_benchmark_row_is_the_curve_until_there_is_a_request() -> None:
    row = load_table().get("Qwen2-1.5B", "w8a8", "rk3588")
    estimates = Estimates()
    estimates.start("u", lambda: row)
    assert estimates.seconds("u", row.protocol.prompt_tokens) == row.time_to_first_token_seconds
    estimates.learn("u", prompt_bytes=4000, prompt_tokens=1000, cached_tokens=0, seconds=9.0)
    assert estimates.seconds("u", 1000) == 9.0
    assert estimates.tokens("u", 400) == 100
    estimates.keep(())
    assert estimates.seconds("u", 1000) is None


OWNERS = [Owner("a"), Owner("b"), Owner("a", "talk")]
STEPS = st.lists(st.tuples(st.sampled_from(OWNERS), st.binary(max_size=40), st.booleans()), max_size=60)


@given(STEPS, st.integers(1, 4))
def test_a_place_is_used_again_only_by_who_filled_it(steps: list[tuple[Owner, bytes, bool]], places: int) -> None:
    """A model of the worker: what was computed last in each place, by anybody, embeddings included."""
    slots = Slots()
    truth: dict[int, Owner | None] = {}
    for owner, prompt, embeds in steps:
        if embeds:
            slots.forget("u")
            truth = dict.fromkeys(range(places))
            continue
        place = slots.choose("u", range(places), owner, prompt)
        assert 0 <= place < places
        again = slots.take("u", place, owner, prompt)
        assert not again or truth.get(place) == owner
        truth[place] = owner


def test_a_conversation_finds_its_place_again() -> None:
    slots = Slots()
    talks = [b"[system, river " * 20, b"[other, mountain " * 20]
    for place, talk in enumerate(talks):
        assert slots.choose("u", range(2), Owner("a"), talk) == place
        slots.take("u", place, Owner("a"), talk)
    assert slots.choose("u", range(2), Owner("a"), talks[0] + b"more") == 0
    assert slots.choose("u", range(2), Owner("a"), talks[1] + b"more") == 1
    assert slots.remembered_bytes("u", Owner("a"), talks[0] + b"more") == len(talks[0])
    assert slots.remembered_bytes("u", Owner("b"), talks[0]) == 0
