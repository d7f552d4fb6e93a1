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
from typing import TYPE_CHECKING, Final, Protocol

from agent.workers import pipe
from agent.workers.base import Exit, Listener, Worker, WorkerSpec
from agent.workers.libraries import Library
from rkfleet.errors import Internal, Unavailable
from rkfleet.kinds.board import Runtime
from rkfleet.kinds.replica import ExitReason

if TYPE_CHECKING:
    from agent.failures.lines import Ending

__all__ = ["ChildBackend", "KernelTail", "exit_of", "llamacpp", "named", "rkllm"]

PROGRAM: Final = ("-m", "agent.workers.child")  # Arguments of the interpreter.

LOG_LINES_KEPT: Final = 40  # What a runtime says between the first error and its end.
LOG_FIRST_LINES_KEPT: Final = 40  # Versions, driver, chip: a runtime on the NPU says them first, and they explain what comes later.
LOG_LINE_BYTES_MAX: Final = 400
LOG_READ_BYTES: Final = 4096
SAID_CHARACTERS_MAX: Final = 300  # Of the worker's own words in an exit message, which travels in every report.

# GNU OpenMP's threads spin while they wait for each other. By default for so long that two workers on the same cores nearly stop:
# SmolLM2-135M, two workers with two threads each on two cores, 3.8 tokens/s each; with 2000 spins 21 each, while one worker alone kept
# its 80 (xllamacpp 2026.10, x86-64). Thread shares avoid the case; this bounds its cost while a neighbour comes or goes.
# Source: https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
WORKER_ENVIRONMENT: Final[Mapping[str, str]] = {"GOMP_SPINCOUNT": "2000"}

# Reasons for which a worker is killed by the agent itself: it made no progress, or did not load in time.
_STUCK: Final[frozenset[ExitReason]] = frozenset({"Hung", "LoadFailed"})

_log = logging.getLogger(__name__)


class KernelTail(Protocol):
    """The kernel log from the start of a worker on."""

    @property
    def absent(self) -> str:
        """Return why there are no lines; empty if the log can be read."""
        ...

    def lines(self) -> tuple[str, ...]:
        """Return the lines about the NPU and about memory since the last call, a bounded number."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


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
        follow_kernel: Callable[[], KernelTail] | None = None,
    ) -> None:
        """Take what processes are made of.

        Args:
            runtime: The runtime as the board advertises it.
            environ: Environment of the processes.
            new_api_key: Makes the key that a listener demands.
            proc: Where the kernel counts its kills.
            follow_kernel: Opens the kernel log at the start of a worker on the NPU; None for runtimes that the kernel says nothing about.
            program: Arguments of the interpreter that start a worker.
        """
        self._follow_kernel: Final = follow_kernel
        self._on_npu: Final[set[int]] = set()  # process ids of workers on the NPU
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
            # A simulated library is loaded by the worker of its runtime.
            backend=self._runtime.name if self._runtime.backend == "simulated" else self._runtime.backend,
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
        kernel = self._follow_kernel() if self._follow_kernel is not None and spec.npu is not None else None
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *self._program,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                limit=pipe.LINE_BYTES_MAX, env=self._environ, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            if kernel is not None:
                kernel.close()
            raise Unavailable(f"worker process for {spec.namespace}/{spec.name} cannot be started: {error}") from error
        worker = _ChildWorker(
            process, load, beat, log,
            kernel_killed=lambda: _kernel_kills(self._proc) > killed_before, kernel=kernel, on_npu=self._on_npu,
        )  # fmt: skip
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
        *,
        kernel_killed: Callable[[], bool],
        kernel: KernelTail | None,
        on_npu: set[int],
    ) -> None:
        self._kernel: Final = kernel
        self._on_npu: Final = on_npu
        if load.npu is not None:
            on_npu.add(process.pid)
        self._first_said: Final[list[str]] = []
        self._others = 0
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
            self._others = len(self._on_npu - {self.pid})
            self._on_npu.discard(self.pid)
            self._settle()
            if self._kernel is not None:
                self._kernel.close()

    def _settle(self) -> None:
        status = self._process.returncode
        assert status is not None
        loaded = self._loaded.done() and self._loaded.result() is not None
        if not self._loaded.done():
            self._loaded.set_result(None)
        if not self._exited.done():
            oom = status == -signal.SIGKILL and self._kernel_killed()
            said = tuple(self._said)
            if self._load.npu is None:
                self._exited.set_result(self._ended_by_us or exit_of(status, self._failed, said, kernel_killed=oom))
            else:
                self._exited.set_result(self._npu_exit(status, loaded, oom, said))

    def _npu_exit(self, status: int, loaded: bool, oom: bool, said: tuple[str, ...]) -> Exit:
        """Return how a worker on the NPU ended, by its known name if it has one."""
        from agent.failures.lines import Ending, first_error  # noqa: PLC0415 (a megabyte that most agents never need)

        by_us = self._ended_by_us
        lines = self._kernel.lines() if self._kernel is not None else ()
        if by_us is not None and by_us.reason is None:
            return by_us
        if self._kernel is not None and self._kernel.absent:
            self._log(self._kernel.absent)
        ending = Ending(
            status=status,
            pid=self.pid,
            said=self._failed.message if self._failed else "",
            loaded=loaded,
            hung=(by_us is not None and by_us.reason in _STUCK) or (self._failed is not None and self._failed.reason == "Hung"),
            kernel_killed=oom,
            others=self._others,
        )
        exit = by_us or exit_of(status, self._failed, said, kernel_killed=oom, words=first_error(said)[:SAID_CHARACTERS_MAX])
        return named(exit, (*self._first_said, *said), lines, ending)

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
        if len(self._first_said) < LOG_FIRST_LINES_KEPT:
            self._first_said.append(text)
        self._said.append(text)
        self._log(text)
        _log.debug("worker %d: %s", self.pid, text)


def named(exit: Exit, said: tuple[str, ...], kernel: tuple[str, ...], ending: Ending) -> Exit:
    """Return the exit of a worker on the NPU with the known failure that explains it; unchanged if none does.

    Args:
        exit: As `exit_of` or the supervisor tells it.
        said: Its first and last lines on standard error.
        kernel: Lines of the kernel log since it started.
        ending: How it ended.
    """
    from agent.failures.lines import recognise  # noqa: PLC0415 (as above)

    found = recognise(said, kernel, ending)
    if found is None:
        return exit
    if exit.message in found.message:
        message = found.message
    else:
        message = f"{exit.message}; {found.message}" if found.guess else f"{found.message}; {exit.message}"
    return Exit(reason=found.exit or exit.reason, message=message, failure=found)


def exit_of(status: int, failed: pipe.Failed | None, said: tuple[str, ...], *, kernel_killed: bool, words: str | None = None) -> Exit:
    """Return why a worker ended that nobody asked to.

    Args:
        status: Exit status; the negative number of the signal that ended it.
        failed: What the worker said before it ended, if it could not load.
        said: Its last lines on standard error.
        kernel_killed: True when the kernel killed a process for want of memory while the worker lived.
        words: The line that says most, if its runtime marks errors in another way than llama.cpp.
    """
    words = _first_error(said) if words is None else words
    if failed is not None:
        told = not words or words.removeprefix("E ") in failed.message
        message = failed.message if told else f"{failed.message}: {words}"
        no_memory = "failed to allocate" in words or "insufficient memory" in words
        return Exit(reason="OutOfMemory" if no_memory else failed.reason, message=message)
    if kernel_killed:
        return Exit(reason="OutOfMemory", message="the kernel killed the worker because the board ran out of memory")
    if status in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP):
        return Exit(reason="Killed", message=f"the worker was killed by {signal.Signals(-status).name}, not by the agent")
    how = f"{_signal_name(-status)}" if status < 0 else f"exit status {status}"
    return Exit(reason="Crashed", message=f"the worker crashed with {how}: {words}" if words else f"the worker crashed with {how}")


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


def rkllm(
    library: Library,
    *,
    environ: Mapping[str, str] = os.environ,
    new_api_key: Callable[[], str],
    follow_kernel: Callable[[], KernelTail] | None = None,
) -> ChildBackend:
    """Return the backend of one version of the NPU's runtime; workers are told its file with each load.

    The loader looks beside the library first: the vendor says to put libomp.so there on images that lack it.
    Source: README of https://github.com/airockchip/rknn-llm.
    """
    beside = str(library.path.absolute().parent)
    rest = environ.get("LD_LIBRARY_PATH", "")
    own = {**environ, "LD_LIBRARY_PATH": f"{beside}:{rest}" if rest else beside}
    made = Runtime(name="rkllm", version=library.version, backend="simulated" if library.simulated else "rkllm")
    return ChildBackend(made, environ=own, new_api_key=new_api_key, follow_kernel=follow_kernel)
