"""Flags that several commands share, and how a command finds its cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from rkfleet.client import ApiClient

__all__ = ["AllNamespaces", "Format", "Kubeconfig", "Namespace", "Output", "with_client"]

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


def with_client(kubeconfig: Path | None, work: Callable[[ApiClient], Awaitable[T]]) -> T:
    """Run `work` with a client of the chosen cluster and return what it returns."""
    import asyncio

    from rkfleet.client import ApiClient, find_kubeconfig, load_cluster
    from rkfleet.clock import SystemClock

    async def body() -> T:
        async with ApiClient(load_cluster(find_kubeconfig(kubeconfig)), SystemClock()) as client:
            return await work(client)

    return asyncio.run(body())
