"""A program on a terminal that nobody types at."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def on_a_terminal(command: Sequence[str], cwd: Path, environ: Mapping[str, str], seconds_max: float = 60.0) -> tuple[int, bytes]:
    """Run a program to its end; return its status and what the terminal got. Colours are as the program likes."""
    ours, theirs = pty.openpty()
    without = {name: value for name, value in environ.items() if name != "NO_COLOR"}
    running = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=without)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:
        pass  # How a terminal ends.
    finally:
        os.close(ours)
    return running.wait(seconds_max), shown
