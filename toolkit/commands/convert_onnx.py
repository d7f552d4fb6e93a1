"""`rkfleet toolkit convert-onnx`: an ONNX network for the NPU, by the vendor's rknn-toolkit2 in its own interpreter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from toolkit.conversion.child import Limits
    from toolkit.conversion.convert import Provenance
    from toolkit.conversion.rknn import OnnxConversion

__all__ = ["command"]


def command(
    source: Annotated[Path, typer.Argument(help="ONNX file, for example the image encoder of a vision model.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to make: NAME.rknn.")],
    soc: Annotated[str, typer.Option(help="Chip: rk3588, rk3576, rk3562, rv1126b, rk3566, rk3568.")],
    dtype: Annotated[str, typer.Option(help="i8, which needs samples, or fp16.")] = "fp16",
    calibration_list: Annotated[Path | None, typer.Option(help="Text file: the paths of a sample's inputs in each line.")] = None,
    simulate: Annotated[
        list[Path] | None, typer.Option(help="Array (.npy) to run through the vendor's simulator; once for each input of the network.")
    ] = None,
    python: Annotated[Path | None, typer.Option(help="Interpreter that has rknn-toolkit2.")] = None,
    silence_seconds: Annotated[float, typer.Option(help="Stop when the vendor's toolkit writes nothing for so long.", min=1.0)] = 1800.0,
    time_limit_seconds: Annotated[float, typer.Option(help="Stop after so long; 0 is never.", min=0.0)] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and print the calls; start and write nothing.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print every line of the vendor's toolkit.")] = False,
) -> None:
    """Convert an ONNX file to an .rknn file with the vendor's rknn-toolkit2, and run its simulator on this machine."""
    from toolkit.commands.conversion import print_made, stoppable
    from toolkit.conversion.child import Limits
    from toolkit.conversion.rknn import OnnxConversion

    conversion = OnnxConversion(
        source=source, output=output, soc=soc, dtype=dtype, calibration_list=calibration_list, simulate=tuple(simulate or ())
    )
    made = stoppable(
        _convert(
            conversion, python.absolute() if python else None, Limits(silence_seconds, time_limit_seconds), dry_run=dry_run, verbose=verbose
        )
    )
    if made is None:
        return
    print_made(output, made)
    if conversion.simulate:
        _print_simulated(output)


async def _convert(conversion: OnnxConversion, python: Path | None, limits: Limits, *, dry_run: bool, verbose: bool) -> Provenance | None:
    from rkfleet.clock import SystemClock
    from rkfleet.errors import FailedPrecondition
    from toolkit.commands.conversion import listening, print_plan
    from toolkit.conversion import rknn
    from toolkit.conversion.convert import convert, write_recipe
    from toolkit.conversion.interpreter import RKNN, how_to_install_rknn, probe

    clock = SystemClock()
    checked = rknn.check(conversion)
    found = await probe(python, clock) if python is not None else None
    installed = found.versions.get(RKNN, "") if found is not None else ""
    plan = rknn.plan_of(checked, installed)
    if dry_run:
        print_plan(plan, (), str(python) if installed else "an interpreter that is yet to be given (--python)")
        return None
    recipe = rknn.recipe_of(checked, installed)
    if found is None or not installed:
        path = write_recipe(conversion.output, recipe)
        where = f"{python} has no {RKNN}" if python is not None else f"no --python with the vendor's {RKNN} is given"
        raise FailedPrecondition(f"{where}, which alone makes .rknn files. {how_to_install_rknn()}. The recipe is in {path}")
    with listening(verbose) as listener:
        return await convert(
            plan, conversion.output, recipe, found, clock=clock, listener=listener, limits=limits, command=tuple(sys.argv[1:])
        )


def _print_simulated(output: Path) -> None:
    import numpy as np

    path = output.with_name(f"{output.stem}.simulated.npz")
    with np.load(path, allow_pickle=False) as outputs:
        for name in outputs.files:
            array = outputs[name]
            print(f"simulated on this PC, not by an NPU: {name} {array.dtype}{list(array.shape)} in {path}")
