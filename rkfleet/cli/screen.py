"""Where the demo tells what it does: one live screen on a terminal, plain lines everywhere else.

In: steps, sentences and streamed text of the demo, what the API says about boards, replicas and deployments, and which board each token
that a client heard came from. Out: on a terminal the sentences scroll above a panel that shows the whole fleet and the tokens per second
that the demo's own clients hear; piped, one line per sentence, so that a log of the demo can be read and compared. `demo_steps.py` makes
one. It stands apart because what is verified must not depend on who looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from rkfleet import conditions
from rkfleet.cli import render
from rkfleet.cli.step import Step
from rkfleet.client import ApiClient, Followed
from rkfleet.clock import Clock
from rkfleet.kinds import Board, ModelDeployment, Replica

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.table import Table

__all__ = ["FleetView", "LiveScreen", "PlainScreen", "Screen", "TokenRates", "open_screen"]

RATE_SECONDS: Final = 2.0  # The window of tokens per second: long enough for the slowest board's steps, short enough to see a loss.
FRAMES_PER_SECOND: Final = 8  # A person sees it move; the panel costs a few milliseconds of the two cores that the fleet shares.
FOLLOWED: Final = (Board, Replica, ModelDeployment)


class Screen(Protocol):
    """What the demo needs of a screen."""

    @property
    def rates(self) -> TokenRates:
        """Tokens that clients hear, by board."""
        ...

    def begin(self, step: Step) -> None:
        """A step begins; the one before is verified."""
        ...

    def say(self, sentence: str) -> None:
        """Tell a sentence of the step."""
        ...

    def write(self, text: str) -> None:
        """Show a piece of a streamed answer; an empty piece ends its line."""
        ...

    def table(self, table: dict[str, Any]) -> None:
        """Show a Kubernetes `Table`."""
        ...

    def following(self, client: ApiClient) -> contextlib.AbstractAsyncContextManager[None]:
        """Show what the API says for as long as the block runs."""
        ...


class TokenRates:
    """Tokens per second that clients hear from each board, over the last `RATE_SECONDS`."""

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self._heard: Final[dict[str, deque[float]]] = {}

    def heard(self, board: str) -> None:
        """A client heard a token from this board now."""
        self._heard.setdefault(board, deque()).append(self._clock.monotonic())

    def of(self, board: str) -> float:
        """Return the rate of a board."""
        heard, now = self._heard.get(board, deque()), self._clock.monotonic()
        while heard and heard[0] < now - RATE_SECONDS:
            heard.popleft()
        return len(heard) / RATE_SECONDS


class FleetView:
    """Boards, replicas and deployments as the API last said."""

    def __init__(self) -> None:
        self._objects: Final[dict[str, dict[str, dict[str, Any]]]] = {kind.resource.name: {} for kind in FOLLOWED}

    def take(self, resource: str, step: Followed) -> None:
        """Take one step of a followed collection."""
        known = self._objects[resource]
        if step.type == "REPLACED":
            known.clear()
        for obj in step.items:
            if step.type == "DELETED":
                known.pop(obj["metadata"]["uid"], None)
            else:
                known[obj["metadata"]["uid"]] = obj

    def board_rows(self, rates: TokenRates) -> list[tuple[str, ...]]:
        """Return a row for each board: name, chip, status, what runs there, variant, tokens per second."""
        replicas = self._by_board()
        rows: list[tuple[str, ...]] = []
        for board in sorted(self._of(Board), key=_name):
            name, status = _name(board), board.get("status", {})
            there = sorted(replicas.get(name, ()), key=_name)
            simulated = " simulated" if status.get("simulated") else ""
            rate = rates.of(name)
            rows.append(
                (
                    name,
                    f"{status.get('soc', '')}{simulated}",
                    _reason(board),
                    ", ".join(f"{_name(one)} {_reason(one)}" for one in there) or "-",
                    ", ".join(one["spec"].get("variantName", "") for one in there),
                    f"{rate:.1f}{simulated}" if rate else "",
                )
            )
        return rows

    def deployment_rows(self) -> list[tuple[str, int, int, int, str]]:
        """Return for each deployment: name, wanted, updated and available replicas, status."""
        rows = []
        for one in sorted(self._of(ModelDeployment), key=_name):
            status = one.get("status", {})
            counts = (one["spec"].get("replicas", 1), status.get("updatedReplicas", 0), status.get("availableReplicas", 0))
            rows.append((_name(one), *counts, _reason(one)))
        return rows

    def _of(self, kind: type[Board | Replica | ModelDeployment]) -> Sequence[dict[str, Any]]:
        return tuple(self._objects[kind.resource.name].values())

    def _by_board(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for replica in self._of(Replica):
            found.setdefault(replica["spec"].get("boardName", ""), []).append(replica)
        return found


def _name(obj: dict[str, Any]) -> str:
    return str(obj["metadata"]["name"])


def _reason(obj: dict[str, Any]) -> str:
    said = obj.get("status", {}).get("conditions", ())
    return next((str(one["reason"]) for one in said if one["type"] == conditions.READY), "Pending")


class PlainScreen:
    """Lines, with the seconds since the start and the step."""

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self._started: Final = clock.monotonic()
        self._step = next(iter(Step))
        self.rates: Final = TokenRates(clock)

    def begin(self, step: Step) -> None:
        """Name the step from here on."""
        self._step = step

    def say(self, sentence: str) -> None:
        """Print a line."""
        print(f"{self._clock.monotonic() - self._started:5.1f}s {self._step:<8} {sentence}", flush=True)

    def write(self, text: str) -> None:
        """Print the piece as it is."""
        print(text or "\n", end="", flush=True)

    def table(self, table: dict[str, Any]) -> None:
        """Print the columns."""
        render.print_table(table)

    @contextlib.asynccontextmanager
    async def following(self, client: ApiClient) -> AsyncIterator[None]:
        """Follow nothing: a log has the sentences."""
        del client
        yield


class LiveScreen:
    """Sentences scroll; below them a panel shows the fleet as it is."""

    def __init__(self, clock: Clock, live: Live) -> None:
        self._clock: Final = clock
        self._started: Final = clock.monotonic()
        self._live: Final = live
        self._step = next(iter(Step))
        self._text = ""
        self._view: Final = FleetView()
        self.rates: Final = TokenRates(clock)

    def begin(self, step: Step) -> None:
        """Mark the step in the panel."""
        self._step = step

    def say(self, sentence: str) -> None:
        """Let a line scroll above the panel."""
        from rich.text import Text

        seconds = f"{self._clock.monotonic() - self._started:5.1f}s"
        self._live.console.print(Text.assemble((seconds, "dim"), " ", (f"{self._step:<8}", "cyan"), " ", sentence))

    def write(self, text: str) -> None:
        """Gather the line in the panel; print it when it is whole."""
        from rich.text import Text

        if text:
            self._text += text
        else:
            self._live.console.print(Text(self._text))
            self._text = ""

    def table(self, table: dict[str, Any]) -> None:
        """Nothing: the panel has it already."""

    @contextlib.asynccontextmanager
    async def following(self, client: ApiClient) -> AsyncIterator[None]:
        """Follow boards, replicas and deployments into the panel."""
        async with asyncio.TaskGroup() as tasks:
            follows = [tasks.create_task(self._follow(client, kind.resource.name)) for kind in FOLLOWED]
            try:
                yield
            finally:
                for follow in follows:
                    follow.cancel()

    async def _follow(self, client: ApiClient, resource: Any) -> None:
        async for step in client.follow(resource):
            self._view.take(resource, step)

    def __rich__(self) -> RenderableType:
        """Draw the panel; the live display asks for it several times a second."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        parts: list[RenderableType] = [_boards_table(self._view, self.rates), Text(), _deployments_table(self._view)]
        if self._text:
            parts += [Text(), Text(self._text)]
        return Panel(Group(*parts), title=_steps_line(self._step), title_align="left", border_style="dim")


def _steps_line(current: Step) -> Any:
    from rich.text import Text

    steps, line = list(Step), Text()
    for step in steps:
        done = steps.index(step) < steps.index(current)
        line.append(f"{'✓' if done else '●' if step is current else '·'}{step} ", "green" if done else "bold" if step is current else "dim")
    return line


def _boards_table(view: FleetView, rates: TokenRates) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for head in ("BOARD", "SOC", "STATUS", "REPLICAS", "VARIANT"):
        table.add_column(head, no_wrap=True, overflow="ellipsis")
    table.add_column("TOKENS/S", justify="right", no_wrap=True)
    for row in view.board_rows(rates):
        table.add_row(*(Text(cell, style=render.style_of(cell.rpartition(" ")[2])) for cell in row))
    return table


def _deployments_table(view: FleetView) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("DEPLOYMENT", "UPDATED", "AVAILABLE", "", "STATUS"):
        table.add_column(head, no_wrap=True)
    for name, wanted, updated, available, status in view.deployment_rows():
        bar = ProgressBar(total=max(wanted, 1), completed=min(available, wanted), width=24)
        table.add_row(name, f"{updated}/{wanted}", f"{available}/{wanted}", bar, Text(status, style=render.style_of(status)))
    return table


@contextlib.contextmanager
def open_screen(clock: Clock) -> Iterator[Screen]:
    """Give the screen that fits standard output: live on a terminal, else plain."""
    if not sys.stdout.isatty():
        yield PlainScreen(clock)
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), refresh_per_second=FRAMES_PER_SECOND, transient=False, redirect_stdout=False) as live:
        screen = LiveScreen(clock, live)
        live.update(screen)
        yield screen
