"""Flags that several commands share, and how a command finds its cluster."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from rkfleet.client import ApiClient

__all__ = ["AllNamespaces", "Format", "Kubeconfig", "Namespace", "Output", "Watch", "parse_seconds", "timeout_option", "with_client"]

T = TypeVar("T")


class Format(StrEnum):
    """How a command prints objects."""

    table = "table"
    json = "json"
    yaml = "yaml"


Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        "--kubeconfig", help="Cluster to use; default $RKFLEET_KUBECONFIG, $KUBECONFIG, ~/.rkfleet/kubeconfig.", show_default=False
    ),
]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Namespace; default that of the kubeconfig.", show_default=False)]
AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", "-A", help="All namespaces.")]
Output = Annotated[Format, typer.Option("--output", "-o", help="Output format.")]

Watch = Annotated[bool, typer.Option("--watch", "-w", help="Go on: a live table on a terminal, a line for each change when piped.")]


def parse_seconds(text: str | float) -> float:
    """Read a duration: `90`, `30s`, `5m`, `1h` (as kubectl writes them).

    Raises:
        typer.BadParameter: It is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(text))
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a duration such as 90, 30s, 5m or 1h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def timeout_option(help_text: str) -> Any:
    """Return `--timeout`, a duration."""
    return typer.Option("--timeout", metavar="DURATION", parser=parse_seconds, help=f"{help_text} Seconds, or 30s, 5m, 1h.")


def with_client(kubeconfig: Path | None, work: Callable[[ApiClient], Awaitable[T]]) -> T:
    """Run `work` with a client of the chosen cluster and return what it returns; of errors that come together the first is raised."""
    import asyncio

    from rkfleet.client import ApiClient, find_kubeconfig, load_cluster
    from rkfleet.clock import SystemClock

    async def body() -> T:
        async with ApiClient(load_cluster(find_kubeconfig(kubeconfig)), SystemClock()) as client:
            return await work(client)

    try:
        return asyncio.run(body())
    except BaseExceptionGroup as group:  # Of a TaskGroup, whose own block also raises in one.
        raise _first(group) from group


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
