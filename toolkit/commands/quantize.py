"""`rkfleet toolkit quantize`: a model in fewer bits, with its recipe."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Format", "command"]


class Format(enum.StrEnum):
    """What is written."""

    GGUF = "gguf"
    SAFETENSORS = "safetensors"


def command(
    source: Annotated[Path, typer.Argument(help="GGUF file, or directory of a model.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="File (gguf) or new directory (safetensors).")],
    dtype: Annotated[str, typer.Option(help="The vendor's name: w8a8, w8a8_g128, w4a16_g128, …")],
    algorithm: Annotated[str, typer.Option(help="normal, grq or gdq, each with or without a rank: grq_r8.")] = "normal",
    calibration: Annotated[Path | None, typer.Option(help='JSON list of {"input", "target"}, or plain text.')] = None,
    optimization_level: Annotated[int, typer.Option(help="1 smooths activations of w8a8.")] = 0,
    hybrid_rate: Annotated[float, typer.Option(help="Share of layers that take the other grouping; from 0, less than 1.")] = 0.0,
    output_layer: Annotated[str, typer.Option(help="w8a8, same or float.")] = "w8a8",
    form: Annotated[
        Format, typer.Option("--format", help="gguf runs on the CPU runtime; safetensors is simulated by the toolkit.")
    ] = Format.GGUF,
    qparams: Annotated[Path | None, typer.Option(help="Cache of quantized layers: read if it is there, else written.")] = None,
) -> None:
    """Quantize a model on this machine and write it with its recipe."""
    from toolkit.quantize.output import Request, quantize_model

    request = Request(
        source=source,
        output=output,
        dtype=dtype,
        algorithm=algorithm,
        calibration=calibration,
        optimization_level=optimization_level,
        hybrid_rate=hybrid_rate,
        output_layer=output_layer,
        form=form.value,
        qparams=qparams,
    )
    outcome = quantize_model(request)
    for line in outcome.lines:
        print(line)
