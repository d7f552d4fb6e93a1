"""How a hollow fleet shows where it is: one table that is drawn again on a terminal, plain lines when piped.

In: counts. Out: text on a stream. Every line says "hollow" and "simulated", because a line that is copied out must still say so.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TextIO

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table

__all__ = ["Counts", "Progress", "count"]


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Where the fleet is: boards that have joined, those in session, those that the scenario keeps away, and replicas by phase."""

    wanted: int
    joined: int = 0
    in_session: int = 0
    away: int = 0
    phases: Mapping[str, int] = {}

    def line(self) -> str:
        """Return all of it on one line."""
        phases = ", ".join(f"{number} {phase.lower()}" for phase, number in sorted(self.phases.items())) or "none"
        return (
            f"hollow boards (simulated): {self.joined}/{self.wanted} joined, {self.in_session} in session, {self.away} kept away;"
            f" simulated replicas: {phases}"
        )


def count(wanted: int, joined: int, sessions: Sequence[bool], away: int, phases: Sequence[str]) -> Counts:
    """Return the counts of what is seen at one moment."""
    return Counts(wanted=wanted, joined=joined, in_session=sum(sessions), away=away, phases=Counter(phases))


class Progress:
    """Shows counts, and sentences in between; use it as a context manager."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = ""
        self._live: Live | None = None
        if stream.isatty() and os.environ.get("TERM") != "dumb":
            self._live = Live(console=Console(file=stream), auto_refresh=False, transient=False)

    def __enter__(self) -> Progress:
        """Begin to draw."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last table where it is."""
        if self._live is not None:
            self._live.stop()

    def show(self, counts: Counts) -> None:
        """Show counts; a line that says nothing new is left out."""
        if self._live is not None:
            self._live.update(_table(counts), refresh=True)
        elif counts.line() != self._last:
            self._last = counts.line()
            print(self._last, file=self._stream, flush=True)

    def say(self, sentence: str) -> None:
        """Say something that happened."""
        if self._live is not None:
            self._live.console.print(f"hollow (simulated): {sentence}", markup=False, highlight=False)
        else:
            print(f"hollow (simulated): {sentence}", file=self._stream, flush=True)


def _table(counts: Counts) -> Table:
    table = Table(title=f"{counts.wanted} hollow boards, simulated", title_justify="left")
    for heading in ("joined", "in session", "kept away", *sorted(counts.phases)):
        table.add_column(heading, justify="right")
    numbers = (counts.joined, counts.in_session, counts.away, *(counts.phases[phase] for phase in sorted(counts.phases)))
    table.add_row(*(str(number) for number in numbers))
    return table
