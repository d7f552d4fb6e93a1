"""An API in a process of its own, whose memory and processor time can be read: `python -m tests.support.api_child DIRECTORY`.

It prints one line, its URL and the token of an admin, and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.api import running_api

__all__ = ["ApiChild", "api_child"]


class ApiChild:
    """A running API in another process.

    Attributes:
        port: Where it listens on 127.0.0.1.
        token: Token of an admin.
        context: TLS context of who trusts it.
    """

    def __init__(self, pid: int, url: str, token: str, directory: Path) -> None:
        self._proc = Path(f"/proc/{pid}")
        self.port = int(url.rpartition(":")[2])
        self.token = token
        self.context = ssl.create_default_context(cafile=str(directory / "ca.pem"))

    @property
    def cpu_seconds(self) -> float:
        """Processor time of all its threads."""
        return sum(int(task.read_text().split()[0]) for task in self._proc.glob("task/*/schedstat")) / 1e9

    @property
    def resident_bytes(self) -> int:
        """Memory that it has in use."""
        return int((self._proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def api_child(directory: Path) -> Iterator[ApiChild]:
    """Start an API in a process of its own; it ends with the block."""
    command = [sys.executable, "-m", "tests.support.api_child", str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url, token = process.stdout.readline().split()
        try:
            yield ApiChild(process.pid, url, token, directory)
        finally:
            process.communicate("", timeout=10)


async def _serve(directory: Path) -> None:
    async with running_api(directory) as api:
        (directory / "ca.pem").write_text(api.ca_pem)
        print(api.url, api.token, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
