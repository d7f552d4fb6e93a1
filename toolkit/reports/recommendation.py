"""A recommendation: quality, speed, memory and a verdict for every dtype of every chip, and its report.

In: comparisons (`toolkit.evaluate.compare`), the benchmark model (`toolkit.performance`), limits. Out: a `Recommendation`, its rows, and
report.md with two plots. Every figure says what it is: simulated on this PC, predicted, or the vendor's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from toolkit.evaluate.compare import Comparison
from toolkit.evaluate.sensitivity import METHOD, Sensitivity
from toolkit.loading import ModelSource
from toolkit.performance.facts import facts_of
from toolkit.performance.model import Figures, Usage, predict
from toolkit.platforms import NEWEST, why_not_width
from toolkit.quantize.options import Options
from toolkit.reports.plots import plot_blocks, plot_choice
from toolkit.reports.verdict import Candidate, Limits, Verdict, judge

__all__ = ["HEADS", "Choice", "Recommendation", "recommend", "rows_of", "write_report"]

HEADS: Final = ("soc", "dtype", "algorithm", "perplexity", "agreement", "tokens/s", "first token", "memory", "speed is", "verdict", "why")
QUALITY: Final = (
    "quality: NPU arithmetic simulated on this PC; speed and memory: the vendor's table, or predicted from it; no board was asked"
)
MEBIBYTE: Final = 1 << 20
GIBIBYTE: Final = 1 << 30


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One dtype on one chip.

    Attributes:
        figures: None where the vendor's table does not tell.
        command: What makes the file.
    """

    soc: str
    dtype: str
    algorithm: str
    quality: Comparison
    figures: Figures | None
    verdict: Verdict
    command: str


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """All of them, chip by chip."""

    model: str
    usage: Usage
    limits: Limits
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]


def recommend(
    model: ModelSource,
    chips: Mapping[str, Sequence[str]],
    compared: Mapping[str, Comparison],
    options: Callable[..., Options],
    *,
    usage: Usage,
    limits: Limits,
    reference: str = "",
) -> Recommendation:
    """Put quality, speed and limits together.

    Args:
        model: Opened.
        chips: Dtypes by chip.
        compared: Quality by dtype.
        options: Called with a dtype and `lenient=True`.
        usage: How the model is to be used.
        limits: What is out.
        reference: Name of the model in the vendor's table, or empty.
    """
    facts = facts_of(model)
    choices: list[Choice] = []
    for soc, names in chips.items():
        figures = {name: predict(facts, soc, name, usage, reference=reference) for name in names}
        candidates = [_candidate(model, name, compared[name], figures[name]) for name in names]
        for name, verdict in zip(names, judge(candidates, limits), strict=True):
            chosen = options(name, lenient=True)
            choices.append(
                Choice(
                    soc=soc,
                    dtype=name,
                    algorithm=_algorithm(chosen),
                    quality=compared[name],
                    figures=figures[name],
                    verdict=verdict,
                    command=_command(model.path, soc, chosen, usage),
                )
            )
    best = [one for one in choices if one.verdict.word == "best"]
    notes = [QUALITY, *(f"{one.soc}: {one.command}" for one in best)]
    if best and not model.path.is_dir():
        notes.append("ORIGINAL_DIRECTORY is the model as it was published: the vendor's toolkit reads GGUF of the types q4_0 and f16 only")
    return Recommendation(model=model.path.name, usage=usage, limits=limits, choices=tuple(choices), notes=tuple(notes))


def rows_of(result: Recommendation) -> list[tuple[str, ...]]:
    """Return the cells of every row."""
    return [
        (
            one.soc,
            one.dtype,
            one.algorithm,
            f"{one.quality.perplexity_change:+.1%}",
            f"{one.quality.agreement:.1%}",
            "-" if one.figures is None else f"{one.figures.tokens_per_second.value:.1f}",
            "-" if one.figures is None else f"{one.figures.first_token_seconds.value:.2f} s",
            "-" if one.figures is None else f"{one.figures.memory_bytes.value / MEBIBYTE:.0f} MiB",
            "unknown" if one.figures is None else {"vendor": "vendor's"}.get(origin := one.figures.tokens_per_second.origin, origin),
            one.verdict.word,
            one.verdict.why,
        )
        for one in result.choices
    ]


def write_report(directory: Path, title: str, result: Recommendation, blocks: Mapping[str, Sequence[Sensitivity]]) -> None:
    """Write report.md, report.json, choice.svg and, if there are any, blocks.svg."""
    points: dict[str, list[tuple[str, float, float]]] = {}
    for one in result.choices:
        if one.figures is not None:
            points.setdefault(one.soc, []).append((one.dtype, one.figures.tokens_per_second.value, one.quality.perplexity_change))
    plot_choice(directory / "choice.svg", f"{title}: quality and speed", points)
    if blocks:
        plot_blocks(directory / "blocks.svg", f"{title}: what each block suffers", blocks)
    (directory / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    (directory / "report.md").write_text(_markdown(title, result, blocks))


def _markdown(title: str, result: Recommendation, blocks: Mapping[str, Sequence[Sensitivity]]) -> str:
    rows = [HEADS, ("---",) * len(HEADS), *rows_of(result)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    first = result.choices[0].quality.perplexity
    lines = [
        f"# Which dtype for {title}",
        f"{QUALITY[0].upper()}{QUALITY[1:]}.",
        table,
        _conditions(first.tokens, result.usage, result.limits),
        "![Quality against speed](choice.svg)",
    ]
    if blocks:
        lines += [f"What each block suffers ({METHOD}):", "![Divergence by block](blocks.svg)"]
    basis = sorted({f"- {one.soc} {one.dtype}: {one.figures.basis}" for one in result.choices if one.figures is not None})
    lines += ["## What the speeds rest on", "\n".join(basis) or "Nothing: the vendor's table has no row for these."]
    best = [one for one in result.choices if one.verdict.word == "best"]
    commands = "\n".join(one.command for one in best)
    lines += ["## Next", f"```console\n{commands}\n```" if best else "Nothing is within the limits; see the column why."]
    return "\n\n".join(lines) + "\n"


def _conditions(tokens: int, usage: Usage, limits: Limits) -> str:
    return (
        f"Perplexity over {tokens} tokens, as change from float32. An answer of {usage.new_tokens} tokens after a prompt of"
        f" {usage.prompt_tokens}, in a window of {usage.context_tokens}. Limits: {limits.memory_bytes / GIBIBYTE:.2f} GiB,"
        f" {limits.tokens_per_second_min:g} tokens/s, {limits.loss_max:.1%} of perplexity."
    )


def _candidate(model: ModelSource, dtype: str, quality: Comparison, figures: Figures | None) -> Candidate:
    widths = {name: info.shape[0] for name, info in model.tensors.items() if name.startswith("blk.") and len(info.shape) == 2}
    refused = next((why for name, width in widths.items() if (why := why_not_width(dtype, name, width))), "")
    return Candidate(
        dtype=dtype,
        loss=quality.perplexity_change,
        tokens_per_second=None if figures is None else figures.tokens_per_second.value,
        memory_bytes=None if figures is None else figures.memory_bytes.value,
        refused=refused,
    )


def _algorithm(options: Options) -> str:
    rank = f"_r{options.low_rank}" if options.low_rank else ""
    level = f", level {options.optimization_level}" if options.optimization_level else ""
    return f"{options.algorithm}{rank}{level}"


def _command(source: Path, soc: str, options: Options, usage: Usage) -> str:
    rank = f"_r{options.low_rank}" if options.low_rank else ""
    whole = str(source) if source.is_dir() else "ORIGINAL_DIRECTORY"  # The vendor reads GGUF of the types q4_0 and f16 only.
    words = ["rkfleet toolkit convert", whole, f"--soc {soc}", f"--dtype {options.dtype}"]
    words += [f"--algorithm {options.algorithm}{rank}"] if options.algorithm != "normal" or rank else []
    words += [f"--optimization-level {options.optimization_level}"] if options.optimization_level else []
    words += [f"--max-context {usage.context_tokens}", f"--release {NEWEST}", "--python PATH/TO/VENDOR/python"]
    return " ".join([*words, f"-o {source.stem}-{soc}-{options.dtype}.rkllm"])
