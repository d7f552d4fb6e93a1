"""`rkfleet demo`: from one manifest to tokens, every step verified.

It fetches a small real model, starts a whole fleet, pushes the model, applies `manifests/demo/`, streams an answer, rolls a second
revision out under load, compares the metrics with what it sent, and stops everything. A step that cannot be verified ends the demo with
status 1 and its name. `--break STEP` spoils a step, to show that its check can fail.
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
    """Show the whole way on this machine with a real model on the CPU; exit 0 only if each step was verified."""
    import asyncio
    import tempfile

    from rkfleet.cli.demo_steps import Demo, StepFailed

    with tempfile.TemporaryDirectory(prefix="rkfleet-demo-") as scratch:
        show = Demo(data_dir or Path(scratch) / "fleet", Path(scratch), manifests or Path("manifests/demo"), spoil)
        try:
            asyncio.run(show.run())
        except StepFailed as failure:
            print(f"demo failed in step {failure.step}: {failure.why}", file=sys.stderr)
            sys.exit(1)
