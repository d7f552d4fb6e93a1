"""Small files of the kernel, read so that what is not known stays not known.

In: a path below the file system root. Out: its text, or which of three things kept it from being read. Every module of this package reads
`/sys`, `/proc` and debugfs through these functions, so that a missing node is never a zero. Only the standard library is imported: the
helper `agent/clocks.py` reads with them too.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, Literal, NamedTuple

__all__ = ["Problem", "Reading", "names_in", "read", "read_int", "read_text"]

READ_BYTES_MAX: Final = 64 << 10  # Nodes of sysfs are at most a page; meminfo, mountinfo and a device tree property stay far below this.
_NUMBER: Final = re.compile(r"-?[0-9]{1,18}")

Problem = Literal["", "missing", "forbidden", "unreadable"]


class Reading(NamedTuple):
    """What a file said. `text` is None exactly where `problem` says why."""

    text: str | None
    problem: Problem = ""


def read(path: Path | str) -> Reading:
    """Read one file, without the white space and NUL bytes around its text; never raises for what the file system does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            body = os.read(descriptor, READ_BYTES_MAX)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return Reading(None, "missing")
    except PermissionError:
        return Reading(None, "forbidden")
    except (OSError, ValueError):  # ValueError: a NUL in the path, which a broken tree can lead to.
        return Reading(None, "unreadable")
    return Reading(body.decode("utf-8", "replace").strip("\x00 \n\t\r"))


def read_text(path: Path | str) -> str | None:
    """Return the text of a file, or None if it cannot be read or is empty."""
    return read(path).text or None


def read_int(path: Path | str) -> int | None:
    """Return the number that is all of a file, or None for anything else."""
    text = read(path).text
    return int(text) if text is not None and _NUMBER.fullmatch(text) else None


def names_in(directory: Path | str) -> tuple[str, ...]:
    """Return the names in a directory, sorted; none if it cannot be listed."""
    try:
        return tuple(sorted(os.listdir(directory)))
    except (OSError, ValueError):
        return ()
