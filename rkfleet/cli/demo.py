"""`rkfleet demo`: from manifests to tokens on seven boards, every step verified.

It fetches a small real model, starts a whole fleet (a CPU board that runs it, six simulated boards), pushes models, applies
`manifests/demo/`, streams an answer, compares the simulated boards' speeds with the vendor's table, rolls a second revision out under load,
loses a board under load, compares the metrics with what it sent, and stops everything. A step that cannot be verified ends the demo with
status 1 and its name. `--break STEP` spoils a step, to show that its check can fail. On a terminal all of it is one live screen.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rkfleet.cli.step import Step

__all__ = ["demo"]


def demo(
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the fleet keeps its data; default a temporary folder.", show_default=False)
    ] = None,
    manifests: Annotated[Path | None, typer.Option(help="Manifests to apply; default those of the demo.", show_default=False)] = None,
    spoil: Annotated[
        Step | None, typer.Option("--break", help="Spoil this step; the demo must then fail in it.", show_default=False)
    ] = None,
) -> None:
    """Show the whole way on this machine: a real model on the CPU, six simulated boards; exit 0 only if each step was verified."""
    import asyncio
    import tempfile

    from rkfleet.cli.demo_stage import StepFailed
    from rkfleet.cli.demo_steps import Demo
    from rkfleet.cli.screen import open_screen
    from rkfleet.clock import SystemClock

    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="rkfleet-demo-") as scratch:
        try:
            with open_screen(clock) as screen:
                show = Demo(
                    data_dir or Path(scratch) / "fleet",
                    Path(scratch),
                    manifests or Path("manifests/demo"),
                    spoil=spoil,
                    clock=clock,
                    screen=screen,
                )
                asyncio.run(show.run())
        except StepFailed as failure:
            print(f"demo failed in step {failure.step}: {failure.why}", file=sys.stderr)
            sys.exit(1)
