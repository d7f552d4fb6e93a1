"""Tables that go on: one screen that is redrawn on a terminal, a line for each change when piped, as `kubectl get -w`.

In: `Update`s, each the whole table or some of its rows. Out: what a person or a program reads, until it is interrupted. Every `--watch`
uses it; `draw` alone makes a frame for whoever has a screen of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import typer

from rkfleet.cli import render
from rkfleet.cli.options import with_client
from rkfleet.clock import Clock, SystemClock, human_duration, parse_time
from rkfleet.errors import FleetError

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from rkfleet.client import ApiClient

__all__ = ["COALESCE_SECONDS", "Outage", "Row", "Table", "Update", "draw", "show", "watch"]

COALESCE_SECONDS: Final = 0.25  # Between two frames: people do not read faster, and a frame of many rows costs milliseconds.
AGES_SECONDS: Final = 1.0  # Ages are drawn anew this often although nothing else changes.
LINES_BESIDE: Final = 4  # The headings, up to two notes below, and the line on which the cursor stays.
INTERRUPTED: Final = 130  # Exit status of a program that SIGINT ended, as shells tell it.


class Row(msgspec.Struct, frozen=True):
    """One row.

    Attributes:
        cells: What is shown.
        version: Changes whenever the row is worth a new line; by default the cells say so.
        since: Time that the age column counts from; empty leaves the cell as it is.
    """

    cells: tuple[str, ...]
    version: str = ""
    since: str = ""


class Update(msgspec.Struct, frozen=True):
    """News of a table.

    Attributes:
        rows: By a key that stays with the object.
        heads: Column headings; empty keeps those of the update before.
        whole: Whether `rows` are all rows there are.
        gone: Keys that are no more.
    """

    rows: Mapping[str, Row]
    heads: tuple[str, ...] = ()
    whole: bool = True
    gone: tuple[str, ...] = ()


class Outage:
    """Whether the API tells nothing new; what is shown must not look current when it is not.

    Args:
        aloud: Say it on standard error when it begins and when it ends, for where no screen shows the `note`.
    """

    def __init__(self, *, aloud: bool) -> None:
        self._aloud: Final = aloud
        self.note = ""

    def __call__(self, error: FleetError | None) -> None:
        """Be told why nothing comes, or that something does again."""
        before, self.note = self.note, f"{error.message}; shown is what was known last" if error else ""
        if self._aloud and bool(self.note) != bool(before):
            print(self.note or "connected again", file=sys.stderr, flush=True)


class Table:
    """A table as all updates so far make it.

    Args:
        aged: Heading of the column that holds ages.
        newest_last: What matters is at the end: a screen that is too small shows the last rows.
    """

    def __init__(self, aged: str = "AGE", *, newest_last: bool = False) -> None:
        self.newest_last: Final = newest_last
        self.outage: Final = Outage(aloud=not sys.stdout.isatty())
        self.heads: tuple[str, ...] = ()
        self.rows: dict[str, Row] = {}
        self._aged: Final = aged

    def take(self, update: Update) -> list[Row]:
        """Put an update in and return the rows worth a line: new, changed, and for the last time those that are gone."""
        self.heads = update.heads or self.heads
        gone = [key for key in self.rows if key not in update.rows] if update.whole else [key for key in update.gone if key in self.rows]
        news = [self.rows[key] for key in gone]
        for key, row in update.rows.items():
            before = self.rows.get(key)
            if before is None or (row.version or row.cells) != (before.version or before.cells):
                news.append(row)
        kept = {} if update.whole else {key: row for key, row in self.rows.items() if key not in gone}
        self.rows = {**kept, **update.rows}
        return news

    def cells(self, row: Row, clock: Clock) -> tuple[str, ...]:
        """Return what is shown of a row now."""
        if not row.since or self._aged not in self.heads:
            return row.cells
        index = self.heads.index(self._aged)
        age = human_duration((clock.now() - parse_time(row.since)).total_seconds())
        return (*row.cells[:index], age, *row.cells[index + 1 :])


def draw(table: Table, clock: Clock, lines_max: int) -> RichTable:
    """Return a frame of at most so many rows: each as it is now, with colours."""
    rows = list(table.rows.values())
    kept = rows[-lines_max:] if table.newest_last else rows[:lines_max]
    frame = render.rich_table(table.heads, [table.cells(row, clock) for row in kept])
    hidden = f"{len(rows) - len(kept)} more rows do not fit on this screen" if len(kept) < len(rows) else ""
    frame.caption = "\n".join(filter(None, (hidden, table.outage.note))) or None
    return frame


def watch(kubeconfig: Path | None, updates: Callable[[ApiClient], AsyncGenerator[Update]], table: Table) -> None:
    """Show updates from the chosen cluster until Ctrl-C."""
    clock = SystemClock()

    async def work(client: ApiClient) -> None:
        await show(updates(client), clock, table)

    try:
        with_client(kubeconfig, work)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


async def show(updates: AsyncGenerator[Update], clock: Clock, table: Table) -> None:
    """Show updates until they end: redrawn on a terminal, appended otherwise."""
    async with contextlib.aclosing(updates):
        if sys.stdout.isatty():
            await _redraw(updates, clock, table)
        else:
            await _append(updates, clock, table)


async def _append(updates: AsyncGenerator[Update], clock: Clock, table: Table) -> None:
    widths: list[int] = []
    async for update in updates:
        lines = [table.cells(row, clock) for row in table.take(update)]
        if lines and not widths:
            widths = [0] * len(table.heads)
            lines.insert(0, table.heads)
        for line in lines:
            widths = [max(width, len(cell)) for width, cell in zip(widths, line, strict=True)]
        for line in lines:
            print(render.plain_line(line, widths), flush=True)


async def _redraw(updates: AsyncGenerator[Update], clock: Clock, table: Table) -> None:
    from rich.live import Live

    news = asyncio.Event()

    async def collect() -> None:
        async for update in updates:
            table.take(update)
            news.set()

    with Live(auto_refresh=False) as screen:

        def redraw() -> None:
            screen.update(draw(table, clock, max(screen.console.height - LINES_BESIDE, 1)), refresh=True)

        async with asyncio.TaskGroup() as group:
            collecting = group.create_task(collect())
            while not collecting.done():
                redraw()
                await clock.sleep(COALESCE_SECONDS)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(AGES_SECONDS):
                        await news.wait()
                news.clear()
            redraw()
