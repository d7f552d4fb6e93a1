"""A real disk that can be told to be full: the wrapper counts and refuses, the bytes go where they always go."""

from __future__ import annotations

import errno
from pathlib import Path

from rkfleet.disk import SystemDisk


class LimitedDisk:
    """Takes `room` more bytes, then none; `room` None is endless. `free` overrides what the file system says is free."""

    def __init__(self) -> None:
        self.room: int | None = None
        self.free: int | None = None
        self._disk = SystemDisk()

    def write(self, descriptor: int, data: memoryview) -> int:
        if self.room is None:
            return self._disk.write(descriptor, data)
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self._disk.write(descriptor, data[: self.room])
        self.room -= taken
        return taken

    def flush(self, descriptor: int) -> None:
        self._disk.flush(descriptor)

    def free_bytes(self, path: Path) -> int:
        return self._disk.free_bytes(path) if self.free is None else self.free
