"""How commands show things: tables with colour on a terminal, plain columns when piped, JSON and YAML for programs. No I/O but printing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from rkfleet.cli.options import Format

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = [
    "GOOD_REASONS",
    "cell_text",
    "plain_line",
    "print_json",
    "print_object",
    "print_rows",
    "print_table",
    "print_yaml",
    "rich_table",
    "style_of",
]

GOOD_REASONS: Final = frozenset(
    {"True", "Ready", "SessionOpen", "ArtifactsPresent", "RolloutComplete", "Serving", "MinimumReplicasAvailable", "Active", "Normal"}
)
_WAITING_REASONS: Final = frozenset({"Unknown", "RollingOut", "Fetching", "Loading", "Staged", "Draining", "AwaitingReconnect"})
_GAP: Final = "   "


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value)).decode())


def print_yaml(value: Any) -> None:
    """Print a value as YAML in its own order."""
    import yaml

    print(yaml.safe_dump(value, sort_keys=False, default_flow_style=False), end="")


def print_object(value: Any, output: Format) -> None:
    """Print an object or list for programs."""
    if output is Format.json:
        print_json(value)
    else:
        print_yaml(value)


def print_table(table: dict[str, Any], *, wide: bool = False, namespace: bool = False) -> None:
    """Print a Kubernetes `Table`; `namespace` adds that column, `wide` the columns of priority 1."""
    shown = [index for index, column in enumerate(table["columnDefinitions"]) if wide or not column.get("priority")]
    heads = [table["columnDefinitions"][index]["name"].upper() for index in shown]
    rows = [[cell_text(row["cells"][index]) for index in shown] for row in table["rows"] or ()]
    if namespace:
        heads.insert(0, "NAMESPACE")
        for row, source in zip(rows, table["rows"] or (), strict=True):
            row.insert(0, source["object"]["metadata"].get("namespace", ""))
    print_rows(heads, rows)


def cell_text(value: Any) -> str:
    """Return a cell of a `Table` as kubectl shows it."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def print_rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns: coloured on a terminal, aligned plain text otherwise."""
    if not rows:
        print("No resources found.", file=sys.stderr)
        return
    if not sys.stdout.isatty():
        widths = [max(len(line[index]) for line in [heads, *rows]) for index in range(len(heads))]
        for line in [heads, *rows]:
            print(plain_line(line, widths))
        return
    from rich.console import Console

    Console().print(rich_table(heads, rows))


def plain_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return one line of plain columns."""
    return _GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def rich_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> RichTable:
    """Return columns with colours, to print or to put into a live view."""
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(box=None, pad_edge=False, header_style="bold", padding=(0, len(_GAP), 0, 0))
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=style_of(cell)) for cell in row))
    return table


def style_of(cell: str) -> str:
    """Return the colour of a cell: green for what is well, yellow for what is on its way, red for what needs somebody."""
    if cell in GOOD_REASONS:
        return "green"
    if cell in _WAITING_REASONS:
        return "yellow"
    return "red" if cell in {"False", "Warning", "BoardLost"} or cell.endswith(("Failed", "Exceeded", "BackOff", "Missing")) else ""
