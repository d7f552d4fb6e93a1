"""`rkfleet model`: models of the fleet."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from rkfleet.cli import objects
from rkfleet.cli.options import AllNamespaces, Format, Kubeconfig, Namespace, Output, Watch, with_client

if TYPE_CHECKING:
    from rkfleet.cli.push import Order, Outcome, Step
    from rkfleet.client import ApiClient

__all__ = ["app", "progress"]

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
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Model files (.gguf, .rkllm, .rknn); one for each --variant.", metavar="FILE...", show_default=False),
    ] = None,
    *,
    name: Annotated[
        str, typer.Option("--name", help="Name of the Model; with --simulated default its name in lower case.", show_default=False)
    ] = "",
    variant: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            show_default=False,
            metavar="name=N,soc=S,dtype=D,runtime=R[,...]",
            help="The i-th belongs to the i-th FILE. soc: rk3588, rk3576 or any; runtime: rkllm, rknn or llamacpp. Also context=TOKENS, "
            "memory=QUANTITY (default: file + context + 256Mi), npuCores=N, runtimeVersion=>=1.1.0,<1.4, driverVersion=>=0.9.7, "
            "reference=MODEL, sdkVersion=V; and further files: adapter=FILE[@PERCENT], encoder=FILE, template=FILE, "
            "tokenizer=FILE, config=FILE, doc=FILE (each repeatable).",
        ),
    ] = None,
    simulated: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            show_default=False,
            help="Instead of files: placeholders for simulated boards, one variant per chip, from this model of `rkfleet bench table`.",
        ),
    ] = "",
    sdk: Annotated[
        str, typer.Option(help="With --simulated: release of the table's rows; default the newest that has some.", show_default=False)
    ] = "",
    family: Annotated[str, typer.Option(help="Family of the architecture, for example qwen2.", show_default=False)] = "",
    parameters: Annotated[str, typer.Option(help="Number of parameters, for example 1.5B.", show_default=False)] = "",
    license: Annotated[str, typer.Option(help="SPDX identifier of the licence.", show_default=False)] = "",
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = None,
) -> None:
    """Send model files to the registry and create the Model; the same again is "unchanged"."""
    import tempfile

    from rkfleet.cli.push import push
    from rkfleet.clock import SystemClock

    with tempfile.TemporaryDirectory(prefix="rkfleet-push-") as scratch:
        if simulated:
            if files or variant:
                raise typer.BadParameter("makes its own files and variants; leave FILE and --variant out", param_hint="--simulated")
            order = _simulated_order(simulated, sdk, name, Path(scratch))
        else:
            order = _order_of_files(files or [], variant or [], name)
            if sdk:
                raise typer.BadParameter("goes with --simulated only", param_hint="--sdk")
        facts = {"family": family, "parameters": parameters, "license": license}
        order = msgspec.structs.replace(order, **{field: value for field, value in facts.items() if value})

        async def work(api: ApiClient) -> Outcome:
            full = msgspec.structs.replace(order, namespace=namespace or api.cluster.namespace)
            with progress() as step:
                return await push(full, api, SystemClock(), step, lambda why: print(why, file=sys.stderr, flush=True))

        print(f"model.rkfleet.dev/{order.name} {with_client(kubeconfig, work)}")


def _order_of_files(files: list[Path], variant: list[str], name: str) -> Order:
    from rkfleet.cli.push import Order
    from rkfleet.cli.variants import parse_variant

    if not files:
        raise typer.BadParameter("name at least one FILE, or --simulated MODEL", param_hint="FILE...")
    if not name:
        raise typer.BadParameter("is needed: how the Model is called", param_hint="--name")
    if len(files) != len(variant):
        raise typer.BadParameter(f"{len(files)} files and {len(variant)} variants; each file needs its own", param_hint="--variant")
    variants = tuple(parse_variant(text) for text in variant)
    if len({one.name for one in variants}) != len(variants):
        raise typer.BadParameter("two variants have the same name", param_hint="--variant")
    return Order(name=name, files=tuple(files), variants=variants)


def _simulated_order(model: str, sdk: str, name: str, scratch: Path) -> Order:
    """Write the placeholders of a model and return what is to be pushed."""
    from rkfleet.benchmarks import load_table
    from rkfleet.cli.placeholders import family_of, object_name, parameters_of, plan_placeholders
    from rkfleet.cli.push import Order

    placeholders = plan_placeholders(load_table(), model, sdk)
    for one in placeholders:
        (scratch / one.file_name).write_bytes(one.body)
    proper = placeholders[0].words.fields["reference"]["model"]
    return Order(
        name=name or object_name(proper),
        files=tuple(scratch / one.file_name for one in placeholders),
        variants=tuple(one.words for one in placeholders),
        family=family_of(proper),
        parameters=parameters_of(proper),
    )


@contextmanager
def progress() -> Iterator[Step]:
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
