"""`rkfleet toolkit perplexity`: how well a model foretells a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.commands.show import Output

__all__ = ["command"]


def command(
    source: Annotated[Path, typer.Argument(help="GGUF file, or directory of a Hugging Face model.")],
    *,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text; the toolkit's own prose without it.")] = None,
    dtype: Annotated[str, typer.Option(help="Compute as this dtype of the NPU would: w8a8, w4a16_g128, ...")] = "",
    algorithm: Annotated[str, typer.Option(help="normal, grq or gdq, each with or without a rank: grq_r8.")] = "normal",
    calibration: Annotated[Path | None, typer.Option(help="Calibration file; the toolkit's own prose without it.")] = None,
    optimization_level: Annotated[int, typer.Option(help="1 smooths activations of w8a8.")] = 0,
    hybrid_rate: Annotated[float, typer.Option(help="Share of layers that take the other grouping; from 0, less than 1.")] = 0.0,
    context: Annotated[int, typer.Option(help="Tokens of a window; windows do not overlap.")] = 512,
    tokens: Annotated[int, typer.Option(help="Tokens of the text that are used; 0 for all.")] = 0,
    output: Annotated[Output, typer.Option("--output", help="How figures are printed.")] = Output.TABLE,
) -> None:
    """Measure a model's perplexity on a text, on this machine; with --dtype, of the NPU's arithmetic as simulated here."""
    import msgspec

    from toolkit.commands.progress import bars
    from toolkit.commands.quantized import Wanted, network_of
    from toolkit.commands.show import show
    from toolkit.evaluate.perplexity import measure
    from toolkit.evaluate.text import read_text, windows
    from toolkit.evaluate.texts import EVALUATION
    from toolkit.loading import open_model
    from toolkit.tokens.open import open_tokenizer

    model = open_model(source)
    wanted = Wanted(algorithm=algorithm, calibration=calibration, optimization_level=optimization_level, hybrid_rate=hybrid_rate)
    options = wanted.options(dtype) if dtype else None
    tokenizer = open_tokenizer(model)
    found = windows(read_text(text or EVALUATION), tokenizer, context, tokens)
    with bars() as tell:
        network = network_of(model, tokenizer, options, calibration, tell)
        result = measure(network, found, tell)
    label = f"{options.dtype} {algorithm}, NPU arithmetic simulated on this PC" if options else "float32, on this PC"
    show(
        output,
        ("computed", "perplexity", "±", "tokens"),
        [(label, f"{result.value:.4f}", f"{result.standard_error:.4f}", str(result.tokens))],
        {"model": str(source), "computed": label, "context": context, **msgspec.to_builtins(result)},
    )
