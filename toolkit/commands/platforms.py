"""`rkfleet toolkit platforms`: which chip, release and Python takes what, from the vendor's tables."""

from __future__ import annotations

from typing import Annotated

import typer

from toolkit.commands.show import Output

__all__ = ["command"]


def command(
    soc: Annotated[str, typer.Option(help="Rows of this chip alone.")] = "",
    release: Annotated[
        str, typer.Option(help="What this release of RKLLM-Toolkit takes; without it, of every release, with its first.")
    ] = "",
    output: Annotated[Output, typer.Option("--output", help="How it is printed.")] = Output.TABLE,
) -> None:
    """Show what RKLLM-Toolkit takes: quantized types, NPU cores, algorithms, Pythons, kinds of GGUF, parameters."""
    from toolkit import platforms
    from toolkit.commands.show import show

    cells = list(platforms.rows_of(soc=soc, release=release))
    shown = [[row.table, row.key, ", ".join(taken)] for row, taken in cells]
    value = [
        {
            "table": row.table,
            "row": row.key,
            "values": [
                {"value": value, "since": since} | ({"until": until} if until else {})
                for value, since, until in row.values
                if not release or value in taken
            ],
        }
        for row, taken in cells
    ]
    show(output, ["table", "row", f"takes (release {release})" if release else "takes"], shown, value)
