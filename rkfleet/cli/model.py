"""`rkfleet model`: models of the fleet."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rkfleet.cli import objects
from rkfleet.cli.options import AllNamespaces, Format, Kubeconfig, Namespace, Output, Watch, with_client

if TYPE_CHECKING:
    from rkfleet.cli.push import Outcome, Step
    from rkfleet.client import ApiClient

__all__ = ["app"]

app = typer.Typer(help="Models of the fleet.", no_args_is_help=True)


@app.command("list")
def list_models(
    *,
    namespace: Namespace = "",
    all_namespaces: AllNamespaces = False,
    wide: Annotated[bool, typer.Option("--wide", help="All columns.")] = False,
    output: Output = Format.table,
    watch: Watch = False,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show every model: its variants, and whether their artifacts are here."""
    objects.get("models", namespace=namespace, all_namespaces=all_namespaces, wide=wide, output=output, watch=watch, kubeconfig=kubeconfig)


@app.command("push")
def push_model(
    files: Annotated[list[Path], typer.Argument(help="Model files (.gguf, .rkllm, .rknn); one for each --variant.", metavar="FILE...")],
    *,
    name: Annotated[str, typer.Option("--name", help="Name of the Model.")],
    variant: Annotated[
        list[str],
        typer.Option(
            "--variant",
            metavar="name=N,soc=S,dtype=D,runtime=R[,...]",
            help="The i-th belongs to the i-th FILE. soc: rk3588, rk3576 or any; runtime: rkllm, rknn or llamacpp. Also context=TOKENS, "
            "memory=QUANTITY (default: file + context + 256Mi), npuCores=N, runtimeVersion=>=1.1.0,<1.4, driverVersion=>=0.9.7, "
            "reference=MODEL, sdkVersion=V.",
        ),
    ],
    family: Annotated[str, typer.Option(help="Family of the architecture, for example qwen2.", show_default=False)] = "",
    parameters: Annotated[str, typer.Option(help="Number of parameters, for example 1.5B.", show_default=False)] = "",
    license: Annotated[str, typer.Option(help="SPDX identifier of the licence.", show_default=False)] = "",
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = None,
) -> None:
    """Send model files to the registry and create the Model; the same again is "unchanged"."""
    from rkfleet.cli.push import Order, push
    from rkfleet.cli.variants import parse_variant
    from rkfleet.clock import SystemClock

    if len(files) != len(variant):
        raise typer.BadParameter(f"{len(files)} files and {len(variant)} variants; each file needs its own", param_hint="--variant")
    variants = tuple(parse_variant(text) for text in variant)
    if len({one.name for one in variants}) != len(variants):
        raise typer.BadParameter("two variants have the same name", param_hint="--variant")

    async def work(api: ApiClient) -> Outcome:
        order = Order(
            name=name,
            namespace=namespace or api.cluster.namespace,
            files=tuple(files),
            variants=variants,
            family=family,
            parameters=parameters,
            license=license,
        )
        with _progress() as step:
            return await push(order, api, SystemClock(), step, lambda why: print(why, file=sys.stderr, flush=True))

    print(f"model.rkfleet.dev/{name} {with_client(kubeconfig, work)}")


@contextmanager
def _progress() -> Iterator[Step]:
    """Show bars on a terminal; for a pipe, nothing but the outcome."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        shown: dict[str, TaskID] = {}

        def step(what: str, file: str, done: int, size: int) -> None:
            title = f"{what} {file}"
            if title not in shown:
                shown[title] = bars.add_task(title, total=size)
            bars.update(shown[title], completed=done)

        yield step
