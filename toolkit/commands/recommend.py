"""`rkfleet toolkit recommend`: which dtype on which chip, at what quality and what speed, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.commands.show import Output

if TYPE_CHECKING:
    from toolkit.commands.quantized import Wanted
    from toolkit.evaluate.compare import Comparison
    from toolkit.evaluate.sensitivity import Sensitivity
    from toolkit.evaluate.text import Window
    from toolkit.loading import ModelSource
    from toolkit.reports.recommendation import Recommendation

__all__ = ["command"]


def command(
    source: Annotated[Path, typer.Argument(help="GGUF file, or directory of a Hugging Face model.")],
    *,
    soc: Annotated[list[str] | None, typer.Option(help="Chip; may be given several times. rk3588 and rk3576 without it.")] = None,
    dtype: Annotated[str, typer.Option(help="Only these, with commas between; all that the chips take without it.")] = "",
    algorithm: Annotated[str, typer.Option(help="For w4a16*: normal, grq or gdq, each with or without a rank: grq_r8.")] = "normal",
    calibration: Annotated[Path | None, typer.Option(help="Calibration file; the toolkit's own prose without it.")] = None,
    optimization_level: Annotated[int, typer.Option(help="1 smooths activations of w8a8*, as the vendor's own.")] = 1,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to judge by; the toolkit's own prose without it.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the text that are used; 0 for all.")] = 0,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens before the first token of an answer.")] = 128,
    new_tokens: Annotated[int, typer.Option(help="Tokens of an answer.")] = 256,
    context: Annotated[int, typer.Option(help="Tokens of the window on the board.")] = 4096,
    reference: Annotated[str, typer.Option(help="Name of the model in the vendor's table, where its files do not tell.")] = "",
    board_memory: Annotated[str, typer.Option(help="Memory that a board has for the model.")] = "8Gi",
    min_speed: Annotated[float, typer.Option(help="Tokens per second that are needed.")] = 0.0,
    max_loss: Annotated[float, typer.Option(help="Largest change of perplexity: 0.02 is two percent.")] = 0.05,
    report: Annotated[Path | None, typer.Option(help="Directory for report.md, report.json and two plots.")] = None,
    output: Annotated[Output, typer.Option("--output", help="How figures are printed.")] = Output.TABLE,
) -> None:
    """Recommend a dtype for each chip: quality as simulated on this machine, speed and memory from the vendor's table."""
    from rkfleet.errors import Invalid
    from rkfleet.quantity import parse_bytes
    from toolkit import platforms
    from toolkit.commands.quantized import Wanted, refuse_stored
    from toolkit.commands.show import show
    from toolkit.evaluate.text import WINDOW_TOKENS, read_text, windows
    from toolkit.evaluate.texts import EVALUATION
    from toolkit.loading import open_model
    from toolkit.performance.model import Usage
    from toolkit.reports.recommendation import HEADS, recommend, rows_of
    from toolkit.reports.verdict import Limits
    from toolkit.tokens.open import open_tokenizer

    try:
        room = parse_bytes(board_memory)
    except ValueError as error:
        raise Invalid(f"board memory {board_memory!r}: {error}") from error
    limits = Limits(memory_bytes=room, tokens_per_second_min=min_speed, loss_max=max_loss).check()
    usage = Usage(prompt_tokens=prompt_tokens, new_tokens=new_tokens, context_tokens=context).check()
    wanted = Wanted(algorithm=algorithm, calibration=calibration, optimization_level=optimization_level)
    asked = tuple(word.strip() for word in dtype.split(",")) if dtype else ()
    chips = {chip: _dtypes(chip, asked) for chip in soc or ["rk3588", "rk3576"]}
    names = list(dict.fromkeys(name for taken in chips.values() for name in taken))
    if not names:
        raise Invalid(platforms.why_not_dtype(next(iter(chips)), asked[0] if asked else ""))
    model = open_model(source)
    refuse_stored(model)
    found = windows(read_text(text or EVALUATION), open_tokenizer(model), WINDOW_TOKENS, tokens)
    compared, blocks = _measure(model, wanted, names, found, with_blocks=report is not None)
    result = recommend(model, chips, compared, wanted.options, usage=usage, limits=limits, reference=reference)
    if report is not None:
        _write(report, source, result, blocks)
    show(output, HEADS, rows_of(result), result, result.notes)
    if report is not None and output is Output.TABLE:
        print(f"report: {report / 'report.md'}")


def _dtypes(soc: str, asked: Sequence[str]) -> tuple[str, ...]:
    from rkfleet.errors import Invalid
    from toolkit import platforms

    taken = platforms.dtypes_of(soc)
    if not taken:
        raise Invalid(platforms.why_not_dtype(soc, asked[0] if asked else ""))
    return tuple(name for name in taken if not asked or name in asked)


def _measure(
    model: ModelSource, wanted: Wanted, names: Sequence[str], found: Sequence[Window], *, with_blocks: bool
) -> tuple[dict[str, Comparison], dict[str, Sequence[Sensitivity]]]:
    """Run the model in full precision and as every dtype has it; for a report also block by block, for the first dtype."""
    from toolkit.commands.progress import bars
    from toolkit.commands.quantized import network_of
    from toolkit.evaluate.compare import Reference
    from toolkit.evaluate.sensitivity import measure_blocks
    from toolkit.tokens.open import open_tokenizer

    tokenizer = open_tokenizer(model)
    compared: dict[str, Comparison] = {}
    blocks: dict[str, Sequence[Sensitivity]] = {}
    with bars() as tell:
        full = network_of(model, tokenizer, None, None, tell)
        reference = Reference(full, found, tell)
    for name in names:
        with bars(name) as tell:
            network = network_of(model, tokenizer, wanted.options(name, lenient=True), wanted.calibration, tell)
            compared[name] = reference.against(network, tell)
            if with_blocks and len(blocks) < 2:
                blocks[name] = measure_blocks(full, network, found, tell)
    return compared, blocks


def _write(directory: Path, source: Path, result: Recommendation, blocks: Mapping[str, Sequence[Sensitivity]]) -> None:
    from rkfleet.errors import FailedPrecondition
    from toolkit.reports.recommendation import write_report

    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_report(directory, source.name, result, blocks)
    except OSError as error:
        raise FailedPrecondition(f"report {str(directory)!r} cannot be written: {error.strerror or error}") from error
