"""Plots of a report, as SVG or PNG: what each block suffers, and quality against speed.

In: figures. Out: files, the same bytes for the same figures. Uses matplotlib without a screen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from rkfleet.errors import FailedPrecondition, Invalid
from toolkit.evaluate.sensitivity import Sensitivity

__all__ = ["FORMATS", "Point", "check_format", "plot_blocks", "plot_choice"]

FORMATS: Final = (".svg", ".png")
Point = tuple[str, float, float]
"""Label, tokens per second, change of perplexity."""

_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Told apart by everybody: Okabe and Ito.
_STYLE: Final[Any] = {"svg.hashsalt": "rkfleet", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}


def plot_blocks(path: Path, title: str, series: Mapping[str, Sequence[Sensitivity]]) -> None:
    """Draw a bar for each block, for one dtype or several.

    Raises:
        Invalid: The file's ending is none of FORMATS.
        FailedPrecondition: It cannot be written.
    """
    with mpl.rc_context(_STYLE):
        figure = _figure(9, 3.2)
        axes = figure.subplots()
        width = 0.8 / max(len(series), 1)
        for index, (label, blocks) in enumerate(series.items()):
            places = [at + index * width for at in range(len(blocks))]
            axes.bar(places, [one.divergence for one in blocks], width=width, label=label, color=_COLOURS[index % len(_COLOURS)])
        names = [one.name.removeprefix("blk.") for one in next(iter(series.values()), ())]
        axes.set_xticks([at + 0.4 - width / 2 for at in range(len(names))], names, fontsize=7)
        axes.set_xlabel("block quantized alone")
        axes.set_ylabel("divergence (nats)")
        axes.set_title(title)
        axes.legend()
        _save(figure, path)


def plot_choice(path: Path, title: str, points: Mapping[str, Sequence[Point]]) -> None:
    """Draw quality against speed, a colour for each chip; errors as `plot_blocks`."""
    with mpl.rc_context(_STYLE):
        figure = _figure(7, 4)
        axes = figure.subplots()
        for index, (soc, found) in enumerate(points.items()):
            colour = _COLOURS[index % len(_COLOURS)]
            axes.scatter([speed for _, speed, _ in found], [100 * loss for _, _, loss in found], label=soc, color=colour)
            for label, speed, loss in found:
                axes.annotate(label, (speed, 100 * loss), xytext=(4, 4), textcoords="offset points", color=colour, fontsize=8)
        axes.set_xlabel("tokens per second on the board (vendor's or predicted)")
        axes.set_ylabel("change of perplexity (%), simulated on a PC")
        axes.set_title(title)
        axes.margins(0.12)  # Room for labels beside the outermost points.
        axes.axhline(0, color="#999999", linewidth=0.8)
        if points:
            axes.legend()
        _save(figure, path)


def check_format(path: Path) -> None:
    """Refuse a file that is no plot.

    Raises:
        Invalid: Its ending is none of FORMATS.
    """
    if path.suffix.lower() not in FORMATS:
        raise Invalid(f"plot {str(path)!r} must end with {' or '.join(FORMATS)}")


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    check_format(path)
    try:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise FailedPrecondition(f"plot {str(path)!r} cannot be written: {error.strerror or error}") from error
