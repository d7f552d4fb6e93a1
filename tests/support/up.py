"""`rkfleet up` as a person starts it: a real process with real children, for end-to-end tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import httpx2
import msgspec

from rkfleet.cli.fleet import Endpoints
from rkfleet.client import ApiClient, load_cluster
from rkfleet.clock import SystemClock

READY_SECONDS_MAX = 90.0  # Beyond the limit of `up` itself, so that it is `up` that says what is missing.
STOP_SECONDS_MAX = 30.0
POLL_SECONDS = 0.05
CLOCK = SystemClock()


class Up:
    """A running `rkfleet up`."""

    def __init__(self, process: asyncio.subprocess.Process, data_dir: Path) -> None:
        self.process = process
        self.data_dir = data_dir
        self.endpoints = msgspec.json.decode((data_dir / "endpoints.json").read_bytes(), type=Endpoints)

    @property
    def kubeconfig(self) -> Path:
        return Path(self.endpoints.kubeconfig)

    def client(self) -> ApiClient:
        return ApiClient(load_cluster(self.kubeconfig), CLOCK)

    def pid(self, name: str) -> int:
        """Process id of a program by the name of its log: controller, registry, gateway, agent-cpu-1."""
        return int((self.data_dir / "run" / f"{name}.pid").read_text())

    def worker_pids(self) -> list[int]:
        """Processes of `agent.workers.child` below this fleet's agents."""
        agents = {self.pid(file.stem) for file in (self.data_dir / "run").glob("agent-*.pid")}
        return [pid for pid, words in processes() if b"agent.workers.child" in words and _parent(pid) in agents]

    def kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def command(self, *words: str) -> list[str]:
        """The `rkfleet` command line with this fleet's kubeconfig in its environment."""
        return [sys.executable, "-m", "rkfleet.cli.main", *words]

    def run(self, *words: str, check: bool = True, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a `rkfleet` command to its end."""
        environment = {**os.environ, "RKFLEET_KUBECONFIG": str(self.kubeconfig)}
        done = subprocess.run(self.command(*words), env=environment, capture_output=True, text=True, timeout=timeout, check=False)
        if check:
            assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


def processes() -> Iterator[tuple[int, bytes]]:
    """Every process of this machine with its command line, NUL between words."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_bytes()


def processes_of(data_dir: Path) -> list[int]:
    """Processes whose command line names this data directory, and their children."""
    own = {pid for pid, words in processes() if str(data_dir).encode() in words}
    return sorted(own | {pid for pid, _ in processes() if _parent(pid) in own})


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


async def eventually(holds: Callable[[], Awaitable[bool] | bool], what: str, seconds_max: float = 30.0) -> None:
    """Wait until `holds` is true; fail with `what` after the limit."""
    deadline = CLOCK.monotonic() + seconds_max
    while True:
        answer = holds()
        if answer if isinstance(answer, bool) else await answer:
            return
        assert CLOCK.monotonic() < deadline, f"not within {seconds_max:.0f} s: {what}"
        await CLOCK.sleep(POLL_SECONDS)


@contextlib.asynccontextmanager
async def up(data_dir: Path, *flags: str) -> AsyncIterator[Up]:
    """Run `rkfleet up` with any free ports for as long as the block runs; it must stop with status 0 and leave no process."""
    ports = [word for name in ("api", "grpc", "registry", "gateway") for word in (f"--{name}-port", "0")]
    with tempfile.TemporaryFile() as said:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rkfleet.cli.main", "up", "--data-dir", str(data_dir), *ports, *flags,
            stdout=asyncio.subprocess.PIPE, stderr=said,
        )  # fmt: skip

        def last_words() -> str:
            said.seek(0)
            return said.read().decode()[-4000:]

        try:
            assert process.stdout is not None
            async with asyncio.timeout(READY_SECONDS_MAX):
                line = (await process.stdout.readline()).decode()
            assert line.startswith("ready"), f"rkfleet up printed {line!r} and said: {last_words()}"
            yield Up(process, data_dir)
        finally:
            if process.returncode is None:
                process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS_MAX):
                    await process.wait()
            except TimeoutError:
                process.kill()
                raise AssertionError(f"rkfleet up did not stop within {STOP_SECONDS_MAX:.0f} s of SIGTERM: {last_words()}") from None
        assert process.returncode == 0, f"rkfleet up ended with {process.returncode}: {last_words()}"
    await eventually(lambda: not processes_of(data_dir), f"no process of {data_dir} left", 5.0)


async def chat(http: httpx2.AsyncClient, fleet: Up, content: str, *, max_tokens: int = 8, model: str = "smollm2") -> httpx2.Response:
    """One chat completion, not streamed."""
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}
    return await http.post(f"{fleet.endpoints.gateway}/v1/chat/completions", json=body, timeout=60.0)
