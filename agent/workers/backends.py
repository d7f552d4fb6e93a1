"""Workers that are processes of their own: how the agent starts one, hears from it, and learns why it ended.

In: a `WorkerSpec`. Out: a `Worker` whose process runs `agent.workers.child` on the other end of a control pipe. Called by the
supervisor. The process is started by exec with an argument list, never forked from a program that has threads, and nothing it prints
can block it: its standard error is read all the time and the last lines are kept to say why it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from agent.workers import pipe
from agent.workers.base import Exit, Listener, Worker, WorkerSpec
from agent.workers.libraries import Library
from rkfleet.errors import Internal, Unavailable
from rkfleet.kinds.board import Runtime
from rkfleet.kinds.replica import ExitReason

__all__ = ["ChildBackend", "exit_of", "llamacpp", "rkllm"]

PROGRAM: Final = ("-m", "agent.workers.child")  # Arguments of the interpreter.

LOG_LINES_KEPT: Final = 40  # What a runtime says between the first error and its end.
LOG_LINE_BYTES_MAX: Final = 400
LOG_READ_BYTES: Final = 4096
# What runtimes say when memory is what is missing: llama.cpp, and the NPU's (https://github.com/airockchip/rknn-llm/issues/195, .../522).
NO_MEMORY: Final = ("failed to allocate", "insufficient memory", "failed to malloc npu memory")

SAID_CHARACTERS_MAX: Final = 300  # Of the worker's own words in an exit message, which travels in every report.

# GNU OpenMP's threads spin while they wait for each other. By default for so long that two workers on the same cores nearly stop:
# SmolLM2-135M, two workers with two threads each on two cores, 3.8 tokens/s each; with 2000 spins 21 each, while one worker alone kept
# its 80 (xllamacpp 2026.10, x86-64). Thread shares avoid the case; this bounds its cost while a neighbour comes or goes.
# Source: https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
WORKER_ENVIRONMENT: Final[Mapping[str, str]] = {"GOMP_SPINCOUNT": "2000"}

_log = logging.getLogger(__name__)


class ChildBackend:
    """Starts worker processes of one runtime; implements `Backend`."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        environ: Mapping[str, str],
        new_api_key: Callable[[], str],
        proc: Path = Path("/proc"),
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self._runtime: Final = runtime
        self._program: Final = tuple(program)
        self._environ: Final = {**WORKER_ENVIRONMENT, **environ}
        self._new_api_key: Final = new_api_key
        self._proc: Final = proc

    @property
    def runtime(self) -> Runtime:
        """Return the runtime as the board advertises it."""
        return self._runtime

    async def start(self, spec: WorkerSpec, tasks: asyncio.TaskGroup, beat: Callable[[], None], log: Callable[[str], None]) -> Worker:
        """Start a worker process and send it its load line.

        Raises:
            Unavailable: The process could not be started.
        """
        load = pipe.Load(
            backend=self._runtime.backend,
            model_path=spec.model_path,
            context_tokens=spec.context_tokens,
            max_concurrent=spec.max_concurrent,
            threads=spec.threads,
            api_key=self._new_api_key(),
            max_output_tokens=spec.max_output_tokens,
            npu=spec.npu,
            shift=spec.shift,
            keep_tokens=spec.keep_tokens,
        )
        killed_before = _kernel_kills(self._proc)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *self._program,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                limit=pipe.LINE_BYTES_MAX, env=self._environ, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise Unavailable(f"worker process for {spec.namespace}/{spec.name} cannot be started: {error}") from error
        worker = _ChildWorker(process, load, beat, log, lambda: _kernel_kills(self._proc) > killed_before)
        tasks.create_task(worker.follow(), name=f"worker {process.pid}")
        return worker


class _ChildWorker:
    """One worker process; `follow` must run for the rest to happen."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        load: pipe.Load,
        beat: Callable[[], None],
        log: Callable[[str], None],
        kernel_killed: Callable[[], bool],
    ) -> None:
        self._process: Final = process
        self._load: Final = load
        self._beat: Final = beat
        self._log: Final = log
        self._kernel_killed: Final = kernel_killed
        self._loaded: Final[asyncio.Future[Listener | None]] = asyncio.get_running_loop().create_future()
        self._exited: Final[asyncio.Future[Exit]] = asyncio.get_running_loop().create_future()
        self._said: Final[deque[str]] = deque(maxlen=LOG_LINES_KEPT)
        self._failed: pipe.Failed | None = None
        self._ended_by_us: Exit | None = None

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    async def loaded(self) -> Listener | None:
        """Wait until the model is loaded; None when the worker ended first."""
        return await asyncio.shield(self._loaded)

    async def exited(self) -> Exit:
        """Wait until the process is gone."""
        return await asyncio.shield(self._exited)

    def stop(self) -> None:
        """Close the control pipe, which ends the process."""
        self._end(Exit(reason=None, message="stopped"))
        stdin = self._process.stdin
        assert stdin is not None
        stdin.close()

    def kill(self, reason: ExitReason | None, message: str) -> None:
        """Kill the process."""
        self._end(Exit(reason=reason, message=message))
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _end(self, end: Exit) -> None:
        if self._ended_by_us is None:
            self._ended_by_us = end

    async def follow(self) -> None:
        """Send the load line, read what comes back and wait for the end; cancelled, kill the process first."""
        try:
            async with asyncio.TaskGroup() as readers:
                readers.create_task(self._read_events())
                readers.create_task(self._read_log())
                await self._send_load()
                await self._process.wait()
        finally:
            if self._process.returncode is None:
                self.kill(None, "the agent stopped")
                await self._process.wait()
            self._settle()

    def _settle(self) -> None:
        status = self._process.returncode
        assert status is not None
        if not self._loaded.done():
            self._loaded.set_result(None)
        if not self._exited.done():
            oom = status == -signal.SIGKILL and self._kernel_killed()
            self._exited.set_result(self._ended_by_us or exit_of(status, self._failed, tuple(self._said), kernel_killed=oom))

    async def _send_load(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it ended already; its exit says why
            stdin.write(pipe.encode(self._load))
            await stdin.drain()

    async def _read_events(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        try:
            async for line in stdout:
                self._hear(pipe.decode_event(line))
        except (Internal, ValueError) as error:  # ValueError: a line beyond the limit
            self.kill("Crashed", f"the worker broke the control pipe: {error}")

    def _hear(self, event: pipe.Event) -> None:
        match event:
            case pipe.Loaded(endpoint=endpoint):
                if not self._loaded.done():
                    self._loaded.set_result(Listener(endpoint=endpoint, api_key=self._load.api_key))
            case pipe.Failed():
                self._failed = event
            case pipe.Beat():
                self._beat()

    async def _read_log(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        rest = b""
        while piece := await stderr.read(LOG_READ_BYTES):
            *lines, rest = (rest + piece).split(b"\n")
            rest = rest[:LOG_LINE_BYTES_MAX]
            for line in lines:
                self._note_line(line)
        if rest:  # its last words, which a crash cut off
            self._note_line(rest)

    def _note_line(self, line: bytes) -> None:
        text = line[:LOG_LINE_BYTES_MAX].decode(errors="replace").rstrip()
        self._said.append(text)
        self._log(text)
        _log.debug("worker %d: %s", self.pid, text)


def exit_of(status: int, failed: pipe.Failed | None, said: tuple[str, ...], *, kernel_killed: bool) -> Exit:
    """Return why a worker ended that nobody asked to.

    Args:
        status: Exit status; the negative number of the signal that ended it.
        failed: What the worker said before it ended, if it could not load.
        said: Its last lines on standard error.
        kernel_killed: True when the kernel killed a process for want of memory while the worker lived.
    """
    words = _first_error(said)
    no_memory = any(one in words for one in NO_MEMORY)
    if failed is not None:
        told = not words or words in failed.message
        return Exit(reason="OutOfMemory" if no_memory else failed.reason, message=failed.message if told else f"{failed.message}: {words}")
    if kernel_killed:
        return Exit(reason="OutOfMemory", message="the kernel killed the worker because the board ran out of memory")
    if status in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP):
        return Exit(reason="Killed", message=f"the worker was killed by {signal.Signals(-status).name}, not by the agent")
    how = f"{_signal_name(-status)}" if status < 0 else f"exit status {status}"
    reason: ExitReason = "OutOfMemory" if no_memory else "Crashed"  # the NPU's runtime 1.3.0 crashes where older ones return
    return Exit(reason=reason, message=f"the worker crashed with {how}: {words}" if words else f"the worker crashed with {how}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _first_error(said: tuple[str, ...]) -> str:
    """Return the first line that a runtime marked as an error, else the last that it did not mark as mere information.

    llama.cpp writes `<time> E <text>`, the NPU's runtime `E rkllm: <text>`; `I` is information in both.
    """
    lines = [f" {line}" for line in said]
    marked = (line.partition(" E ")[2] for line in lines if " E " in line)
    others = [line.strip() for line in lines if not line.startswith(" I ")]
    return next(marked, others[-1] if others else "")[:SAID_CHARACTERS_MAX]


def _kernel_kills(proc: Path) -> int:
    """Return how many processes the kernel killed for want of memory since it started; 0 where it does not count."""
    try:
        lines = (proc / "vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def llamacpp(*, environ: Mapping[str, str] = os.environ, new_api_key: Callable[[], str]) -> ChildBackend | None:
    """Return the backend of llama.cpp, or None when xllamacpp is not installed; does not import it."""
    try:
        library = version("xllamacpp")
    except PackageNotFoundError:
        return None
    return ChildBackend(Runtime(name="llamacpp", version=library, backend="llamacpp"), environ=environ, new_api_key=new_api_key)


def rkllm(library: Library, *, environ: Mapping[str, str] = os.environ, new_api_key: Callable[[], str]) -> ChildBackend:
    """Return the backend of one version of the NPU's runtime; workers are told its file with each load.

    The loader looks beside the library first: the vendor says to put libomp.so there on images that lack it.
    Source: README of https://github.com/airockchip/rknn-llm.
    """
    beside = str(library.path.absolute().parent)
    rest = environ.get("LD_LIBRARY_PATH", "")
    own = {**environ, "LD_LIBRARY_PATH": f"{beside}:{rest}" if rest else beside}
    return ChildBackend(Runtime(name="rkllm", version=library.version, backend="rkllm"), environ=own, new_api_key=new_api_key)
