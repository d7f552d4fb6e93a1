"""The agent's own log, kept in its journal besides standard error.

In: records of Python's logging. Out: lines `level logger: message field=value`, and the lines of a traceback below. `agent/app.py` opens it
around everything that an agent does.

Several agents may share a process (simulated boards). Which of them speaks is known from the context that its tasks inherit; what is
logged outside of every agent belongs to the host and is kept by each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final

from agent.journal import Journals
from rkfleet.process import extra_fields

__all__ = ["own_log"]

_speaker: Final[ContextVar[Journals | None]] = ContextVar("rkfleet_agent_journals", default=None)


@contextlib.contextmanager
def own_log(journals: Journals) -> Iterator[None]:
    """Keep what is logged while the block runs, and in tasks that begin in it; must be entered in the agent's event loop."""
    handler = _Handler(journals)
    root = logging.getLogger()
    token = _speaker.set(journals)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        _speaker.reset(token)


class _Handler(logging.Handler):
    """Writes records of one agent, and of nobody, into its journal; other threads hand them to the event loop."""

    def __init__(self, journals: Journals) -> None:
        super().__init__()
        self._journals: Final = journals
        self._loop: Final = asyncio.get_running_loop()
        self._thread: Final = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record."""
        if _speaker.get() not in (None, self._journals):
            return
        lines = _lines_of(record)
        if threading.get_ident() == self._thread:
            self._write(lines)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the journal
                self._loop.call_soon_threadsafe(self._write, lines)

    def _write(self, lines: list[str]) -> None:
        for line in lines:
            self._journals.write_own(line)


def _lines_of(record: logging.LogRecord) -> list[str]:
    fields = " ".join(f"{key}={value}" for key, value in extra_fields(record).items())
    head = f"{record.levelname.lower()} {record.name}: {record.getMessage()}"
    lines = [f"{head} {fields}" if fields else head]
    if record.exc_info and record.exc_info[0] is not None:
        lines += "".join(traceback.format_exception(*record.exc_info)).splitlines()
    return [piece for line in lines for piece in line.splitlines() or [""]]
