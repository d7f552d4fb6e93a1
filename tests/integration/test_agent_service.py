"""The agent under a service manager: what it tells, and that a loop which hangs stops telling."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path

import pytest

from rkfleet.sample import ensure_sample
from tests.support.quick_agent import LOOK_SECONDS
from tests.support.sessions import until
from tests.support.standalone import standalone

pytestmark = [pytest.mark.model, pytest.mark.processes]

WATCHDOG_SECONDS = 1
SILENCE_SECONDS = 4 * LOOK_SECONDS  # A loop that lives comes around within one.


class Manager:
    """The socket of a service manager, and everything it heard."""

    def __init__(self, path: Path) -> None:
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    def has(self, line: str, times: int = 1) -> bool:
        """Whether it heard this line so many times by now."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.heard.append(self._socket.recv(4096).decode())
        return self.heard.count(line) >= times

    async def hears(self, line: str, within: float) -> bool:
        self.has(line)
        known = self.heard.count(line)
        with contextlib.suppress(TimeoutError):
            await until(lambda: self.has(line, known + 1), within)
            return True
        return False


def fake_root(path: Path) -> Path:
    """Make a root whose memory can be told by hand; everything else of it is unknown."""
    (path / "proc").mkdir(parents=True)
    (path / "proc/meminfo").write_text(Path("/proc/meminfo").read_text())
    return path


def test_the_manager_hears_of_start_state_and_end_and_pings_stop_while_the_loop_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop is caught in reading a pipe that nobody writes; the process lives, which is not enough."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", str(WATCHDOG_SECONDS * 1_000_000))
    manager = Manager(tmp_path / "notify")
    root = fake_root(tmp_path / "root")

    async def body() -> None:
        sample = await ensure_sample()
        options = ("--model", str(sample), "--context", "256", "--filesystem-root", str(root))
        async with standalone(tmp_path, *options, program="tests.support.quick_agent") as alone:
            await until(lambda: manager.has("READY=1"))
            await until(lambda: manager.has("STATUS=1 of 1 replicas answer"))
            await until(lambda: manager.has("WATCHDOG=1"))

            meminfo, pipe = root / "proc/meminfo", tmp_path / "pipe"
            text = meminfo.read_text()
            os.mkfifo(pipe)
            pipe.replace(meminfo)
            writer = await until(lambda: open_writer(meminfo), 10)
            assert not await manager.hears("WATCHDOG=1", SILENCE_SECONDS)
            (root / "regular").write_text(text)
            (root / "regular").replace(meminfo)
            os.write(writer, text.encode())
            os.close(writer)
            assert await manager.hears("WATCHDOG=1", 10)
            assert await alone.stop() == 0
            assert manager.has("STOPPING=1")
            assert manager.heard.count("READY=1") == 1

    with contextlib.closing(manager):
        asyncio.run(body())


def open_writer(path: Path) -> int:
    """Return the writing end of a pipe once somebody reads it, else 0."""
    try:
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return 0
