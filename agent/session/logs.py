"""Where a session finds the lines that it is asked for.

`agent/logs.py` implements it for an agent with workers; whoever speaks the session without one leaves it at `NoLogs`, which answers every
request with a sentence.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from rkfleet.session import LogChunk, LogRequest

__all__ = ["Logs", "NoLogs"]


class Logs(Protocol):
    """Journals that can be asked."""

    @property
    def version(self) -> int:
        """Rises with every line."""
        ...

    async def changed(self, seen: int) -> int:
        """Wait until the version is above `seen`, and return it."""
        ...

    def answer(self, request: LogRequest) -> LogChunk | None:
        """Return the answer to a request; None while one that waits has to. Must not block."""
        ...


class NoLogs:
    """A board that keeps no journals; implements `Logs`."""

    version = 0

    async def changed(self, seen: int) -> int:
        """Wait for ever: nothing is ever written here."""
        while seen >= self.version:
            await asyncio.Event().wait()
        return self.version

    def answer(self, request: LogRequest) -> LogChunk | None:
        """Refuse."""
        return LogChunk(request_id=request.request_id, ended=True, refusal="this board keeps no logs")
