"""Every error is caused by some test, and the one table of statuses has no holes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rkfleet import errors
from rkfleet.errors import FleetError

TESTS = Path(__file__).resolve().parents[1]


def classes(error: type[FleetError]) -> Iterator[type[FleetError]]:
    for below in error.__subclasses__():
        if below.__module__ == errors.__name__:
            yield below
        yield from classes(below)


CLASSES = sorted(set(classes(FleetError)), key=lambda error: error.__name__)


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_some_test_causes_the_error(error: type[FleetError]) -> None:
    """A `pytest.raises` names it: somebody has seen it happen."""
    named = re.compile(rf"raises\([^)]*\b{error.__name__}\b")
    assert any(named.search(file.read_text()) for folder in TESTS.iterdir() if folder.is_dir() for file in folder.rglob("*.py"))


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_the_error_has_a_status_for_every_reader(error: type[FleetError]) -> None:
    """HTTP, gRPC and the shell each get a number that is a failure, and the docstring says what it is."""
    assert 400 <= error.http_status <= 599
    assert 1 <= error.grpc_code <= 16
    assert error.exit_status in {1, 3, 4, 5, 6, 7, 70}
    assert error.__doc__
    assert error.__doc__ != FleetError.__doc__


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_a_status_from_the_wire_becomes_the_error_that_made_it(error: type[FleetError]) -> None:
    """FailedPrecondition shares its reason with Conflict, as in Kubernetes; everything else comes back as it went."""
    expected = errors.Conflict if error is errors.FailedPrecondition else error
    assert errors.error_for_reason(error.http_reason) is expected
