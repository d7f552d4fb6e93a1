"""A vendor's toolkit at work: a child process in its own interpreter, heard, bounded, and never left behind.

In: a job for `driver`, the interpreter, a directory to work in. Out: `Ended`: how it went, with the last lines it wrote; on the way, what a
person wants to see. Called by `interpreter` (which asks for versions) and `convert`.

The child leads a process group of its own, without the caller's PYTHONPATH. When the caller is cancelled, a limit is reached, or the child
ends and leaves others behind, the whole group is killed; when this process is killed itself, the driver sees its standard input end and
does the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
from asyncio.subprocess import PIPE, STDOUT, Process
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from rkfleet.clock import Clock
from rkfleet.errors import FailedPrecondition, NotFound

__all__ = ["SILENCE_SECONDS", "TAIL_LINES", "Ended", "Limits", "Listener", "run_job"]

SILENCE_SECONDS: Final = 1800.0
"""Without a byte of output. The vendor's bars move with every layer; a layer of a 7B model under grq takes minutes, not half an hour."""
TAIL_LINES: Final = 200  # Kept of what the vendor writes; a traceback of its deepest call has some 60.
LINE_CHARACTERS: Final = 2000  # Of a line; the rest of a longer one is dropped.
EVENTS_MAX: Final = 4096  # A job has some ten; more is no driver of ours.
EVENT_BYTES_MAX: Final = 1 << 20
READ_BYTES: Final = 1 << 16
WATCH_SECONDS: Final = 0.25  # How late a limit may be seen.
EXIT_SECONDS: Final = 0.02  # How late the end of a child may be seen; conversions take minutes.
DRAIN_SECONDS: Final = 5.0  # For output to end when the child has; whoever still holds the pipe then is killed.

DRIVER: Final = Path(__file__).parent / "driver"
_BAR: Final = re.compile(r"^(?:[IWED] )?\s*([^%|]{1,60}?)\s*:?\s*\d{1,3}%\|[^|]*\|\s*(\d{1,9})/(\d{1,9})\b")  # As tqdm writes.
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NOT_OURS: Final = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV")


class Listener(Protocol):
    """Who is told how it goes."""

    def stage(self, name: str) -> None:
        """Say that a stage begins."""

    def progress(self, what: str, done: int, of: int) -> None:
        """Say how far the vendor's own bar is."""

    def log(self, line: str) -> None:
        """Take a line that the vendor wrote."""


class Limits(msgspec.Struct, frozen=True):
    """How long a child may take; `total_seconds` 0 is without end."""

    silence_seconds: float = SILENCE_SECONDS
    total_seconds: float = 0.0


class Ended(msgspec.Struct, frozen=True):
    """How a child ended.

    Attributes:
        status: Exit status, or the negative number of the signal that ended it.
        killed: Why we ended it; empty where it ended by itself.
        events: What the driver told, in order.
        tail: The last lines that the vendor wrote.
        stage_seconds: How long each stage took.
    """

    status: int
    killed: str
    events: tuple[Mapping[str, Any], ...]
    tail: tuple[str, ...]
    stage_seconds: Mapping[str, float]
    seconds: float

    @property
    def last(self) -> Mapping[str, Any]:
        """The last event, which says how the job ended if the driver lived to tell."""
        return self.events[-1] if self.events else {}

    @property
    def stage(self) -> str:
        """The stage that was reached."""
        return next(reversed(list(self.stage_seconds)), "start")


async def run_job(
    job: Mapping[str, Any],
    *,
    python: Path,
    directory: Path,
    clock: Clock,
    listener: Listener,
    limits: Limits = Limits(),
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run a job to its end; the child and everything that it started are gone when this returns, or is cancelled.

    Args:
        job: As `driver` takes it.
        python: The interpreter, absolute, but not resolved: the link in a virtual environment is what makes it one.
        directory: Where the child works.
        clock: Time of its limits.
        listener: Who is told on the way.
        limits: How long it may take.
        environment: Added to ours.

    Raises:
        NotFound: There is no such interpreter.
        FailedPrecondition: It cannot be started.
    """
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as events:  # noqa: ASYNC230 (a pipe)
        try:
            process = await _start(python, directory, writing, environment or {})
        finally:
            os.close(writing)
        child = _Child(process, clock, listener)
        try:
            return await child.hear(job, events, limits)
        finally:
            await child.end()


async def _start(python: Path, directory: Path, events: int, more: Mapping[str, str]) -> Process:
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_OURS}
    environment |= {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", **more}
    try:
        return await asyncio.create_subprocess_exec(
            python,
            DRIVER,
            str(events),
            stdin=PIPE,
            stdout=PIPE,
            stderr=STDOUT,
            pass_fds=(events,),
            cwd=directory,
            env=environment,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise NotFound(f"--python {str(python)!r} does not exist; give the interpreter of the vendor's environment") from error
    except OSError as error:
        raise FailedPrecondition(f"--python {str(python)!r} cannot be started: {error.strerror}; give a Python interpreter") from error


class _Child:
    """One child from its start to its end."""

    def __init__(self, process: Process, clock: Clock, listener: Listener) -> None:
        self._process = process
        self._clock = clock
        self._listener = listener
        self._begin = self._heard = clock.monotonic()
        self._killed = ""
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._events: list[Mapping[str, Any]] = []
        self._stages: list[tuple[str, float]] = []

    async def hear(self, job: Mapping[str, Any], events: Any, limits: Limits) -> Ended:
        """Give the job, listen until the end, and say how it was."""
        assert self._process.stdin is not None
        reader = asyncio.StreamReader(limit=EVENT_BYTES_MAX)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), events)
        try:
            async with asyncio.TaskGroup() as group:
                pipes = [group.create_task(self._hear_events(reader)), group.create_task(self._hear_log())]
                watch = group.create_task(self._watch(limits))
                self._process.stdin.write(msgspec.json.encode(job) + b"\n")
                with contextlib.suppress(ConnectionError):  # It ended before it read; the log says why.
                    await self._process.stdin.drain()
                status = await self._exit()
                watch.cancel()
                _, left = await asyncio.wait(pipes, timeout=DRAIN_SECONDS)
                for pipe in left:
                    pipe.cancel()
        finally:
            transport.close()
        now = self._clock.monotonic()
        took: dict[str, float] = {}
        for (name, begin), (_, end) in itertools.pairwise([*self._stages, ("", now)]):
            took[name] = took.get(name, 0.0) + end - begin
        return Ended(status, self._killed, tuple(self._events), tuple(self._tail), took, now - self._begin)

    async def end(self) -> None:
        """Kill what is left of the group, and wait until the child is gone."""
        self._kill()
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._exit()
        # Whoever left the group may hold the other end of the output for ever; asyncio has no public way to let go of it.
        self._process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001

    async def _exit(self) -> int:
        """Wait until the child itself is gone; in Python 3.11 `Process.wait` waits for all who hold its output too."""
        while (status := self._process.returncode) is None:
            await self._clock.sleep(EXIT_SECONDS)
        return status

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _watch(self, limits: Limits) -> None:
        while True:
            await self._clock.sleep(WATCH_SECONDS)
            now = self._clock.monotonic()
            if now - self._heard > limits.silence_seconds:
                self._killed = f"it wrote nothing for {limits.silence_seconds:g} s (limit --silence-seconds)"
            elif 0 < limits.total_seconds < now - self._begin:
                self._killed = f"it took longer than {limits.total_seconds:g} s (limit --time-limit-seconds)"
            else:
                continue
            self._kill()
            return

    async def _hear_events(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await reader.readline()
                event = json.loads(line) if line else None
            except ValueError:  # What is no line of ours, or has no end.
                continue
            if event is None:
                return
            self._heard = self._clock.monotonic()
            if not isinstance(event, dict) or len(self._events) >= EVENTS_MAX:
                continue
            self._events.append(event)
            if event.get("event") == "stage":
                self._stages.append((str(event.get("stage")), self._heard))
                self._listener.stage(str(event.get("stage")))

    async def _hear_log(self) -> None:
        assert self._process.stdout is not None
        rest = ""
        while piece := await self._process.stdout.read(READ_BYTES):
            self._heard = self._clock.monotonic()
            *lines, rest = re.split(r"\r\n|\r|\n", rest + piece.decode("utf-8", "replace"))
            rest = rest[:LINE_CHARACTERS]
            for line in lines:
                self._take(line)
        self._take(rest)

    def _take(self, line: str) -> None:
        """Take one line: a bar is progress, everything else is kept."""
        text = "".join(one for one in _COLOUR.sub("", line[:LINE_CHARACTERS]) if one.isprintable() or one == "\t").rstrip()
        if bar := _BAR.match(text):
            self._listener.progress(bar[1].strip(), int(bar[2]), int(bar[3]))
        elif text:
            self._tail.append(text)
            self._listener.log(text)
