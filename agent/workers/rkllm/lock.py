"""One user of the NPU at a time: a file lock that every worker of a board takes around each run.

In: a path, the same for all workers. It may lie where everybody writes (`/run/lock`): the file is opened as it is if it is there, whoever
made it, and never through a link. Out: a block in which nobody else runs. Called by `runner.py`, in the thread that runs. Several users
at once end in `failed to submit` and sometimes in a frozen board, and the runtime does not take turns by itself. The kernel gives the
lock back when a process ends, however it ends. Source: flock(2); https://github.com/airockchip/rknn-llm/issues/315.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import Final

from rkfleet.errors import FailedPrecondition

__all__ = ["BoardLock"]

MODE: Final = 0o644  # Another user's agent may lock it as well, and nobody writes anything into it.


class BoardLock:
    """The lock of a board; `hold` waits for whoever has it."""

    def __init__(self, path: str) -> None:
        """Open the file, making it if need be; an empty path is a board that nobody shares.

        Raises:
            FailedPrecondition: The file cannot be opened.
        """
        try:
            self._descriptor: Final = _open(path) if path else None
        except OSError as error:
            raise FailedPrecondition(f"lock of the NPU {path} cannot be opened: {error.strerror}") from error

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the lock while the block runs."""
        if self._descriptor is None:
            yield
            return
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)


def _open(path: str) -> int:
    """Open a file for locking, which takes no right to write it; make it if it is not there."""
    how = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, how)
        with contextlib.suppress(FileExistsError):  # another worker was first
            return os.open(path, how | os.O_CREAT | os.O_EXCL, MODE)
