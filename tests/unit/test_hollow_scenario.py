"""Scenarios of hollow fleets: what a file may say, and what a wrong one is told."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from rkfleet.errors import Invalid
from rkfleet.manifest import Source
from simulation.hollow.config import parse_mix
from simulation.hollow.scenario import Churn, Load, Outage, Scenario, read_scenario
from simulation.hollow.weather import Place, forecast

WHOLE = """
seed: 7
sites: [lab-1, lab-2]
load: {fetchSeconds: 1.5, loadSeconds: 2, jitter: 0.2}
slow: {fraction: 0.05, factor: 10}
failures: {loadFailed: 0.01, crashed: 0.02, crashAfterSeconds: 4, backOffSeconds: 2}
churn: {fractionPerMinute: 0.5, awaySeconds: 3}
outages:
- {atSeconds: 10, forSeconds: 5, site: lab-1}
- {atSeconds: 5, forSeconds: 1, soc: rk3588, fraction: 0.5}
"""
PLACES = [Place(board=f"b-{number:02}", soc=("rk3588", "rk3576")[number % 2], site=f"lab-{1 + number % 4 // 2}") for number in range(20)]


def read(text: str | bytes) -> Scenario:
    return read_scenario(Source("s.yaml", text.encode() if isinstance(text, str) else text))


def test_a_scenario_says_what_it_says_and_the_rest_is_a_quiet_fleet() -> None:
    scenario = read(WHOLE)
    assert (scenario.seed, scenario.load.load_seconds, scenario.outages[1].fraction) == (7, 2.0, 0.5)
    assert read("") == Scenario()
    assert read("load: {loadSeconds: 9}") == Scenario(load=Load(load_seconds=9.0))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("load:\n  loadSeconds: -3\n", "s.yaml:2: load.loadSeconds: -3: expected `float` >= 0.0"),
        ("churn: {fractionPerMinute: 2}", "s.yaml:1: churn.fractionPerMinute: 2: expected `float` <= 1.0"),
        ("load: {loadSecond: 3}", "s.yaml:1: load.loadSecond: unknown field (value 3)"),
        ("outages:\n- {atSeconds: soon, forSeconds: 1}\n", 's.yaml:2: outages[0].atSeconds: "soon": expected `float`'),
        ("outages: [{atSeconds: 1}]", 'outages[0]: {"atSeconds":1}: object missing required field `forSeconds`'),
        ("outages: [{atSeconds: 1, forSeconds: 2, site: x}]", 'outages[0].site: "x": must be one of sites, which are []'),
        ("sites: [a, '']", 'sites[1]: "": must be a label value: not empty'),
        ("failures: {loadFailed: 0.7, crashed: 0.5}", "failures: loadFailed and crashed are 1.2 together, must be at most 1"),
        ("[1, 2]", "s.yaml:1: [1,2]: expected `object`, got `array`"),
        ("load: &a {}\nslow: *a\n", "aliases are not allowed"),
        ("seed: 1\n---\nseed: 2\n", "s.yaml:3: one document is allowed, here begins a second"),
        ("seed: [", "is not YAML"),
    ],
)
def test_a_wrong_scenario_is_told_file_line_field_and_value(text: str, says: str) -> None:
    with pytest.raises(Invalid) as refused:
        read(text)
    assert says in refused.value.message


def test_the_same_seed_gives_the_same_weather_and_another_one_another() -> None:
    """A run can be repeated, whatever order the boards are named in."""

    def first(scenario: Scenario, places: list[Place]) -> list[Any]:
        return list(itertools.islice(forecast(scenario, places), 30))

    scenario = read(WHOLE)
    assert first(scenario, PLACES) == first(scenario, PLACES[::-1])
    assert first(scenario, PLACES) != first(msgspec.structs.replace(scenario, seed=8), PLACES)


def test_weather_comes_in_order_and_outages_take_whom_they_name() -> None:
    scenario = read(WHOLE)
    seen = list(itertools.islice(forecast(scenario, PLACES), 60))
    assert seen == sorted(seen)
    by_why = {away.why: away for away in seen}
    assert by_why["outages[0] (site lab-1)"].boards == tuple(one.board for one in PLACES if one.site == "lab-1")
    half = by_why["outages[1] (chip rk3588)"]
    assert len(half.boards) == 5
    assert set(half.boards) < {one.board for one in PLACES if one.soc == "rk3588"}


def test_churn_takes_as_many_boards_a_minute_as_it_says() -> None:
    """Within what chance allows: 600 of 1,000 in ten minutes at 6% a minute."""
    places = [Place(board=f"b-{number}", soc="rk3588") for number in range(1000)]
    scenario = Scenario(churn=Churn(fraction_per_minute=0.06, away_seconds=1))
    taken = sum(1 for _ in itertools.takewhile(lambda away: away.at_seconds < 600, forecast(scenario, places)))
    assert 500 < taken < 700


def test_without_churn_and_outages_nothing_happens() -> None:
    assert list(forecast(Scenario(outages=()), PLACES)) == []
    assert len(list(forecast(Scenario(outages=(Outage(at_seconds=1, for_seconds=1),)), PLACES))) == 1


@pytest.mark.parametrize("text", ["rk3588", "rk3588=x", "rk3566=1", "rk3588=1,rk3588=2", "rk3588=0", "", "rk3588=-1"])
def test_a_mix_that_cannot_be_dealt_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_mix(text)
