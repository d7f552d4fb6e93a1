"""Programs and commands as children of `rkfleet up`: started again when they die, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from rkfleet.cli.children import Children, Program
from rkfleet.cli.samples import run_command
from tests.support.up import CLOCK, eventually

SLEEPER = (sys.executable, "-c", "import signal; signal.pause()")


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_program_that_dies_is_started_again_until_it_is_stopped(tmp_path: Path) -> None:
    said: list[str] = []
    pid_file = tmp_path / "run" / "sleeper.pid"

    async def body() -> None:
        async with asyncio.TaskGroup() as tasks:
            children = Children(tmp_path, CLOCK, tasks, said.append)
            children.start(Program("sleeper", SLEEPER, "http://127.0.0.1:1"))
            await eventually(pid_file.exists, "it runs", 5.0)
            first = int(pid_file.read_text())
            os.kill(first, signal.SIGKILL)
            await eventually(lambda: int(pid_file.read_text()) != first, "it runs again", 5.0)
            second = int(pid_file.read_text())
            await children.stop()
            assert not runs(second)
            assert children.exit_statuses() == {"sleeper": -signal.SIGTERM}
            assert children.restarts() == {"sleeper": 1}

    asyncio.run(body())
    assert said == [f"sleeper ended with signal SIGKILL; starting it again in 0.2 s, see {tmp_path}/log/sleeper.log"]
    assert not pid_file.exists(), "its number will be another process's one day"


def test_a_command_whose_caller_is_stopped_is_stopped_too(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"import os, pathlib, signal; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid())); signal.pause()"

    async def body() -> None:
        work = asyncio.create_task(run_command([sys.executable, "-c", script]))
        await eventually(lambda: pid_file.exists() and bool(pid_file.read_text()), "it runs", 5.0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(body())
    assert not runs(int(pid_file.read_text()))
