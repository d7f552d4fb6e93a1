"""What `rkfleet --help` costs: CPU seconds, beside importing the two libraries of the command line, in the same run.

In: nothing. Out: the report of `bench/report.py`. Run by `make bench-cli`. CPU and not wall time, because a command line shares its
machine with what it starts; user and system time of the child, as the kernel counts them at its end.

A pair is `rkfleet --help` and `python -c "import typer, rich.console"`, in turn. Both import from compiled files: one run of each before
the first pair is not counted. The help text is checked in every run.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.report import Goal, finish, interleave, result
from rkfleet.clock import SystemClock

ROUNDS: Final = 15  # Fifteen pairs take ten seconds; their median moves by a few hundredths between runs.
HELP_SECONDS_MAX: Final = 0.4
WIDTH: Final = {**os.environ, "COLUMNS": "100", "TERM": "dumb"}

COMMAND: Final = (str(Path(sys.executable).with_name("rkfleet")), "--help")
LIBRARIES: Final = (sys.executable, "-c", "import typer, rich.console")


def cpu_seconds(command: Sequence[str], expected: bytes = b"") -> float:
    """Run a command to its end and return its user and system time; it must succeed and say what is expected."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=WIDTH, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert expected in done.stdout, done.stdout.decode(errors="replace")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Measure, print, keep; return 0 if the goal is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="pairs to measure (default %(default)s)")
    rounds = parser.parse_args().rounds

    def ours() -> float:
        return cpu_seconds(COMMAND, b"join-token")

    def theirs() -> float:
        return cpu_seconds(LIBRARIES)

    ours(), theirs()
    helps, libraries = interleave(rounds, ours, theirs)
    one = result(
        "CPU of rkfleet --help",
        "s",
        helps,
        peer="importing typer and rich.console",
        theirs=libraries,
        goal=Goal("value", "<=", HELP_SECONDS_MAX),
    )
    return finish("cli", [one], SystemClock())


if __name__ == "__main__":
    sys.exit(main())
