"""Answers to those who ask for lines: a request of the controller, read from the journals.

In: a `LogRequest`. Out: a `LogChunk`, or None as long as there is nothing to say to one that waits. Called by `agent/session/pump.py`
when the link has room. It stands apart from the journals, which know nothing of the session, and remembers nothing itself.
"""

from __future__ import annotations

from typing import Final

from agent.journal import Journal, Journals, NoSuchRun
from rkfleet.clock import Clock
from rkfleet.session import LogChunk, LogLine, LogRequest, LogSource

__all__ = ["BoardLogs"]


class BoardLogs:
    """The journals of one board, as the session asks for them; implements `Logs` of `agent/session/logs.py`."""

    def __init__(self, journals: Journals, clock: Clock) -> None:
        """Take what there is to read; the clock tells the wall time of a line."""
        self._journals: Final = journals
        self._clock: Final = clock

    @property
    def version(self) -> int:
        """Rises with every line of any journal."""
        return self._journals.version

    async def changed(self, seen: int) -> int:
        """Wait until the version is above `seen` and return it."""
        return await self._journals.changed(seen)

    def answer(self, request: LogRequest) -> LogChunk | None:
        """Return the answer to a request; None while one that waits has to."""
        if request.source is LogSource.UNSPECIFIED:
            return _refusal(request, "this agent does not know whose log is asked for; update it")
        worker = request.source is LogSource.WORKER
        journal = self._journals.find(request.replica_uid) if worker else self._journals.agent
        if journal is None:
            if request.after is None:
                return _refusal(request, "this board has started no worker of the replica yet")
            return LogChunk(request_id=request.request_id, next=request.after, newest=request.after, run=max(0, request.run), ended=True)
        return self._read(journal, request)

    def _read(self, journal: Journal, request: LogRequest) -> LogChunk | None:
        now = self._clock.monotonic()
        since = now - request.since_seconds if request.since_seconds else None
        try:
            reading = journal.read(run=request.run, after=request.after, tail_lines=request.tail_lines, since=since)
        except NoSuchRun as error:
            return _refusal(request, str(error))
        if request.wait and not (reading.lines or reading.dropped or reading.ended):
            return None
        began = self._clock.now().timestamp() - now
        return LogChunk(
            request_id=request.request_id,
            lines=tuple(LogLine(time_milliseconds=max(0, round((began + line.at) * 1000)), text=line.text) for line in reading.lines),
            next=reading.next,
            newest=reading.newest,
            dropped=reading.dropped,
            run=reading.run,
            ended=reading.ended,
        )


def _refusal(request: LogRequest, why: str) -> LogChunk:
    return LogChunk(request_id=request.request_id, ended=True, refusal=why)
