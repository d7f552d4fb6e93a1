"""What every benchmark ends with: a table for people, and one JSON line for programs that is also kept.

In: results, each a value with its unit and, where there is one, a peer that was measured in the same run. Out: lines on standard output,
the last of which is `{"name", "ok", "results": [{"metric", "value", "unit", "peer", "peer_value", "ratio", "goal", "ok"}], "machine",
"commit", "date"}`; the same line is appended to `bench/results/NAME.jsonl`. A ratio is the median of the ratios of interleaved pairs, not
a ratio of medians, because the machine's mood moves both sides of a pair. A figure from another machine is never a peer.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from rkfleet.clock import Clock, format_time

__all__ = ["Goal", "Result", "finish", "interleave", "result"]

RESULTS: Final = Path(__file__).parent / "results"
REPOSITORY: Final = Path(__file__).parent.parent
SIGNIFICANT_DIGITS: Final = 4  # More would claim a precision that no shared machine has.


class Goal(msgspec.Struct, frozen=True):
    """What a result must keep: its value or its ratio at least, or at most, a limit."""

    of: Literal["value", "ratio"]
    sign: Literal[">=", "<="]
    limit: float

    def __str__(self) -> str:
        """Return for example `ratio >= 0.95`."""
        return f"{self.of} {self.sign} {self.limit:g}"

    def holds(self, value: float, ratio: float | None) -> bool:
        """Return whether it is kept; a ratio without a peer is not."""
        measured = value if self.of == "value" else ratio
        if measured is None:
            return False
        return measured >= self.limit if self.sign == ">=" else measured <= self.limit


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a report.

    Attributes:
        metric: What was measured.
        value: Ours.
        unit: Of both values.
        peer: What was measured beside it; empty without one.
        ratio: Ours by the peer's, median over the pairs.
        goal: What must hold, as text; None where the figure is only told.
        ok: Whether it holds.
    """

    metric: str
    value: float
    unit: str
    peer: str = ""
    peer_value: float | None = None
    ratio: float | None = None
    goal: str | None = None
    ok: bool = True


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a benchmark says at its end."""

    name: str
    ok: bool
    results: Sequence[Result]
    machine: str
    commit: str
    date: str


def interleave(rounds: int, *sides: Callable[[], float]) -> list[list[float]]:
    """Call the sides in turn, `rounds` times, and return what each measured; every second round runs backwards, so none is always first."""
    measured: list[list[float]] = [[] for _ in sides]
    for round_ in range(rounds):
        order = range(len(sides)) if round_ % 2 == 0 else reversed(range(len(sides)))
        for side in order:
            measured[side].append(sides[side]())
    return measured


def result(
    metric: str, unit: str, ours: Sequence[float], *, peer: str = "", theirs: Sequence[float] = (), goal: Goal | None = None
) -> Result:
    """Return the medians of what was measured, and the median of the ratios of its pairs.

    Args:
        metric: What was measured.
        unit: Of all values.
        ours: Our values, one per round.
        peer: What was measured beside it.
        theirs: The peer's values of the same rounds.
        goal: What must hold.
    """
    value = statistics.median(ours)
    ratio = statistics.median(our / their for our, their in zip(ours, theirs, strict=True)) if theirs else None
    return Result(
        metric=metric,
        value=_rounded(value),
        unit=unit,
        peer=peer,
        peer_value=_rounded(statistics.median(theirs)) if theirs else None,
        ratio=None if ratio is None else _rounded(ratio),
        goal=None if goal is None else str(goal),
        ok=goal is None or goal.holds(value, ratio),
    )


def finish(name: str, results: Sequence[Result], clock: Clock) -> int:
    """Print the report, keep its line, and return the exit status: 0 if every goal is kept."""
    report = Report(
        name=name,
        ok=all(one.ok for one in results),
        results=results,
        machine=machine(),
        commit=commit(),
        date=format_time(clock.now()),
    )
    for one in results:
        beside = f"  {one.peer}: {one.peer_value:g}, ratio {one.ratio:g}" if one.peer_value is not None and one.ratio is not None else ""
        goal = f"  goal {one.goal}: {'kept' if one.ok else 'MISSED'}" if one.goal else ""
        print(f"{one.metric}: {one.value:g} {one.unit}{beside}{goal}")
    line = msgspec.json.encode(report).decode()
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as kept:
        kept.write(line + "\n")
    print(line, flush=True)
    return 0 if report.ok else 1


def machine() -> str:
    """Return cores, processor, memory, kernel and Python, as one line without names of this host."""
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    processor = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    python = platform.python_version()
    return f"{os.cpu_count()} x {processor}, {memory_bytes / (1 << 30):.0f} GiB, Linux {platform.release()}, Python {python}"


def commit() -> str:
    """Return the commit, with `-dirty` when the tree differs from it; `unknown` outside of a repository."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
