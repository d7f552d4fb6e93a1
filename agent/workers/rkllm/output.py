"""What the library prints: handed on line by line, and read for the errors that its return codes do not tell.

In: file descriptors 1 and 2 of this process, which the library writes to. Out: the same bytes on the worker's standard error, where the
agent reads them, and the lines that were printed during a run or a load (`Lines`). Used by `worker.py` and `runner.py`.

A `tee` process stands in between. A reader inside this process would lose what a crashing library says last, which is what an exit
message is made of; tee reads on until the pipe is empty and then ends by itself.

The library returns -1 for everything, and 0 for some failures: a model that did not load (1.1 line), matrix products that failed and
gave garbage. What it printed decides then. Sources: https://github.com/airockchip/rknn-llm/issues/156, .../issues/413.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from typing import Final

import msgspec

from rkfleet.errors import FailedPrecondition

__all__ = ["Counts", "Lines", "Output", "TooLong", "counts_in", "error_in", "too_long_in"]

SETTLE_SECONDS: Final = 2.0  # For a line to pass through tee and come back: milliseconds, unless the machine has stopped.
LINE_BYTES_MAX: Final = 2000  # Kept of a line; performance tables and paths are shorter.
LINES_KEPT: Final = 64  # Of one run. A failing product repeats its line thousands of times; the first ones say why.
READ_BYTES: Final = 4096

# What the runtime and the NPU library inside it put before an error.
# Source: https://github.com/airockchip/rknn-llm/issues/195 and others, where users show whole logs.
_ERROR: Final = re.compile(r"(?:^|\s)E ((?:rkllm|RKNN): .*)")
_TOO_LONG: Final = re.compile(r"prompt gather than max context \(prompt: (\d+)(?: tokens)?, max context: (\d+)")
# Rows of the table that RKLLM_LOG_LEVEL=1 prints after each run: stage, total ms, tokens, ms per token, tokens per second.
_ROW: Final = re.compile(r"\b(Prefill|Generate)\s+([\d.]+)\s+(\d+)\s+([\d.]+)\s+([\d.]+)")


class TooLong(msgspec.Struct, frozen=True):
    """The library refused a prompt: its tokens, and what the context holds."""

    prompt_tokens: int
    context_tokens: int


class Counts(msgspec.Struct, frozen=True):
    """Tokens of a run as the library's table gives them."""

    prefill_tokens: int
    generate_tokens: int


class Lines:
    """The lines printed while something ran. The first ones are kept, and the last."""

    def __init__(self, on_error: Callable[[str], None]) -> None:
        """Take whom to tell of the first error, as soon as it is printed."""
        self._on_error: Final = on_error
        self.kept: Final[list[str]] = []
        self.error = ""

    def add(self, line: str) -> None:
        """Take a line in."""
        if len(self.kept) == LINES_KEPT:
            self.kept.pop()
        self.kept.append(line)
        if not self.error and (words := error_in(line)):
            self.error = words
            self._on_error(words)


class Output:
    """The library's output. One object for a process; it takes over descriptors 1 and 2 for good."""

    def __init__(self, log: int, returned: int) -> None:
        """Take descriptors; use `capture`."""
        self._log: Final = log  # where lines of this program go, past the pipe
        self._returned: Final = returned
        self._lines: Lines | None = None
        self._settled: Final = threading.Condition()
        self._mark = b""  # the line that is waited for; empty for none
        self._libc: Final = ctypes.CDLL(None)
        threading.Thread(target=self._read, name="output of the library", daemon=True).start()

    @classmethod
    def capture(cls) -> Output:
        """Take over descriptors 1 and 2 of this process.

        Raises:
            FailedPrecondition: There is no `tee`.
        """
        tee = shutil.which("tee")
        if tee is None:
            raise FailedPrecondition("a worker needs the program tee and finds none on PATH; install coreutils")
        log = os.dup(2)
        from_library, to_tee = os.pipe()
        returned, from_tee = os.pipe()
        # SIGPIPE stays ignored, as Python has it: when this process is gone tee loses one of its two outputs and goes on with the other. It
        # writes to its standard output first, so that what was read here has reached the agent.
        subprocess.Popen(
            [tee, f"/dev/fd/{from_tee}"], stdin=from_library, stdout=log, stderr=subprocess.DEVNULL, pass_fds=(from_tee,),
            restore_signals=False,
        )  # fmt: skip
        os.close(from_library)
        os.close(from_tee)
        os.dup2(to_tee, 1)
        os.dup2(to_tee, 2)
        os.close(to_tee)
        output = cls(log, returned)
        output.line_buffered()
        return output

    def line_buffered(self) -> None:
        """Make C's standard output write each line at once, which on a pipe it does not by itself. Source: setvbuf(3)."""
        line_buffering = 1  # _IOLBF of glibc and musl
        self._libc.setvbuf(ctypes.c_void_p.in_dll(self._libc, "stdout"), None, line_buffering, ctypes.c_size_t(0))

    def log(self, text: str) -> None:
        """Write a line of this program."""
        os.write(self._log, text.encode(errors="replace") + b"\n")

    def collect(self, on_error: Callable[[str], None]) -> Lines:
        """Keep lines from now on, in a new `Lines`; `on_error` is called in the reading thread."""
        self._lines = lines = Lines(on_error)
        return lines

    def settle(self, words: str) -> None:
        """Print a line of our own and return when it, and with it all that the library printed before, was read, or after SETTLE_SECONDS.

        Args:
            words: What happened, and something that no other line has: a number.
        """
        self._libc.fflush(None)
        mark = b"I rkfleet: " + words.encode(errors="replace")
        with self._settled:
            self._mark = mark
        os.write(1, mark + b"\n")
        with self._settled:
            self._settled.wait_for(lambda: not self._mark, SETTLE_SECONDS)
        self._lines = None

    def _read(self) -> None:
        rest = b""
        while piece := os.read(self._returned, READ_BYTES):
            *lines, rest = (rest + piece).split(b"\n")
            rest = rest[:LINE_BYTES_MAX]
            for line in lines:
                self._take(line[:LINE_BYTES_MAX])

    def _take(self, line: bytes) -> None:
        with self._settled:
            if self._mark and line.endswith(self._mark):
                line = line.removesuffix(self._mark)  # what the library has begun and not ended
                self._mark = b""
                self._settled.notify_all()
        lines = self._lines
        if lines is not None and line:
            lines.add(line.decode(errors="replace"))


def error_in(line: str) -> str:
    """Return an error that the library printed, with the name of its part (`rkllm: ...`); empty for other lines."""
    if too_long_in(line) is not None:
        return ""  # the client's mistake, told by its own error
    found = _ERROR.search(line)
    return found[1].strip() if found else ""


def too_long_in(line: str) -> TooLong | None:
    """Return what a line says about a prompt that does not fit."""
    found = _TOO_LONG.search(line)
    return TooLong(int(found[1]), int(found[2])) if found else None


def counts_in(lines: list[str]) -> Counts | None:
    """Return the tokens of the last run from the library's table; None where it printed none."""
    rows = {found[1]: int(found[3]) for line in lines if (found := _ROW.search(line))}
    return Counts(rows.get("Prefill", 0), rows.get("Generate", 0)) if rows else None
