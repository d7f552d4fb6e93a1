"""What `convert` and `convert-onnx` have in common: how a conversion that is under way is told, and how it is stopped.

In: stages, bars and lines of the vendor's toolkit. Out: a live line with its bar on a terminal's standard error, plain lines where that is
piped; a clean end on Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from rich.progress import Progress, TaskID

    from toolkit.conversion.child import Listener
    from toolkit.conversion.convert import Plan, Provenance

__all__ = ["listening", "print_made", "print_plan", "stoppable"]

T = TypeVar("T")
STOPPED: int = 130  # As a shell has it for a program that Ctrl-C ended.


def stoppable(work: Coroutine[Any, Any, T]) -> T:
    """Run work to its end; on Ctrl-C or SIGTERM its children are killed, its files removed, and the status is 130."""
    import asyncio

    from rkfleet.process import run_until_stopped

    results: list[T] = []

    async def keep() -> None:
        results.append(await work)

    asyncio.run(run_until_stopped(keep()))
    if not results:
        print("stopped; nothing was written but the recipe", file=sys.stderr)
        raise typer.Exit(STOPPED)
    return results[0]


@contextlib.contextmanager
def listening(verbose: bool) -> Iterator[Listener]:
    """Give someone to tell how it goes.

    Args:
        verbose: Print every line of the vendor's toolkit too.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(verbose)
        return
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Live(progress, verbose)


class _Lines:
    """Plain lines on standard error."""

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose
        self._whole = ""

    def stage(self, name: str) -> None:
        """Say that a stage begins."""
        print(f"stage {name}", file=sys.stderr, flush=True)

    def progress(self, what: str, done: int, of: int) -> None:
        """Say that a bar is full, once."""
        if done >= of and what != self._whole:
            self._whole = what
            print(f"{what}: {done}/{of}", file=sys.stderr, flush=True)

    def log(self, line: str) -> None:
        """Print a line of the vendor's."""
        if self._verbose:
            print(f"  | {line}", file=sys.stderr, flush=True)


class _Live:
    """One line that lives, with the bar of the stage."""

    def __init__(self, progress: Progress, verbose: bool) -> None:
        self._progress = progress
        self._verbose = verbose
        self._task: TaskID | None = None
        self._stage = ""

    def stage(self, name: str) -> None:
        """Begin a line for a stage."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._stage = name
        self._task = self._progress.add_task(name, total=None)

    def progress(self, what: str, done: int, of: int) -> None:
        """Move its bar."""
        if self._task is not None:
            self._progress.update(self._task, description=f"{self._stage}: {what}", completed=done, total=of)

    def log(self, line: str) -> None:
        """Print a line of the vendor's above."""
        if self._verbose:
            self._progress.console.print(f"  | {line}", markup=False, highlight=False)


def print_plan(plan: Plan, notes: tuple[str, ...], interpreter: str) -> None:
    """Print what would be called."""
    print(f"{plan.maker} in {interpreter} would be called so:")
    for step in plan.job["steps"]:
        words = ", ".join(f"{name}={value!r}" for name, value in step["arguments"].items())
        if "inputs" in step:
            words = ", ".join([f"inputs={step['inputs']!r}", *([words] if words else [])])
        print(f"  {step['call']}({words})")
    print(f"and would leave {', '.join(plan.made)}; nothing was started")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def print_made(output: Path, provenance: Provenance) -> None:
    """Print what was made."""
    for one in provenance.artifacts:
        print(f"{output.with_name(one.path)}: {one.size_bytes} bytes, begins with {bytes.fromhex(one.first_bytes)[:8].hex(' ')}")
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in provenance.stage_seconds.items())
    print(f"{provenance.maker} took {provenance.seconds:.1f} s ({stages})")
    print(f"recipe {provenance.recipe}")
