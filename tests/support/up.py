"""`rkfleet up` as a person starts it: a real process with real children, for end-to-end tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx2
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from rkfleet.cli.fleet import Endpoints
from rkfleet.client import ApiClient, load_cluster
from rkfleet.clock import SystemClock

READY_SECONDS_MAX = 90.0  # Beyond the limit of `up` itself, so that it is `up` that says what is missing.
STOP_SECONDS_MAX = 30.0
POLL_SECONDS = 0.05
MARK = "RKFLEET_TEST_FLEET"  # In the environment of `up`, so that every descendant is known by it, also one whose parents are gone.
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
        """Every worker of this fleet, also one whose agent is gone."""
        return [pid for pid, words in processes_of(self.data_dir).items() if "agent.workers.child" in words]

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


def processes_of(data_dir: Path) -> dict[int, str]:
    """Every process that a `rkfleet up` of this directory started, however deep, with its command line; orphans included."""
    mark = f"{MARK}={data_dir}\0".encode()
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return {pid: words for pid, words in found.items() if words}  # one without words is dead and waits for its parent


async def eventually(holds: Callable[[], Awaitable[bool] | bool], what: str | Callable[[], str], seconds_max: float = 30.0) -> None:
    """Wait until `holds` is true; fail with `what` after the limit."""
    deadline = CLOCK.monotonic() + seconds_max
    while True:
        answer = holds()
        if answer if isinstance(answer, bool) else await answer:
            return
        if CLOCK.monotonic() > deadline:
            raise AssertionError(f"not within {seconds_max:.0f} s: {what if isinstance(what, str) else what()}")
        await CLOCK.sleep(POLL_SECONDS)


@contextlib.asynccontextmanager
async def up(data_dir: Path, *flags: str, before: tuple[str, ...] = (), ends_with: int = 0) -> AsyncIterator[Up]:
    """Run `rkfleet up` with any free ports for as long as the block runs; it must stop with status 0 and leave no process.

    A test that kills it says so by `ends_with`. `before` is the command line of a program that becomes another one, such as `unshare`.
    """
    ports = [word for name in ("api", "grpc", "registry", "gateway") for word in (f"--{name}-port", "0")]
    with tempfile.TemporaryFile() as said:
        process = await asyncio.create_subprocess_exec(
            *before, sys.executable, "-m", "rkfleet.cli.main", "up", "--data-dir", str(data_dir), *ports, *flags,
            stdout=asyncio.subprocess.PIPE, stderr=said, env={**os.environ, MARK: str(data_dir)},
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
        assert process.returncode == ends_with, f"rkfleet up ended with {process.returncode}: {last_words()}"
    await eventually(lambda: not processes_of(data_dir), lambda: f"no process is left, not {processes_of(data_dir)}", 5.0)


async def chat(http: httpx2.AsyncClient, fleet: Up, content: str, *, max_tokens: int = 8, model: str = "smollm2") -> httpx2.Response:
    """One chat completion, not streamed."""
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}
    return await http.post(f"{fleet.endpoints.gateway}/v1/chat/completions", json=body, timeout=60.0)


async def samples(http: httpx2.AsyncClient, url: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample that a program exposes, by name and sorted labels."""
    families = text_string_to_metric_families((await http.get(url)).text)
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for family in families for one in family.samples}
