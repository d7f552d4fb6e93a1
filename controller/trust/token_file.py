"""Where tokens are kept: one file with all of them, and beside it a log of what changed since.

In: changes, one token each. Out: the tokens as they were before a crash. `tokens.py` decides and calls; it is apart because joining a fleet
of thousands takes three changes for each board, and writing all tokens for each of them grows with the square of the fleet.

A change is one line of JSON, appended and flushed. After `lines_max` of them all tokens are written anew and the log is emptied; a crash
in between repeats lines over a file that knows them already, which changes nothing. A line without an end was never acknowledged.
Secrets are hashed before they come here; both files are mode 0600.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

from controller.trust.files import write_private
from rkfleet.disk import Disk, flush_directory
from rkfleet.errors import FailedPrecondition, Unavailable

__all__ = ["TokenFile"]

LINES_MAX: Final = 1_000  # 300 kB of log; writing ten thousand tokens takes about as long as appending fifty of these.

Whole = TypeVar("Whole", bound=msgspec.Struct)
Change = TypeVar("Change", bound=msgspec.Struct)


class TokenFile(Generic[Whole, Change]):
    """The two files; one caller at a time.

    Args:
        path: Of the file with all tokens; the log is `<path>.log`.
        whole: Its type.
        change: Type of a line of the log.
        disk: Disk that they are on.
        lines_max: Lines of the log at which it is emptied.
    """

    def __init__(self, path: Path, whole: type[Whole], change: type[Change], disk: Disk, lines_max: int = LINES_MAX) -> None:
        self._path: Final = path
        self._log: Final = path.with_name(f"{path.name}.log")
        self._whole: Final = whole
        self._change: Final = change
        self._disk: Final = disk
        self._lines_max: Final = lines_max
        self._lines = 0
        self._whole_exists = False
        self._torn = False  # The log may end in the middle of a line.

    def load(self) -> Sequence[Whole | Change]:
        """Return what the file holds and the changes since.

        Raises:
            FailedPrecondition: One of them is there and cannot be read.
        """
        whole = self._read(self._path)
        self._whole_exists = bool(whole)
        lines = self._read(self._log).splitlines(keepends=True)
        self._torn = bool(lines) and not lines[-1].endswith(b"\n")
        ended = lines[:-1] if self._torn else lines
        self._lines = len(ended)
        try:
            loaded = msgspec.json.decode(whole, type=self._whole) if whole else self._whole()
            return [loaded, *(msgspec.json.decode(line, type=self._change) for line in ended)]
        except msgspec.MsgspecError as error:
            raise FailedPrecondition(f"{self._path} cannot be read, or {self._log.name} beside it: {error}") from error

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[Sequence[Whole | Change]]:
        """Nobody else changes the files of one controller, so there is never anything that others changed."""
        yield ()

    def close(self) -> None:
        """Nothing is held open."""

    @property
    def wants_whole(self) -> bool:
        """Whether the next change should be kept by `replace` instead of `append`."""
        return self._torn or not self._whole_exists or self._lines >= self._lines_max

    def append(self, change: Change) -> None:
        """Keep one change; durable when this returns.

        Raises:
            Unavailable: The file system refuses; nothing is kept.
        """
        rest = memoryview(msgspec.json.encode(change) + b"\n")
        is_new = not self._log.exists()
        try:
            descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                self._torn = True
                while rest:
                    rest = rest[self._disk.write(descriptor, rest) :]
                self._disk.flush(descriptor)
            finally:
                os.close(descriptor)
            if is_new:
                flush_directory(self._log.parent)
        except OSError as error:
            raise Unavailable(f"{self._log} cannot be written: {error.strerror or error}") from error
        self._torn = False
        self._lines += 1

    def replace(self, whole: Whole) -> None:
        """Keep all tokens and empty the log; durable when this returns.

        Raises:
            Unavailable: The file system refuses; what was kept before stands.
        """
        write_private(self._path, msgspec.json.format(msgspec.json.encode(whole), indent=2), self._disk)
        try:
            self._log.unlink(missing_ok=True)
            flush_directory(self._log.parent)
        except OSError as error:
            raise Unavailable(f"{self._log} cannot be emptied: {error.strerror or error}") from error
        self._lines, self._torn, self._whole_exists = 0, False, True

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise FailedPrecondition(f"{path} cannot be read: {error.strerror or error}") from error
