"""`rkfleet toolkit calibrate`: a calibration file of a model's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    source: Annotated[Path, typer.Argument(help="GGUF file, or directory of a model.")],
    *,
    prompts: Annotated[Path, typer.Option(help="Text file, a prompt a line; the vendor's example has some 20.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file, in the form that the vendor's toolkit reads too.")],
    tokens: Annotated[int, typer.Option(help="New tokens of an answer, at most.")] = 128,
) -> None:
    """Let a model answer prompts in full precision, and keep both as a calibration file."""
    import msgspec

    from rkfleet.clock import SystemClock
    from rkfleet.errors import FailedPrecondition
    from toolkit.loading import open_model
    from toolkit.quantize.answers import answer_all, read_prompts
    from toolkit.quantize.output import progress_bar

    with progress_bar() as progress:
        samples = answer_all(open_model(source), read_prompts(prompts), SystemClock(), tokens=tokens, progress=progress)
    try:
        output.write_bytes(msgspec.json.format(msgspec.json.encode(samples), indent=2) + b"\n")
    except OSError as error:
        raise FailedPrecondition(f"calibration file {str(output)!r} cannot be written: {error.strerror or error}") from error
    print(f"wrote {output} ({len(samples)} samples)")
