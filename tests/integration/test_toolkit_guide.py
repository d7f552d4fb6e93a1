"""The overview of the toolkit shows what its commands print."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rkfleet.sample import ensure_sample

GUIDE = Path(__file__).parents[2] / "docs/guides/toolkit.md"


@pytest.mark.model
@pytest.mark.parametrize("command", ["inspect", "profile"])
def test_the_guide_shows_what_the_command_prints(command: str) -> None:
    shown = re.search(rf"<!-- output: {command} -->\n```text\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert shown is not None
    sample = asyncio.run(ensure_sample())
    done = subprocess.run([sys.executable, "-m", "toolkit", command, str(sample)], capture_output=True, text=True, check=True, timeout=60)
    assert [line.rstrip() for line in done.stdout.splitlines()] == [line.rstrip() for line in shown[1].splitlines()]
