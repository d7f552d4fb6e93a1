"""`rkfleet board`: boards of the fleet."""

from __future__ import annotations

from typing import Annotated

import typer

from rkfleet.cli import objects
from rkfleet.cli.options import Format, Kubeconfig, Output

__all__ = ["app"]

app = typer.Typer(help="Boards of the fleet.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Boards of the fleet."""


@app.command("list")
def list_boards(
    *,
    selector: Annotated[str, typer.Option("--selector", "-l", help="Label selector, for example rkfleet.dev/soc=rk3588.")] = "",
    wide: Annotated[bool, typer.Option("--wide", help="All columns.")] = False,
    output: Output = Format.table,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show every board: what it is, whether it is in session, what it has."""
    objects.get("boards", selector=selector, wide=wide, output=output, kubeconfig=kubeconfig)
