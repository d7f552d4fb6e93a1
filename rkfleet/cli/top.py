"""`rkfleet top`: how full boards are, and how fast replicas answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

import typer

from rkfleet.cli.options import AllNamespaces, Format, Kubeconfig, Namespace, Output, Watch, with_client
from rkfleet.errors import BadRequest

if TYPE_CHECKING:
    from pathlib import Path

    import msgspec

    from rkfleet.cli import live
    from rkfleet.client import ApiClient
    from rkfleet.world import World

    Reader = Callable[[World, ApiClient], tuple[list[msgspec.Struct], dict[str, live.Row]]]

__all__ = ["app"]

app = typer.Typer(help="Load and speed, as the boards last reported them.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Load and speed, as the boards last reported them."""


@app.command("boards")
def boards(*, output: Output = Format.table, watch: Watch = False, kubeconfig: Kubeconfig = None) -> None:
    """Show boards: memory reserved of allocatable, replicas that serve of those placed, tokens/s of them all, number of the session.

    Tokens/s is the median of recent requests on the board, at most 60 seconds old while requests come; figures of a simulated board are
    simulated.
    """
    from rkfleet.cli import live, usage

    def read(world: World, _client: ApiClient) -> tuple[list[msgspec.Struct], dict[str, live.Row]]:
        found = usage.boards(world)
        return [*found], {one.name: live.Row(usage.board_cells(one)) for one in found}

    _show(usage.BOARD_HEADS, read, output, watch=watch, kubeconfig=kubeconfig)


@app.command("replicas")
def replicas(
    *,
    namespace: Namespace = "",
    all_namespaces: AllNamespaces = False,
    output: Output = Format.table,
    watch: Watch = False,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show replicas: board, variant, time to first token, tokens/s, restarts of the worker.

    Times are medians of recent requests as the board measured them, TTFT from arrival at the board with its queue, at most 60 seconds old
    while requests come; figures of a simulated board are simulated.
    """
    from rkfleet.cli import live, usage

    def read(world: World, client: ApiClient) -> tuple[list[msgspec.Struct], dict[str, live.Row]]:
        found = usage.replicas(world, "" if all_namespaces else namespace or client.cluster.namespace)
        first = [((one.namespace,) if all_namespaces else ()) for one in found]
        rows = {
            f"{one.namespace}/{one.name}": live.Row((*space, *usage.replica_cells(one))) for space, one in zip(first, found, strict=True)
        }
        return [*found], rows

    heads = ("NAMESPACE", *usage.REPLICA_HEADS) if all_namespaces else usage.REPLICA_HEADS
    _show(heads, read, output, watch=watch, kubeconfig=kubeconfig)


def _show(heads: tuple[str, ...], read: Reader, output: Format, *, watch: bool, kubeconfig: Path | None) -> None:
    from rkfleet.cli import live, render
    from rkfleet.cli.following import following, look
    from rkfleet.clock import SystemClock

    clock = SystemClock()
    if watch:
        if output is not Format.table:
            raise BadRequest(f"--watch shows a table, not --output {output}")

        table = live.Table()

        async def updates(client: ApiClient) -> AsyncGenerator[live.Update]:
            async with following(client, trouble=table.outage) as found:
                while True:
                    await found.changed()
                    yield live.Update(read(found.world(clock), client)[1], heads)
                    await clock.sleep(live.COALESCE_SECONDS)

        live.watch(kubeconfig, updates, table)
        return

    async def work(client: ApiClient) -> tuple[list[msgspec.Struct], dict[str, live.Row]]:
        return read((await look(client)).world(clock), client)

    values, rows = with_client(kubeconfig, work)
    if output is Format.table:
        render.print_rows(heads, [row.cells for row in rows.values()])
        return
    import msgspec

    render.print_object([msgspec.to_builtins(one) for one in values], output)
