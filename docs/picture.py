"""Draws `docs/images/demo.svg` from `docs/images/demo.txt`: one moment of a real run of the demo on a terminal, with its colours.

To renew the text: `script -qc "stty cols 140 rows 40; .venv/bin/rkfleet demo" demo.tty`, let a terminal emulator show that file up to the
moment at which the panel has lost a board, and copy the screen with its colours; then run `.venv/bin/python docs/picture.py`. The same text
gives the same picture in every terminal. Fonts are those of the reader's machine: the picture loads nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

IMAGES: Final = Path(__file__).parent / "images"
COLUMNS: Final = 140
LINES: Final = 50  # Without it rich would ask the terminal for both.
FONT_FACES: Final = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def draw(transcript: str) -> str:
    """Return the transcript as SVG; lines that begin with `$` are what a person typed."""
    with Path("/dev/null").open("w") as nowhere:
        console = Console(
            record=True, width=COLUMNS, height=LINES, file=nowhere, force_terminal=True, color_system="truecolor", no_color=False
        )
        for line in transcript.splitlines():
            text = Text(line, style="bold") if line.startswith("$ ") else Text.from_ansi(line)
            console.print(text, highlight=False)
    drawn = console.export_svg(title="rkfleet demo: a board is lost while clients are asking", theme=DIMMED_MONOKAI, unique_id="rkfleet")
    return FONT_FACES.sub("", drawn).replace("Fira Code", "ui-monospace")


if __name__ == "__main__":
    (IMAGES / "demo.svg").write_text(draw((IMAGES / "demo.txt").read_text()))
