"""Figures as people and programs read them: a table, JSON, or a table in Markdown.

In: heads, rows of text, and the same as a value. Out: standard output. Used by every command that tells figures.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

__all__ = ["Output", "markdown_table", "show"]


class Output(enum.StrEnum):
    """How figures are printed."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"


def show(output: Output, heads: Sequence[str], rows: Sequence[Sequence[str]], value: Any, notes: Sequence[str] = ()) -> None:
    """Print figures; notes follow a table line by line, and are part of `value` for programs."""
    from rkfleet.cli.render import print_json, print_rows

    if output is Output.JSON:
        print_json(value)
        return
    if output is Output.MARKDOWN:
        print(markdown_table(heads, rows))
    else:
        print_rows([head.upper() for head in heads], rows)
    for note in notes:
        print(f"\n{note}" if output is Output.MARKDOWN else note)


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
