"""`rkfleet demo`: it verifies every step, and each of its checks can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rkfleet.cli.step import Step

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.timeout(240)]

QUICK = {Step.fetch, Step.start, Step.push}
ROOT = Path(__file__).resolve().parents[2]


def _demo(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rkfleet.cli.main", "demo", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)


def test_the_demo_verifies_every_step() -> None:
    """Exit 0 says that every step was verified; the figures say that they come from a real model on a CPU."""
    done = _demo()
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for step in Step:
        assert f" {step} " in done.stdout
    assert "real model on this CPU" in done.stdout
    assert "none failed" in done.stdout


@pytest.mark.parametrize("step", sorted(QUICK))
def test_a_spoiled_step_fails_the_demo_by_its_name(step: Step) -> None:
    """The quick ones of the steps; `make soak-spoiled` does all."""
    done = _demo("--break", step)
    assert done.returncode == 1, done.stdout
    assert f"demo failed in step {step}:" in done.stderr


@pytest.mark.soak
@pytest.mark.parametrize("step", [step for step in Step if step not in QUICK])
def test_a_spoiled_step_fails_the_demo_by_its_name_in_a_soak(step: Step) -> None:
    """The rest of the steps, which take longer to fail."""
    done = _demo("--break", step)
    assert done.returncode == 1, done.stdout
    assert f"demo failed in step {step}:" in done.stderr
