"""The `rkfleet` command: one tree of commands, one place where errors become sentences and exit statuses.

Command modules import what they need inside the command, so that `--help` stays fast.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from rkfleet import __version__
from rkfleet.cli import (
    apply,
    bench,
    board,
    chat,
    completion,
    demo,
    events,
    explain,
    gateway_keys,
    join,
    logs,
    model,
    objects,
    programs,
    rollout,
    scale,
    token,
    top,
    up,
    wait,
)
from rkfleet.errors import FleetError, Invalid

__all__ = ["app", "main"]

app = typer.Typer(
    name="rkfleet",
    help="Run language models on fleets of Rockchip boards (RK3588, RK3576), the way Kubernetes runs containers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # Panels around help would cost more CPU than all the rest of --help (bench/cli.py); tables are rich's.
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

app.command()(up.up)
app.command()(demo.demo)
app.command()(apply.apply)
app.command()(objects.get)
app.command()(objects.describe)
app.command()(objects.delete)
app.command()(explain.explain)
app.command()(events.events)
app.command()(wait.wait)
app.command()(scale.scale)
app.command()(chat.chat)
app.command()(logs.logs)
app.command("kubeconfig")(join.kubeconfig)
app.command()(completion.completion)
app.add_typer(rollout.app, name="rollout")
app.add_typer(board.app, name="board")
app.add_typer(top.app, name="top")
app.add_typer(model.app, name="model")
app.add_typer(bench.app, name="bench")
app.add_typer(join.app, name="join-token")
app.add_typer(token.app, name="token")
app.add_typer(programs.simulated_runtime_app(), name="simulated-runtime")
for _command in (programs.simulate, programs.doctor, programs.toolkit):
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)(_command)
app.add_typer(gateway_keys.app, name="gateway-keys")
for _name in programs.PROGRAMS:
    app.add_typer(programs.program_app(_name), name=_name)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"rkfleet {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Run language models on fleets of Rockchip boards (RK3588, RK3576), the way Kubernetes runs containers."""


def main() -> None:
    """Run the command line; every failure is one sentence on standard error and its exit status."""
    try:
        app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output left; nothing to add
        sys.exit(1)
    except FleetError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if isinstance(error, Invalid):
            for cause in error.causes:
                line = f"{cause.field}: {cause.message}"
                if line not in error.message:
                    print(f"  {line}", file=sys.stderr)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
