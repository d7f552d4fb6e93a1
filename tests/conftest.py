"""Options and fixtures of all tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", type=int, default=1, help="how many times longer than in `make test` the campaigns run")


@pytest.fixture
def soak_factor(request: pytest.FixtureRequest) -> int:
    """How many times longer than usual a campaign runs."""
    return int(request.config.getoption("--soak"))
