"""What `bench.seed_table` shows: the rows side by side as a table, and as a picture.

In: measured rows. Out: lines on standard output, drawn by rich on a terminal and plain otherwise; or SVG, which loads nothing. Apart from
the measuring, so that each can be read alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final, Literal
from xml.sax.saxutils import escape

import msgspec

from rkfleet.benchmarks import MEBIBYTE, Row

__all__ = ["PATHS", "Figures", "Measured", "Way", "draw", "print_table", "sentence"]

Way = Literal["board", "gateway"]
PATHS: Final[tuple[Way, ...]] = ("board", "gateway")

HEADS: Final = (
    "model", "dtype", "chip", "memory MiB", "TTFT ms", "on board", "gateway", "tokens/s", "on board", "gateway",
)  # fmt: skip

# The picture, in pixels.
WIDTH: Final = 960
LEFT: Final = 256
RATES: Final = (LEFT, 610)  # From 0 tokens/s to the fastest row.
FIRSTS: Final = (660, 920)  # From 0 ms to what is needed, the goal at least.
TOP: Final = 86
LINE: Final = 17
GOAL_MS: Final = 5.0
STYLE: Final = (
    "text{font:12px ui-sans-serif,system-ui,sans-serif;fill:#24292f}.small{font-size:11px;fill:#57606a}.title{font-size:15px;"
    "font-weight:600}.table{fill:#d0d7de}.board{fill:#0969da}.gateway{fill:#bc4c00}.goal{stroke:#cf222e;stroke-dasharray:4 3}"
    ".grid{stroke:#d8dee4}"
)


class Figures(msgspec.Struct, frozen=True):
    """What a client saw of a row on one path."""

    first_token_seconds: float
    tokens_per_second: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A row and what was measured of it."""

    row: Row
    board: Figures
    gateway: Figures

    def rate_ratio(self, path: Way) -> float:
        """Return measured tokens/s by those of the row."""
        return self.of(path).tokens_per_second / self.row.tokens_per_second

    def first_token_added_ms(self, path: Way) -> float:
        """Return how much later than the row the first token came, in milliseconds."""
        return (self.of(path).first_token_seconds - self.row.time_to_first_token_seconds) * 1000

    def of(self, path: Way) -> Figures:
        """Return what was measured on a path."""
        return self.board if path == "board" else self.gateway


def sentence(one: Measured, number: int) -> str:
    """Return a row as a line for people who wait."""
    said = ", ".join(f"{path} x{one.rate_ratio(path):.4f} {one.first_token_added_ms(path):+.1f} ms" for path in PATHS)
    return f"{number}: {one.row.model} {one.row.dtype} {one.row.soc}: {said}"


def print_table(measured: Sequence[Measured]) -> None:
    """Print the rows: times and rates of the table, then what was measured on the board and through the gateway."""
    rows = [_cells(one) for one in measured]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*HEADS)
        for column in table.columns[3:]:
            column.justify = "right"
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(HEADS, *rows, strict=True)]
    for row in (HEADS, *rows):
        words = [cell.ljust(width) if at < 3 else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(words).rstrip())


def _cells(one: Measured) -> tuple[str, ...]:
    row = one.row
    return (
        row.model, row.dtype, row.soc, f"{row.memory_bytes / MEBIBYTE:.0f}", f"{row.time_to_first_token_seconds * 1000:.2f}",
        f"{one.board.first_token_seconds * 1000:.2f}", f"{one.gateway.first_token_seconds * 1000:.2f}", f"{row.tokens_per_second:.2f}",
        f"{one.board.tokens_per_second:.3f}", f"{one.gateway.tokens_per_second:.3f}",
    )  # fmt: skip


def draw(measured: Sequence[Measured], release: str) -> str:
    """Return the picture: for each row the table's tokens/s as a bar with what was measured on it, and what was added to the TTFT."""
    fastest = max(one.row.tokens_per_second for one in measured)
    latest = max(GOAL_MS, *(one.first_token_added_ms(path) for one in measured for path in PATHS)) * 1.1
    height = TOP + LINE * len(measured) + 50
    bottom = TOP + LINE * len(measured)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(
            16, 26, f"{len(measured)} rows of the vendor's table through the simulated runtime {release}, as the client sees them", "title"
        ),
        _text(
            16, 46, "Simulated: the pace is the vendor's figure; what is measured is what bindings, worker, agent and gateway add.", "small"
        ),
        _text(RATES[0], TOP - 12, "tokens/s"),
        _text(FIRSTS[0], TOP - 12, "added to the time to the first token, ms"),
    ]
    for x, kind, words in ((16, "table", "table"), (76, "board", "on the board"), (176, "gateway", "through the gateway")):
        parts += [f'<rect class="{kind}" x="{x}" y="{bottom + 27}" width="10" height="10"/>', _text(x + 15, bottom + 36, words, "small")]
    for value in range(0, int(fastest) + 1, 5):
        parts += _grid(_at(value, fastest, RATES), bottom, f"{value}")
    for value in range(int(latest) + 1):
        parts += _grid(_at(value, latest, FIRSTS), bottom, f"{value}")
    goal = _at(GOAL_MS, latest, FIRSTS)
    parts.append(f'<line class="goal" x1="{goal:.1f}" x2="{goal:.1f}" y1="{TOP - 6}" y2="{bottom}"/>')
    for number, one in enumerate(measured):
        y = TOP + LINE * number
        row = one.row
        bar = _at(row.tokens_per_second, fastest, RATES) - LEFT
        parts += [
            _text(16, y + 12, f"{row.model} {row.dtype}"),
            _text(LEFT - 40, y + 12, row.soc[2:], "small"),
            f'<rect class="table" x="{RATES[0]}" y="{y + 2}" height="{LINE - 4}" width="{bar:.1f}"/>',
        ]
        for path, up in zip(PATHS, (5.5, 11.5), strict=True):
            rate = _at(one.of(path).tokens_per_second, fastest, RATES)
            added = _at(max(0.0, one.first_token_added_ms(path)), latest, FIRSTS)
            parts += [
                f'<circle class="{path}" cx="{rate:.1f}" cy="{y + up}" r="3"/>',
                f'<circle class="{path}" cx="{added:.1f}" cy="{y + up}" r="3"/>',
            ]
    return "\n".join([*parts, "</svg>", ""])


def _at(value: float, most: float, span: tuple[int, int]) -> float:
    return span[0] + (span[1] - span[0]) * value / most


def _grid(x: float, bottom: int, words: str) -> list[str]:
    return [
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{bottom}"/>',
        f'<text class="small" x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{words}</text>',
    ]


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{escape(words)}</text>'
