"""`rkfleet toolkit compare`: what each dtype costs a model, against full precision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from toolkit.commands.show import Output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from toolkit.evaluate.compare import Comparison
    from toolkit.evaluate.sensitivity import Sensitivity

__all__ = ["HEADS", "command", "row_of"]

HEADS: Final = ("dtype", "algorithm", "perplexity", "change", "divergence", "99 %", "agreement", "cosine logits", "cosine hidden")
BAR_CELLS: Final = 24  # Two dtypes beside each other fit 80 columns.
LABEL: Final = "NPU arithmetic simulated on this PC's CPU; full precision is float32"


def command(
    source: Annotated[Path, typer.Argument(help="GGUF file, or directory of a Hugging Face model.")],
    *,
    dtype: Annotated[str, typer.Option(help="One or several, with commas between: w8a8,w4a16_g128.")] = "w8a8,w4a16_g128",
    algorithm: Annotated[str, typer.Option(help="For w4a16*: normal, grq or gdq, each with or without a rank: grq_r8.")] = "normal",
    calibration: Annotated[Path | None, typer.Option(help="Calibration file; the toolkit's own prose without it.")] = None,
    optimization_level: Annotated[int, typer.Option(help="1 smooths activations of w8a8*.")] = 0,
    hybrid_rate: Annotated[float, typer.Option(help="Share of layers that take the other grouping; from 0, less than 1.")] = 0.0,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to judge by; the toolkit's own prose without it.")] = None,
    context: Annotated[int, typer.Option(help="Tokens of a window; windows do not overlap.")] = 512,
    tokens: Annotated[int, typer.Option(help="Tokens of the text that are used; 0 for all.")] = 0,
    layers: Annotated[bool, typer.Option("--layers", help="Also quantize each block alone, and tell which suffer.")] = False,
    plot: Annotated[Path | None, typer.Option(help="With --layers: draw them to a .svg or .png file.")] = None,
    output: Annotated[Output, typer.Option("--output", help="How figures are printed.")] = Output.TABLE,
) -> None:
    """Hold dtypes against full precision: perplexity, divergence, agreement, cosines."""
    import msgspec

    from toolkit.commands.progress import bars
    from toolkit.commands.quantized import Wanted, network_of, refuse_stored
    from toolkit.commands.show import show
    from toolkit.evaluate.compare import Reference
    from toolkit.evaluate.sensitivity import METHOD, measure_blocks
    from toolkit.evaluate.text import read_text, windows
    from toolkit.evaluate.texts import EVALUATION
    from toolkit.loading import open_model
    from toolkit.quantize.apply import layer_dtypes, refused_widths
    from toolkit.tokens.open import open_tokenizer

    if plot is not None:
        from toolkit.reports.plots import check_format

        check_format(plot)
        layers = True
    wanted = Wanted(algorithm=algorithm, calibration=calibration, optimization_level=optimization_level, hybrid_rate=hybrid_rate)
    names = list(dict.fromkeys(word.strip() for word in dtype.split(",")))
    options = {name: wanted.options(name, lenient=len(names) > 1) for name in names}
    model = open_model(source)
    refuse_stored(model)
    tokenizer = open_tokenizer(model)
    found = windows(read_text(text or EVALUATION), tokenizer, context, tokens)
    compared: dict[str, Comparison] = {}
    blocks: dict[str, tuple[Sensitivity, ...]] = {}
    with bars() as tell:
        precise = network_of(model, tokenizer, None, None, tell)
        reference = Reference(precise, found, tell)
    for name in names:
        with bars(name) as tell:
            network = network_of(model, tokenizer, options[name], calibration, tell)
            compared[name] = reference.against(network, tell)
            if layers:
                blocks[name] = measure_blocks(precise, network, found, tell)
    notes = {
        name: why
        for name in names
        if (why := refused_widths(model, layer_dtypes(model, msgspec.structs.replace(options[name], hybrid_rate=0))))
    }
    full = reference.perplexity
    rows: list[tuple[str, ...]] = [("float32", "", f"{full.value:.4f}", "", "", "", "", "", "")]
    rows += [row_of(name, options[name].algorithm, one) for name, one in compared.items()]
    value = {
        "model": str(source),
        "context": context,
        "computed": LABEL,
        "reference": full,
        "dtypes": [
            {
                "dtype": name,
                "algorithm": options[name].algorithm,
                "scheme": options[name].scheme,
                "refused": notes.get(name, []),
                **msgspec.to_builtins(one),
                "blocks": blocks.get(name, ()),
            }
            for name, one in compared.items()
        ],
    }
    told = [f"{full.tokens} tokens in windows of {context}; {LABEL}"]
    told += [f"{name}: {sentence}" for name, sentences in notes.items() for sentence in sentences]
    show(output, HEADS, rows, value, told)
    if blocks and output is not Output.JSON:
        print(f"\n{METHOD}")
        show(output, ("block", *blocks), _bars(blocks), None)
    if plot is not None:
        from toolkit.reports.plots import plot_blocks

        plot_blocks(plot, f"{source.name}: what each block suffers", blocks)


def _bars(blocks: Mapping[str, Sequence[Sensitivity]]) -> list[tuple[str, ...]]:
    """Return a row for each block: a bar and its figure for each dtype, the longest bar for the largest of all."""
    most = max((one.divergence for found in blocks.values() for one in found), default=0.0) or 1.0
    lines = zip(*blocks.values(), strict=True)
    return [
        (line[0].name, *(f"{'█' * max(1, round(BAR_CELLS * one.divergence / most))} {one.divergence:.4f}" for one in line))
        for line in lines
    ]


def row_of(name: str, algorithm: str, one: Comparison) -> tuple[str, ...]:
    """Return the cells of a row."""
    return (
        name,
        algorithm,
        f"{one.perplexity.value:.4f}",
        f"{one.perplexity_change:+.2%}",
        f"{one.divergence:.4f}",
        f"{one.divergence_99:.4f}",
        f"{one.agreement:.1%}",
        f"{one.cosine_logits:.5f}",
        f"{one.cosine_hidden:.5f}",
    )
