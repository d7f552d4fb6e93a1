"""`rkfleet toolkit profile`: what speed and memory to expect of a model, chip by chip and dtype by dtype."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from toolkit.commands.show import Output

if TYPE_CHECKING:
    from toolkit.performance.model import Estimate, Figures

__all__ = ["HEADS", "command", "row_of"]

HEADS: Final = ("soc", "dtype", "first token", "tokens/s", "answer", "memory", "fits", "origin")
LABEL: Final = (
    "nothing here was measured on a board by rkfleet: vendor's = its own table; predicted = from its rows, 80 % of which lie within"
)


def command(
    source: Annotated[Path, typer.Argument(help="GGUF file, or directory of a Hugging Face model.")],
    *,
    soc: Annotated[list[str] | None, typer.Option(help="Chip; may be given several times. rk3588 and rk3576 without it.")] = None,
    dtype: Annotated[str, typer.Option(help="One or several, with commas between; all that a chip takes without it.")] = "",
    prompt_tokens: Annotated[int, typer.Option(help="Tokens before the first token of the answer.")] = 128,
    new_tokens: Annotated[int, typer.Option(help="Tokens of the answer.")] = 256,
    context: Annotated[int, typer.Option(help="Tokens of the window, whose cache takes memory.")] = 4096,
    sdk: Annotated[
        str, typer.Option(help="Release of the vendor's table, 1.1.0 or 1.3.0; the newest that knows chip and dtype without it.")
    ] = "",
    reference: Annotated[str, typer.Option(help="Name of the model in the vendor's table, where its files do not tell.")] = "",
    board_memory: Annotated[str, typer.Option(help="Memory that a board has for the model.")] = "8Gi",
    output: Annotated[Output, typer.Option("--output", help="How figures are printed.")] = Output.TABLE,
) -> None:
    """Tell what to expect on boards before there is one: time to the first token, tokens per second, memory."""
    import msgspec

    from rkfleet.errors import Invalid
    from rkfleet.quantity import parse_bytes
    from toolkit import platforms
    from toolkit.commands.show import show
    from toolkit.loading import open_model
    from toolkit.performance.facts import facts_of
    from toolkit.performance.model import Usage, predict

    usage = Usage(prompt_tokens=prompt_tokens, new_tokens=new_tokens, context_tokens=context, sdk_version=sdk).check()
    try:
        room = parse_bytes(board_memory)
    except ValueError as error:
        raise Invalid(f"board memory {board_memory!r}: {error}") from error
    facts = facts_of(open_model(source))
    found: list[Figures] = []
    notes = [LABEL]
    for chip in soc or ["rk3588", "rk3576"]:
        for name in dtype.split(",") if dtype else platforms.dtypes_of(chip):
            if why := platforms.why_not_dtype(chip, name):
                raise Invalid(why)
            figures = predict(facts, chip, name, usage, reference=reference)
            if figures is None:
                notes.append(f"{chip} {name}: not predicted; the vendor's table has fewer than four rows of it, or none near this size")
            else:
                found.append(figures)
    notes += sorted({f"{one.soc} {one.dtype}: {one.basis}" for one in found})
    value = {
        "model": str(source),
        "parameters": facts.parameters,
        "usage": usage,
        "boardMemoryBytes": room,
        "figures": [msgspec.to_builtins(one) | {"fits": one.memory_bytes.value <= room} for one in found],
        "notes": notes,
    }
    show(output, HEADS, [row_of(one, usage.new_tokens, room) for one in found], value, notes)


def row_of(figures: Figures, new_tokens: int, room: int) -> tuple[str, ...]:
    """Return the cells of a row."""
    from rkfleet.quantity import format_bytes

    whole = figures.first_token_seconds.value + new_tokens / figures.tokens_per_second.value
    origins = {one.origin for one in (figures.first_token_seconds, figures.tokens_per_second, figures.memory_bytes)}
    mebibytes = round(figures.memory_bytes.value / (1 << 20))
    return (
        figures.soc,
        figures.dtype,
        _span(figures.first_token_seconds, "{:.2f} s"),
        _span(figures.tokens_per_second, "{:.1f}"),
        f"{whole:.1f} s",
        format_bytes(mebibytes << 20),
        "yes" if figures.memory_bytes.high <= room else "maybe" if figures.memory_bytes.value <= room else "no",
        " + ".join(f"{one}'s" if one == "vendor" else one for one in sorted(origins, reverse=True)),
    )


def _span(estimate: Estimate, form: str) -> str:
    text = form.format(estimate.value)
    if estimate.low == estimate.high:
        return text
    return f"{text} ({form.format(estimate.low).removesuffix(' s')} to {form.format(estimate.high).removesuffix(' s')})"
