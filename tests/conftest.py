"""Options and fixtures of all tests."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    hardware = parser.getgroup("hardware", "a real board (tests/hardware)")
    hardware.addoption("--hardware-model", type=Path, action="append", default=[], help="an .rkllm file; given twice, both are loaded")
    hardware.addoption("--hardware-adapter", type=Path, help="a LoRA of the first model")
    hardware.addoption("--hardware-encoder", type=Path, help="image encoder of the first model (.rknn), its config.json beside it")
    hardware.addoption("--hardware-template", type=Path, help="chat template of the first model, for runtimes before 1.2")
    hardware.addoption("--hardware-library", default="", help="librkllmrt.so, perhaps FILE=GENERATION (default: the usual places)")
    hardware.addoption("--hardware-reference", default="", help="row of the benchmark table to compare with, MODEL or MODEL:DTYPE")
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
