"""The controller's program, with every turn of its event loop timed by the CPU clock of its thread.

`python -m bench._timed_controller ...` takes the arguments of `python -m controller`. A turn that computes for longer than `TOLD_SECONDS`
is a line in `turns` beside the data directory: milliseconds with a decimal point. CPU time and not wall time, because a machine that gives
the core to somebody else is not what holds the loop.
"""

from __future__ import annotations

import asyncio
import runpy
import sys
import time
from pathlib import Path
from typing import Any, Final

__all__ = ["TURNS", "slow_turns_ms"]

TOLD_SECONDS: Final = 0.002
TURNS: Final = "turns"


def slow_turns_ms(data_dir: Path) -> list[float]:
    """Return how long each turn took that took longer than `TOLD_SECONDS`, in milliseconds, in order."""
    return [float(line) for line in (data_dir.parent / TURNS).read_text().splitlines()]


def main() -> None:
    told = (Path(sys.argv[sys.argv.index("--data-dir") + 1]).parent / TURNS).open("w", buffering=1)
    loop_class: Any = asyncio.SelectorEventLoop
    turn = loop_class._run_once  # noqa: SLF001 - a turn of the loop has no public name

    def timed(loop: Any) -> None:
        started = time.thread_time()
        turn(loop)
        seconds = time.thread_time() - started
        if seconds > TOLD_SECONDS:
            told.write(f"{1000 * seconds:.2f}\n")

    loop_class._run_once = timed  # noqa: SLF001
    sys.argv[0] = "controller"
    runpy.run_module("controller", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
