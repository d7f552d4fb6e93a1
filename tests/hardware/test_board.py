"""The self-test's checks on a real board, one test each: `pytest tests/hardware --hardware-model FILE.rkllm`.

The checks are made once, in their order, those whose tests were selected; each test then asks for its own. They are those of
`rkfleet doctor --self-test`, whose report says more. That each fails when it should is held in `tests/integration/test_selftest.py`.
"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest

from agent.board.diagnosis import NPU_CHECKS
from agent.board.kernel_log import follow_kernel_log
from agent.selftest.checks import AFTER, BEFORE, CHECKS
from agent.selftest.running import Result, World, run
from agent.selftest.values import Limits, Options, Outcome
from agent.workers import backends
from agent.workers.libraries import parse_named_library
from rkfleet.benchmarks import load_table
from rkfleet.clock import SystemClock

COMMAND = "pytest tests/hardware --hardware-model FILE.rkllm"
NAMES = [name for name, _ in BEFORE] + [check.name for check in CHECKS] + [name for name, _ in AFTER]
BOARD = ["npu-driver", "npu-node", "npu-clients", "npu-iommu", "runtime-library", "openmp-library"]

# The first test waits for all of them.
pytestmark = [pytest.mark.hardware, pytest.mark.timeout(Limits().total + 60)]


class Nobody:
    def begin(self, check: str, title: str) -> None:
        pass

    def end(self, outcome: Outcome) -> None:
        pass


def options_of(config: pytest.Config) -> Options:
    """Return what the options of pytest ask for."""
    encoder: Path | None = config.getoption("--hardware-encoder")
    library: str = config.getoption("--hardware-library")
    reference, _, dtype = str(config.getoption("--hardware-reference")).partition(":")
    return Options(
        models=tuple(config.getoption("--hardware-model")),
        adapter=config.getoption("--hardware-adapter"),
        encoder=encoder,
        config=encoder.parent / "config.json" if encoder is not None else None,
        template=config.getoption("--hardware-template"),
        libraries=(parse_named_library(library),) if library else (),
        reference=reference,
        dtype=dtype,
    )


@pytest.fixture(scope="session")
def result(request: pytest.FixtureRequest) -> Result:
    """Make the checks whose tests were selected."""
    options = options_of(request.config)
    if not options.models:
        pytest.skip(f"needs a board with an NPU and a model: {COMMAND}")
    wanted = {item.callspec.params["check"] for item in request.session.items if item.path == Path(__file__) and hasattr(item, "callspec")}
    world = World(
        clock=SystemClock(),
        table=load_table(),
        backend=lambda library: backends.rkllm(
            library, new_api_key=lambda: secrets.token_urlsafe(24), follow_kernel=lambda: follow_kernel_log(options.root)
        ),
        new_secret=lambda: f"zq{secrets.token_hex(4)}",
    )

    async def body() -> Result:
        async with asyncio.TaskGroup() as tasks:
            return await run(options, world, Nobody(), tasks, only=frozenset(wanted))

    return asyncio.run(body())


@pytest.mark.parametrize("check", [*BOARD, *NAMES])
def test_the_board_passes(check: str, result: Result) -> None:
    """What could not be checked is skipped with its reason; a failure has its last lines and what helps."""
    found = [one for one in result.outcomes if one.check == check]
    if not found:
        pytest.skip("does not apply to this machine")
    for one in found:
        known = f"\nknown failure {one.failure.number}, {one.failure.reason}: {one.failure.message}" if one.failure else ""
        lines = "".join(f"\n| {line}" for line in one.lines)
        assert one.status != "failed", f"{one.sentence}{known}\ntry: {one.remedy or 'rkfleet doctor --self-test'}{lines}"
    if all(one.status == "skipped" for one in found):
        pytest.skip(found[0].sentence)


def test_the_checks_of_the_board_are_those_of_the_doctor() -> None:
    """So that a renamed one is noticed without a board."""
    assert len(NPU_CHECKS) == 3
    assert len(set(NAMES)) == len(NAMES)
    assert not set(NAMES) & set(BOARD)
