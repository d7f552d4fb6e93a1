"""What a hollow fleet is to go through: a scenario, read from YAML or JSON and checked. Pure.

In: the text of a file. Out: a frozen `Scenario`, or one `Invalid` that names file, line, field and value of everything that is wrong.
`app.py` reads it once; `timing.py` draws from `load`, `slow` and `failures`, `weather.py` from `churn` and `outages`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from rkfleet.errors import Cause, Invalid
from rkfleet.manifest import Source, parse
from rkfleet.meta import check_label_value

__all__ = ["Churn", "Failures", "Load", "Outage", "Scenario", "Slow", "read_scenario"]

SECONDS_MAX: Final = 86_400  # A day; a scale test that waits longer for one thing is a mistake in the unit.

Fraction = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0, le=SECONDS_MAX)]


class _Value(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    pass


class Load(_Value, frozen=True, kw_only=True):
    """How long a replica takes to come up.

    Attributes:
        fetch_seconds: From the first look at the assignment until its files are there.
        load_seconds: From the start of the worker until it is ready.
        jitter: Each of the two is stretched by a factor drawn from 1 - jitter .. 1 + jitter.
    """

    fetch_seconds: Seconds = 2.0
    load_seconds: Seconds = 3.0
    jitter: Fraction = 0.1


class Slow(_Value, frozen=True, kw_only=True):
    """Some loads take longer.

    Attributes:
        fraction: Of all loads.
        factor: How many times as long they fetch and load.
    """

    fraction: Fraction = 0.0
    factor: Annotated[float, Meta(ge=1, le=1000)] = 10.0


class Failures(_Value, frozen=True, kw_only=True):
    """Some loads go wrong.

    Attributes:
        load_failed: Fraction of loads that end with LoadFailed instead of Ready.
        crashed: Fraction of loads whose worker is ready and crashes after `crash_after_seconds`.
        back_off_seconds: Pause of the board before it loads again.
    """

    load_failed: Fraction = 0.0
    crashed: Fraction = 0.0
    crash_after_seconds: Seconds = 30.0
    back_off_seconds: Annotated[float, Meta(ge=0.1, le=SECONDS_MAX)] = 5.0


class Churn(_Value, frozen=True, kw_only=True):
    """Boards lose their connection and come back, all the time.

    Attributes:
        fraction_per_minute: Boards that disconnect within a minute, as a fraction of all.
        away_seconds: For how long each cannot connect.
    """

    fraction_per_minute: Fraction = 0.0
    away_seconds: Seconds = 10.0


class Outage(_Value, frozen=True, kw_only=True):
    """At one moment many boards lose their connection; fields that are not given choose all boards.

    Attributes:
        at_seconds: When, counted from the moment at which every board was in session for the first time.
        for_seconds: For how long.
        site: Only boards of this site.
        soc: Only boards with this chip.
        fraction: Of the boards that the other fields choose.
    """

    at_seconds: Seconds
    for_seconds: Seconds
    site: str = ""
    soc: str = ""
    fraction: Fraction = 1.0


class Scenario(_Value, frozen=True, kw_only=True):
    """The whole of it; the defaults are a fleet to which nothing happens.

    Attributes:
        seed: Of everything that is drawn.
        sites: Boards are dealt out to these sites in turn, and labelled so; empty for none.
    """

    seed: Annotated[int, Meta(ge=0, le=2**32)] = 0
    sites: tuple[str, ...] = ()
    load: Load = Load()
    slow: Slow = Slow()
    failures: Failures = Failures()
    churn: Churn = Churn()
    outages: tuple[Outage, ...] = ()


def read_scenario(source: Source) -> Scenario:
    """Return what a file says.

    Raises:
        Invalid: Something is wrong with it; the message names file, line, field and value.
    """
    values = parse(source)
    try:
        scenario = msgspec.convert({} if values.value is None else values.value, Scenario)
    except msgspec.ValidationError as error:
        causes: tuple[Cause, ...] = (_cause(str(error), values.value),)
    else:
        causes = tuple(_contradictions(scenario))
        if not causes:
            return scenario
    lines = (f"{source.name}:{values.line_of(one.field)}: {one.field}: {one.message}".replace(": : ", ": ") for one in causes)
    raise Invalid("\n".join(lines), causes)


_AT: Final = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


def _cause(said: str, value: Any) -> Cause:
    """Turn msgspec's sentence into field, value and what the field must be."""
    found = _AT.fullmatch(said)
    assert found is not None, "the pattern takes every text"
    what, path = found["what"], found["path"] or ""
    if unknown := _UNKNOWN.fullmatch(what):
        field = f"{path}.{unknown[1]}".removeprefix(".")
        return Cause(field, f"unknown field (value {_shown(_at(value, field))})", "FieldValueForbidden")
    return Cause(path, f"{_shown(_at(value, path))}: {what[:1].lower()}{what[1:]}")


def _contradictions(scenario: Scenario) -> Iterator[Cause]:
    """What no type can say."""
    for number, site in enumerate(scenario.sites):
        if not site or check_label_value(site):
            yield Cause(f"sites[{number}]", f"{_shown(site)}: must be a label value: {check_label_value(site) or 'not empty'}")
    for number, outage in enumerate(scenario.outages):
        if outage.site and outage.site not in scenario.sites:
            yield Cause(f"outages[{number}].site", f"{_shown(outage.site)}: must be one of sites, which are {list(scenario.sites)}")
    failing = scenario.failures.load_failed + scenario.failures.crashed
    if failing > 1:
        yield Cause("failures", f"loadFailed and crashed are {failing:g} together, must be at most 1")


_STEP: Final = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


def _at(value: Any, path: str) -> Any:
    """Return the value at a path such as `outages[0].site`, or None."""
    for index, key in _STEP.findall(path):
        if index and isinstance(value, list) and int(index) < len(value):
            value = value[int(index)]
        elif key and isinstance(value, dict):
            value = value.get(key)
        else:
            return None
    return value


def _shown(value: Any) -> str:
    """Return a value as JSON, shortened; it comes from people and goes into a sentence."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else f"{text[:77]}..."
