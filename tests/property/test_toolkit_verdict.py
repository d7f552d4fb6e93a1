"""Verdicts about dtypes: one best at most, within the limits, and beaten by none."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from toolkit.reports.verdict import Candidate, Limits, judge

NUMBERS = st.floats(0.01, 1000)
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        dtype=st.sampled_from(["w8a8", "w8a8_g128", "w4a16", "w4a16_g32"]),
        loss=st.floats(-0.05, 2),
        tokens_per_second=st.none() | NUMBERS,
        memory_bytes=st.none() | st.floats(1, 2**34),
        refused=st.sampled_from(["", "a width is refused"]),
    ),
    max_size=6,
)
LIMITS = st.builds(Limits, memory_bytes=st.integers(1, 2**34), tokens_per_second_min=st.floats(0, 100), loss_max=st.floats(0, 2))


@given(CANDIDATES, LIMITS)
def test_one_is_best_at_most_and_none_within_the_limits_beats_it_in_both(candidates: list[Candidate], limits: Limits) -> None:
    found = judge(candidates, limits)
    assert len(found) == len(candidates)
    assert all(verdict.why for verdict in found)
    left = [one for one, verdict in zip(candidates, found, strict=True) if verdict.word in ("best", "ok")]
    best = [one for one, verdict in zip(candidates, found, strict=True) if verdict.word == "best"]
    assert len(best) == (1 if left else 0)
    for one in best:
        assert one.loss <= limits.loss_max
        assert (one.tokens_per_second or 0) >= limits.tokens_per_second_min
        assert (one.memory_bytes or 0) <= limits.memory_bytes
        speed = one.tokens_per_second or 0
        assert [other for other in left if other.loss < one.loss and (other.tokens_per_second or 0) >= speed] == []
        assert [other for other in left if other.loss <= one.loss and (other.tokens_per_second or 0) > speed] == []


@given(CANDIDATES, LIMITS)
def test_what_breaks_a_limit_is_called_by_it(candidates: list[Candidate], limits: Limits) -> None:
    for one, verdict in zip(candidates, judge(candidates, limits), strict=True):
        fits = one.memory_bytes is None or one.memory_bytes <= limits.memory_bytes
        fast = one.tokens_per_second is None or one.tokens_per_second >= limits.tokens_per_second_min
        good = one.loss <= limits.loss_max
        expected = (
            "refused" if one.refused else "does not fit" if not fits else "too slow" if not fast else "loses too much" if not good else None
        )
        assert (verdict.word if verdict.word in ("refused", "does not fit", "too slow", "loses too much") else None) == expected
