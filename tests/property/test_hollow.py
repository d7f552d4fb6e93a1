"""Hollow fleets for any input: scenarios, shares of chips, fates of loads."""

from __future__ import annotations

import msgspec
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rkfleet.errors import Invalid
from rkfleet.manifest import Source
from simulation.hollow.config import parse_mix, socs_of
from simulation.hollow.scenario import Failures, Load, Scenario, Slow, read_scenario
from simulation.hollow.timing import fate_of

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**6) | st.floats(allow_nan=False, allow_infinity=False, width=32) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("load", "loadSeconds", "outages", "atSeconds", "sites", "churn", "x.y[0]")), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60) | st.text(max_size=60) | _VALUES.map(yaml.safe_dump))
def test_whatever_a_file_holds_it_is_a_scenario_or_a_sentence(text: str | bytes) -> None:
    """No input ends in anything but a value or an error that names its file."""
    try:
        scenario = read_scenario(Source("s.yaml", text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text))
    except Invalid as error:
        refused: Invalid | None = error
    else:
        refused = None
        assert msgspec.convert(msgspec.to_builtins(scenario), Scenario) == scenario
    assert refused is None or all(line.startswith("s.yaml:") for line in refused.message.split("\n"))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 400), st.integers(0, 100), st.integers(0, 100))
def test_chips_are_dealt_out_by_their_shares(boards: int, first: int, second: int) -> None:
    """Each chip has its share of every prefix of the fleet, to within one board."""
    if first + second == 0:
        return
    socs = socs_of(boards, parse_mix(f"rk3588={first},rk3576={second}"))
    assert len(socs) == boards
    for count in range(1, boards + 1, 7):
        assert abs(socs[:count].count("rk3588") - count * first / (first + second)) <= 1


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32), st.integers(0, 5), st.floats(0, 1), st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_fate_is_the_same_whenever_it_is_asked_and_within_its_bounds(
    seed: int, attempt: int, jitter: float, failed: float, crashed: float
) -> None:
    scenario = Scenario(
        seed=seed,
        load=Load(fetch_seconds=2, load_seconds=3, jitter=jitter),
        slow=Slow(fraction=0.5, factor=4),
        failures=Failures(load_failed=failed, crashed=crashed),
    )
    fate = fate_of(scenario, "b-1", "default/chat-1", attempt)
    assert fate == fate_of(scenario, "b-1", "default/chat-1", attempt)
    stretch = 4 if fate.slow else 1
    assert 2 * stretch * (1 - jitter) <= fate.fetch_seconds <= 2 * stretch * (1 + jitter) + 1e-9
    assert 3 * stretch * (1 - jitter) <= fate.load_seconds <= 3 * stretch * (1 + jitter) + 1e-9
