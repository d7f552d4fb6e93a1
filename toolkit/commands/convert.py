"""`rkfleet toolkit convert`: a model for the NPU, by the vendor's RKLLM-Toolkit in its own interpreter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from toolkit.conversion.child import Limits
    from toolkit.conversion.convert import Provenance
    from toolkit.conversion.rkllm import Conversion

__all__ = ["command"]


def command(
    source: Annotated[Path, typer.Argument(help="Directory of a Hugging Face model, or GGUF file (q4_0 or f16).")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to make: NAME.rkllm.")],
    soc: Annotated[str, typer.Option(help="Chip: rk3588, rk3576, rk3562, rv1126b.")],
    dtype: Annotated[str, typer.Option(help="The vendor's name: w8a8, w8a8_g128, w4a16_g128, …; `platforms` shows each chip's.")],
    algorithm: Annotated[str, typer.Option(help="normal, grq or gdq, each with or without a rank: grq_r8.")] = "normal",
    npu_cores: Annotated[int, typer.Option(help="NPU cores that the file is for; 0 is all of the chip.")] = 0,
    optimization_level: Annotated[int, typer.Option(help="1 trades speed for accuracy.")] = 0,
    hybrid_rate: Annotated[float, typer.Option(help="Share of layers that take the other grouping; from 0, less than 1.")] = 0.0,
    max_context: Annotated[int, typer.Option(help="Tokens, a multiple of 32 up to 16384; 0 is the vendor's default.")] = 0,
    calibration: Annotated[Path | None, typer.Option(help='JSON list of {"input", "target"}.')] = None,
    lora: Annotated[Path | None, typer.Option(help="Adapter that becomes a file of its own, NAME_lora.rkllm.")] = None,
    qparams: Annotated[Path | None, typer.Option(help="Cache that an earlier gdq or grq conversion left.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; gdq and grq need cuda.")] = "cpu",
    load_dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16: less memory, less accuracy.")] = "",
    tokenizer: Annotated[bool, typer.Option("--tokenizer/--no-tokenizer", help="Put the tokenizer into the file.")] = True,
    embedding: Annotated[bool, typer.Option("--embedding/--no-embedding", help="Put the embedding into the file.")] = True,
    custom_config: Annotated[Path | None, typer.Option(help="JSON that names the layers of a custom model.")] = None,
    release: Annotated[str, typer.Option(help="Release of RKLLM-Toolkit; without it, the one that is installed, else the newest.")] = "",
    python: Annotated[Path | None, typer.Option(help="Interpreter that has the vendor's toolkit.")] = None,
    silence_seconds: Annotated[float, typer.Option(help="Stop when the vendor's toolkit writes nothing for so long.", min=1.0)] = 1800.0,
    time_limit_seconds: Annotated[float, typer.Option(help="Stop after so long; 0 is never.", min=0.0)] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and print the calls; start and write nothing.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print every line of the vendor's toolkit.")] = False,
) -> None:
    """Convert a model to an .rkllm file with the vendor's RKLLM-Toolkit, after checking every argument against its tables."""
    from toolkit.commands.conversion import print_made, stoppable
    from toolkit.conversion.child import Limits
    from toolkit.conversion.rkllm import Conversion

    conversion = Conversion(
        source=source,
        output=output,
        soc=soc,
        dtype=dtype,
        release=release,
        algorithm=algorithm,
        npu_cores=npu_cores,
        optimization_level=optimization_level,
        hybrid_rate=hybrid_rate,
        max_context=max_context,
        calibration=calibration,
        lora=lora,
        qparams=qparams,
        device=device,
        load_dtype=load_dtype,
        tokenizer=tokenizer,
        embedding=embedding,
        custom_config=custom_config,
    )
    made = stoppable(
        _convert(
            conversion, python.absolute() if python else None, Limits(silence_seconds, time_limit_seconds), dry_run=dry_run, verbose=verbose
        )
    )
    if made is not None:
        print_made(output, made)


async def _convert(conversion: Conversion, python: Path | None, limits: Limits, *, dry_run: bool, verbose: bool) -> Provenance | None:
    import msgspec

    from rkfleet.clock import SystemClock
    from rkfleet.errors import FailedPrecondition
    from toolkit import platforms
    from toolkit.commands.conversion import listening, print_plan
    from toolkit.conversion import rkllm
    from toolkit.conversion.convert import convert, write_recipe
    from toolkit.conversion.interpreter import RKLLM, how_to_install_rkllm, probe

    clock = SystemClock()
    asked, cuda = conversion.release, conversion.device == "cuda"
    # The words are checked first, so that a slip is told in a moment; the interpreter's own version and Python after it is known.
    checked = rkllm.check(msgspec.structs.replace(conversion, release=asked or platforms.NEWEST))
    found = await probe(python, clock, cuda=cuda) if python is not None else None
    installed = found.versions.get(RKLLM, "") if found is not None else ""
    if asked and installed and installed != asked:
        raise FailedPrecondition(
            f"--release {asked} was asked for, but {python} has {RKLLM} {installed}: leave --release out, or give another --python"
        )
    if installed and found is not None:
        checked = rkllm.check(msgspec.structs.replace(conversion, release=installed), python=found.python)
    if cuda and found is not None and not found.cuda:
        raise FailedPrecondition(
            f"--device cuda: torch of {python} sees no GPU; install a torch that was built for it, or give --device cpu"
        )
    plan = rkllm.plan_of(checked)
    if dry_run:
        print_plan(plan, checked.notes, str(python) if installed else "an interpreter that is yet to be given (--python)")
        return None
    for note in checked.notes:
        print(f"note: {note}", file=sys.stderr)
    recipe = rkllm.recipe_of(checked)
    if found is None or not installed:
        path = write_recipe(conversion.output, recipe)
        what = how_to_install_rkllm(checked.conversion.release, found.python if found is not None else "")
        where = f"{python} has no {RKLLM}" if python is not None else f"no --python with the vendor's {RKLLM} is given"
        raise FailedPrecondition(f"{where}, which alone makes .rkllm files. {what}. The recipe is in {path}")
    with listening(verbose) as listener:
        return await convert(
            plan, conversion.output, recipe, found, clock=clock, listener=listener, limits=limits, command=tuple(sys.argv[1:])
        )
