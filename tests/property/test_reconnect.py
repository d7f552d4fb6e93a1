"""How soon a board is back after an outage."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from agent.session.runner import RECONNECT_SECONDS_MAX, longest_pause


@given(outage=st.floats(0.0, 3600.0), seed=st.integers(0, 2**16))
def test_a_board_is_back_after_at_most_twice_the_outage_or_half_a_minute_more(outage: float, seed: int) -> None:
    """Whatever the dice say, and with few attempts during a long outage."""
    chance, now, attempts = random.Random(seed), 0.0, 0
    while now < outage:
        now += chance.uniform(0.0, longest_pause(now))
        attempts += 1
    assert now <= max(outage + min(max(outage, 1.0), RECONNECT_SECONDS_MAX), 1.0)
    assert attempts <= 60 + outage / 5
