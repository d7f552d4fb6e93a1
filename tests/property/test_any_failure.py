"""Whatever a library or kernel prints, recognising it ends soon and says something that fits into a condition."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from agent.failures.lines import LINE_CHARACTERS_MAX, LINES_MAX, Ending, first_error, recognise
from agent.failures.modes import MESSAGE_CHARACTERS_MAX, MODES
from tests.unit.agent.test_failures import LINES

PIECES = sorted({line for _, said, kernel, *_ in LINES for line in (*said, *kernel)})
any_line = st.one_of(
    st.text(max_size=LINE_CHARACTERS_MAX + 50),
    st.sampled_from(PIECES),
    st.builds(lambda line, cut, more: line[:cut] + more, st.sampled_from(PIECES), st.integers(0, 120), st.text(max_size=60)),
    st.builds(lambda piece, times: piece[:40] * times, st.sampled_from(PIECES), st.integers(1, 40)),
)
any_lines = st.lists(any_line, max_size=60)
endings = st.builds(
    Ending,
    status=st.integers(-70, 260),
    pid=st.integers(0, 99999),
    said=st.text(max_size=80),
    loaded=st.booleans(),
    hung=st.booleans(),
    kernel_killed=st.booleans(),
    others=st.integers(0, 3),
    driver_family=st.sampled_from(["", "rknpu", "rocket"]),
)


@given(said=any_lines, kernel=any_lines, end=endings)
def test_any_lines_are_either_a_known_failure_or_none(said: list[str], kernel: list[str], end: Ending) -> None:
    """It never raises, and a failure has a reason of the table, a bounded sentence on one line, and one thing to do."""
    found = recognise(said, kernel, end)
    assert len(first_error(said)) <= LINE_CHARACTERS_MAX
    if found is not None:
        assert found.reason == MODES[found.number - 1].reason
        assert 0 < len(found.message) <= MESSAGE_CHARACTERS_MAX
        assert "\n" not in found.message
        assert found.remedy


def test_a_flood_of_lines_is_worked_off_in_bounded_time() -> None:
    """The longest input that is looked at, made of the beginnings of what is looked for, takes a fraction of a second."""
    flood = [(PIECES[number % len(PIECES)][:30] * 40)[: LINE_CHARACTERS_MAX * 2] for number in range(LINES_MAX * 20)]
    began = time.process_time()
    recognise(flood, flood, Ending(status=-11))
    assert time.process_time() - began < 1.0
