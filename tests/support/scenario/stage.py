"""Plays a scenario from its seed to its outcome: makes the loop and the directory, watches for errors, and cleans up.

What a program logs as an exception that it survives is a mistake of ours, and ends the scenario as a broken promise does.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tests.support.scenario.fleet import Fleet, Scenario
from tests.support.scenario.virtual import VirtualLoop

PATH_LENGTH = 48  # Of every directory: it is in messages, and long messages take longer.


class Outcome(msgspec.Struct):
    """What a run came to.

    Attributes:
        sha256: Of every line, every stored object and every message.
        broken: The promise that was broken; None for none.
    """

    lines: list[str]
    sha256: str
    virtual_seconds: float
    real_seconds: float
    commits: int
    checks: int
    steps: int
    broken: BaseException | None = None

    @property
    def transcript(self) -> str:
        return "\n".join(self.lines) + "\n"


def play(seed: str, scenario: Scenario, *, sqlite: bool = False) -> Outcome:
    """Play a scenario; a broken promise is in the outcome, not raised."""
    directory = _directory()
    began = time.perf_counter()
    loop = VirtualLoop()
    collecting = gc.isenabled()
    gc.disable()  # Finalizers run when they must, not when memory happens to be short.
    broken: BaseException | None = None
    try:
        with _errors_break(loop):
            asyncio.set_event_loop(loop)
            fleet = Fleet(seed, loop, directory, sqlite=sqlite)
            try:
                loop.run_until_complete(scenario(fleet))
            except Exception as error:  # noqa: BLE001 - whatever ended it is the outcome
                while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
                    error = error.exceptions[0]
                broken = loop.broken or error
            lines, sha256 = list(fleet.lines), fleet.sha256
            virtual, real = loop.time() - fleet.began, time.perf_counter() - began
            loop.dispose()
        return Outcome(lines, sha256, virtual, real, fleet.promises.commits, fleet.promises.checks, loop.steps, broken)
    finally:
        asyncio.set_event_loop(None)
        if collecting:
            gc.enable()
        shutil.rmtree(directory, ignore_errors=True)


def _directory() -> Path:
    """Return a new directory whose name is always equally long: it is in messages, and long messages take longer."""
    parent = Path("/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir())
    for number in itertools.count():
        directory = parent / f"rkfleet-{os.getpid():0{PATH_LENGTH - len(str(parent)) - 15}}-{number:05}"
        try:
            directory.mkdir()
        except FileExistsError:
            continue
        return directory
    raise AssertionError("unreachable")


class _Breaks(logging.Handler):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__(logging.ERROR)
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and not self._loop.disposing:
            error = AssertionError(f"logged: {record.getMessage()}: {record.exc_info[1]!r}")
            error.__cause__ = record.exc_info[1]
            self._loop.broken = self._loop.broken or error


@contextmanager
def _errors_break(loop: VirtualLoop) -> Iterator[None]:
    """An exception that a loop's edge logs and survives is a mistake of ours, and ends the scenario."""
    handler = _Breaks(loop)
    loggers = [logging.getLogger(name) for name in ("controller", "agent", "gateway")]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.ERROR)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
