"""`rkfleet board`: boards of the fleet: what there is, and taking one out of service and back."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from rkfleet.cli import completion, objects
from rkfleet.cli.options import Format, Kubeconfig, Output, Watch, timeout_option, with_client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from rkfleet.client import ApiClient
    from rkfleet.explanation import Explanation

__all__ = ["Clocks", "app"]


class Clocks(StrEnum):
    """What `--clocks` takes: the values of `Board.spec.tuning.clocks`, as people type them."""

    fixed = "fixed"
    unmanaged = "unmanaged"


app = typer.Typer(help="Boards of the fleet.", no_args_is_help=True)

Names = Annotated[list[str], typer.Argument(help="Names of Boards.", metavar="NAME...", autocompletion=completion.boards)]


@app.callback()
def _group() -> None:
    """Boards of the fleet."""


@app.command("list")
def list_boards(
    *,
    selector: Annotated[str, typer.Option("--selector", "-l", help="Label selector, for example rkfleet.dev/soc=rk3588.")] = "",
    wide: Annotated[bool, typer.Option("--wide", help="All columns.")] = False,
    output: Output = Format.table,
    watch: Watch = False,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show every board: what it is, whether it is in session, what it has."""
    objects.get("boards", selector=selector, wide=wide, output=output, watch=watch, kubeconfig=kubeconfig)


@app.command("cordon")
def cordon(names: Names, *, kubeconfig: Kubeconfig = None) -> None:
    """Place nothing new on boards; what runs there stays."""
    from rkfleet.cli import drain

    _each(kubeconfig, names, lambda client, name: drain.cordon(client, name, drain=False), "cordoned")


@app.command("uncordon")
def uncordon(names: Names, *, kubeconfig: Kubeconfig = None) -> None:
    """Take boards back into service; ends a drain too."""
    from rkfleet.cli import drain

    _each(kubeconfig, names, drain.uncordon, "uncordoned")


@app.command("drain")
def drain_boards(
    names: Names,
    *,
    timeout_seconds: Annotated[float, timeout_option("How long to wait; 0 waits for ever.")] = 600.0,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Ask for it and end; `explain board/NAME` says how far it is.")] = False,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Empty boards for maintenance: cordon them, have their replicas moved elsewhere, and wait until nothing runs there."""
    from rkfleet.cli import drain, live
    from rkfleet.clock import SystemClock

    _each(kubeconfig, names, lambda client, name: drain.cordon(client, name, drain=True), "cordoned")
    if no_wait:
        return

    async def work(client: ApiClient) -> None:
        await drain.wait_until_empty(client, SystemClock(), names, timeout_seconds, say=_say, trouble=live.Outage(aloud=True))

    with_client(kubeconfig, work)


@app.command("samples")
def samples(
    name: Annotated[str, typer.Argument(help="Name of a Board.", autocompletion=completion.boards)],
    *,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print what a board measured while it was away, as OpenMetrics with times, for `promtool tsdb create-blocks-from openmetrics`."""

    async def work(client: ApiClient) -> None:
        async for line in client.stream_text(f"/samples/v1alpha1/boards/{name}"):
            print(line)

    with_client(kubeconfig, work)


@app.command("tune")
def tune(
    names: Names,
    *,
    clocks: Annotated[
        Clocks,
        typer.Option("--clocks", help="fixed: as the vendor's fix_freq script; unmanaged: what the agent changed is undone."),
    ],
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Ask for it and end; ClocksPinned of the board says what came of it.")] = False,
    timeout_seconds: Annotated[float, timeout_option("How long to wait for the boards; 0 waits for ever.")] = 60.0,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Fix the clocks of boards as the vendor's benchmarks have them, or leave them to the kernel again."""
    from rkfleet.cli import live, tuning
    from rkfleet.clock import SystemClock

    async def work(client: ApiClient) -> None:
        for name in names:
            new = await tuning.want_clocks(client, name, clocks)
            print(f"{_shown(name)} {'' if new else 'already '}has clocks {clocks.value}", flush=True)
        if not no_wait:
            say = lambda name, sentence: print(f"{_shown(name)} {sentence}", flush=True)  # noqa: E731 (one use)
            await tuning.wait_for_clocks(client, SystemClock(), names, clocks, timeout_seconds, say=say, trouble=live.Outage(aloud=True))

    with_client(kubeconfig, work)


def _each(kubeconfig: Path | None, names: list[str], act: Callable[[ApiClient, str], Awaitable[bool]], word: str) -> None:
    """Do it to each board and say so, as kubectl does; what is so already is no fault."""

    async def work(client: ApiClient) -> None:
        for name in names:
            new = await act(client, name)
            print(f"{_shown(name)} {'' if new else 'already '}{word}", flush=True)

    with_client(kubeconfig, work)


def _say(name: str, waits_for: Explanation | None) -> None:
    if waits_for is None:
        print(f"{_shown(name)} drained", flush=True)
        return
    print(f"{_shown(name)} waits: {waits_for.sentence}", flush=True)
    if waits_for.verdict == "NeedsHelp":
        print(f"  try: {waits_for.command}", flush=True)


def _shown(name: str) -> str:
    return f"board.rkfleet.dev/{name}"
