"""`rkfleet bench`: the vendor's benchmark table, as simulated boards use it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rkfleet.cli.options import Format, Output
from rkfleet.errors import NotFound

if TYPE_CHECKING:
    from rkfleet.benchmarks import Protocol, Row

__all__ = ["app"]

app = typer.Typer(help="Benchmark figures.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Benchmark figures."""


@app.command("table")
def show_table(
    *,
    soc: Annotated[str, typer.Option(help="Only this chip: rk3588, rk3576, rk3562 or rv1126b.", show_default=False)] = "",
    model: Annotated[str, typer.Option(help="Only this model, as the table writes it.", show_default=False)] = "",
    sdk: Annotated[str, typer.Option(help="Only this release of the RKLLM SDK: 1.1.0 or 1.3.0.", show_default=False)] = "",
    output: Output = Format.table,
) -> None:
    """Show the vendor's figures for RKLLM: time to first token, tokens/s and memory. Releases are not comparable with each other."""
    from rkfleet.benchmarks import PROTOCOLS, load_table
    from rkfleet.cli import render

    table = load_table()
    rows = table.select(model, soc, sdk)
    if not rows:
        if model:
            raise NotFound(table.why_missing(model, "any dtype", soc or "any chip", sdk))
        chips, releases = sorted({row.soc for row in table.rows}), sorted(PROTOCOLS)
        raise NotFound(
            f"the table has no rows for --soc {soc!r} --sdk {sdk!r}; chips are {', '.join(chips)}, releases {', '.join(releases)}"
        )
    parts = [(protocol, [row for row in rows if row.sdk_version == protocol.sdk_version]) for protocol in PROTOCOLS.values()]
    parts = [(protocol, found) for protocol, found in parts if found]
    if output is Format.table:
        _print_tables(parts)
    else:
        render.print_object({"protocols": [_as_object(protocol, found) for protocol, found in parts]}, output)


def _print_tables(parts: list[tuple[Protocol, list[Row]]]) -> None:
    from rkfleet.cli import render

    heads = ["MODEL", "DTYPE", "SOC", "TTFT", "TOKENS/S", "MEMORY"]
    for number, (protocol, rows) in enumerate(parts):
        print(f"{chr(10) if number else ''}{_conditions(protocol)}", flush=True)
        cells = [
            [
                row.model, row.dtype, row.soc, f"{row.time_to_first_token_seconds * 1000:.0f} ms", f"{row.tokens_per_second:.2f}",
                f"{row.memory_bytes / (1 << 20):.0f} MiB",
            ]
            for row in rows
        ]  # fmt: skip
        render.print_rows(heads, cells)
        sys.stdout.flush()


def _conditions(protocol: Protocol) -> str:
    from rkfleet.benchmarks import CONDITIONS

    return (
        f"RKLLM {protocol.sdk_version}: {CONDITIONS}; prompt of {protocol.prompt_tokens} tokens, {protocol.new_tokens} new tokens. "
        f"Source: {protocol.source}."
    )


def _as_object(protocol: Protocol, rows: list[Row]) -> dict[str, Any]:
    from rkfleet.benchmarks import CONDITIONS

    return {
        "sdkVersion": protocol.sdk_version,
        "promptTokens": protocol.prompt_tokens,
        "newTokens": protocol.new_tokens,
        "conditions": CONDITIONS,
        "source": protocol.source,
        "rows": [
            {
                "model": row.model,
                "dtype": row.dtype,
                "soc": row.soc,
                "timeToFirstTokenSeconds": round(row.time_to_first_token_seconds, 6),
                "tokensPerSecond": row.tokens_per_second,
                "memoryBytes": row.memory_bytes,
                "maxContextTokens": row.max_context_tokens,
            }
            for row in rows
        ],
    }
