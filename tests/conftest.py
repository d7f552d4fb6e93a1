"""Options and fixtures of all tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", type=int, default=1, help="how many times longer than in `make test` the campaigns run")


@pytest.fixture
def soak_factor(request: pytest.FixtureRequest) -> int:
    """How many times longer than usual a campaign runs."""
    return int(request.config.getoption("--soak"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take the time limits off long campaigns."""
    if config.getoption("--soak") > 1:
        for item in items:
            item.add_marker(pytest.mark.timeout(0), append=False)
