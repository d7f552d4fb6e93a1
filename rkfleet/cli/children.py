"""Programs as children: started, logged, restarted when they die, stopped together.

`rkfleet up` gives a list of `Program`s; each runs as a process of its own with the same command line a person would type. A child holds
the read end of the lifeline pipe whose write end lives in this process only, so every child notices when this process dies, however it
dies. Output goes to `log/<name>.log`, the process id to `run/<name>.pid`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import httpx2
import msgspec

from rkfleet.clock import Clock
from rkfleet.errors import DeadlineExceeded

__all__ = ["Child", "Children", "Program"]

RESTART_SECONDS: Final = (0.2, 0.5, 1.0, 2.0)  # Between starts of a program that keeps dying; the last repeats: people wait for it.
STEADY_SECONDS: Final = 30.0  # A program that lived this long starts over at the first pause.
STOP_SECONDS_MAX: Final = 10.0  # From SIGTERM to SIGKILL: longer than any clean stop needs, shorter than a person waits.
READY_POLL_SECONDS: Final = 0.1
LOG_BYTES_MAX: Final = 8 << 20  # A log beyond this is moved to `.1` at the next start of its program.


class Program(msgspec.Struct, frozen=True):
    """One program to run.

    Attributes:
        name: Name of its log, its pid file and its line in messages.
        arguments: Command line.
        ops_url: Base URL of its plain HTTP listener, where `/readyz` answers 200 when it serves.
    """

    name: str
    arguments: tuple[str, ...]
    ops_url: str


class Child:
    """One running program."""

    def __init__(self, program: Program, data_dir: Path, clock: Clock, lifeline: int) -> None:
        self.program: Final = program
        self.restarts = 0
        self._data_dir: Final = data_dir
        self._clock: Final = clock
        self._lifeline: Final = lifeline
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    @property
    def log_path(self) -> Path:
        """Where its output goes."""
        return self._data_dir / "log" / f"{self.program.name}.log"

    @property
    def _pid_path(self) -> Path:
        return self._data_dir / "run" / f"{self.program.name}.pid"

    @property
    def exit_status(self) -> int | None:
        """Exit status of the last process, negative for a signal; None while it runs."""
        return self._process.returncode if self._process else None

    async def run(self, on_exit: Callable[[str], None]) -> None:
        """Keep the program running until `stop`; `on_exit` gets a sentence for every death that was not asked for."""
        failures = 0
        while not self._stopping:
            started = self._clock.monotonic()
            process = await self._start()
            status = await process.wait()
            if self._stopping:
                return
            failures = 0 if self._clock.monotonic() - started > STEADY_SECONDS else failures + 1
            pause = RESTART_SECONDS[min(failures, len(RESTART_SECONDS)) - 1] if failures else RESTART_SECONDS[0]
            self.restarts += 1
            on_exit(f"{self.program.name} ended with {_status_words(status)}; starting it again in {pause} s, see {self.log_path}")
            await self._clock.sleep(pause)

    async def _start(self) -> asyncio.subprocess.Process:
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_BYTES_MAX:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.program.arguments,
                "--lifeline-fd",
                str(self._lifeline),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(self._lifeline,),
                start_new_session=True,  # Ctrl-C reaches this process only; it stops the children in order
            )
        part = self._pid_path.with_suffix(".part")  # a reader never meets half a number
        part.write_text(f"{self._process.pid}\n")
        part.replace(self._pid_path)
        return self._process

    async def stop(self) -> None:
        """Ask the program to stop and wait; kill it after the limit."""
        self._stopping = True
        self._pid_path.unlink(missing_ok=True)  # the number will be another process's one day
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


class Children:
    """All programs of one data directory."""

    def __init__(self, data_dir: Path, clock: Clock, tasks: asyncio.TaskGroup, on_exit: Callable[[str], None]) -> None:
        for folder in ("run", "log"):
            (data_dir / folder).mkdir(parents=True, exist_ok=True)
        self._data_dir: Final = data_dir
        self._clock: Final = clock
        self._tasks: Final = tasks
        self._on_exit: Final = on_exit
        self._children: Final[dict[str, Child]] = {}
        self._runs: Final[list[asyncio.Task[None]]] = []
        self._lifeline, self._lifeline_held = os.pipe()

    def start(self, program: Program) -> None:
        """Start a program and keep it running."""
        child = Child(program, self._data_dir, self._clock, self._lifeline)
        self._children[program.name] = child
        self._runs.append(self._tasks.create_task(child.run(self._on_exit)))

    async def wait_ready(self, *names: str, seconds_max: float) -> None:
        """Wait until each of these programs answers 200 on `/readyz`.

        Raises:
            DeadlineExceeded: One did not; the message has its own sentence and its log's last line.
        """
        deadline = self._clock.monotonic() + seconds_max
        async with httpx2.AsyncClient(trust_env=False, timeout=2.0) as http:
            for name in names:
                child = self._children[name]
                while sentence := await _not_ready(http, child.program.ops_url):
                    if self._clock.monotonic() > deadline:
                        last = f"last line of {child.log_path}: {_last_line(child.log_path)}"
                        raise DeadlineExceeded(f"{name} is not ready after {seconds_max:.0f} s: {sentence}; {last}")
                    await self._clock.sleep(READY_POLL_SECONDS)

    async def stop(self) -> None:
        """Stop every program, the last started first."""
        try:
            for child in reversed(self._children.values()):
                await child.stop()
        finally:
            for run in self._runs:
                run.cancel()
            os.close(self._lifeline_held)
            os.close(self._lifeline)

    def exit_statuses(self) -> Mapping[str, int | None]:
        """Return how each program ended; None for one that runs."""
        return {name: child.exit_status for name, child in self._children.items()}

    def restarts(self) -> Mapping[str, int]:
        """Return how often each program died and was started again."""
        return {name: child.restarts for name, child in self._children.items()}


async def _not_ready(http: httpx2.AsyncClient, ops_url: str) -> str:
    try:
        answer = await http.get(f"{ops_url}/readyz")
    except httpx2.HTTPError as error:
        return f"{ops_url}/readyz does not answer ({type(error).__name__})"
    return "" if answer.status_code == 200 else answer.text.strip()


def _last_line(path: Path) -> str:
    lines = path.read_bytes()[-4096:].decode(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else "(empty)"


def _status_words(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
