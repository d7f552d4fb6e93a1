"""Bars for long work, on a terminal's standard error; nothing when it is piped.

In: calls `(what, done, of)` of the work below. Out: a bar for each `what`. Used by commands that run a model over a text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["bars"]


@contextlib.contextmanager
def bars(title: str = "") -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that is told what is done, how much of it, and of how much; a new `what` begins a new bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(f"{title} {what}".strip(), total=of)
            progress.update(tasks[what], completed=done, total=of)

        yield tell
