"""The disk, as an argument: the few calls that can find it full, and files that are whole or not there.

The registry and the agent's artifact cache write through a `Disk`, so that a test can make the disk full without filling one. Durable
means: bytes flushed, then renamed, then the directory flushed; a kill at any moment leaves the old file, the new file, or none, never a
part of one. All calls block; callers on an event loop make them with `in_thread`.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final, ParamSpec, Protocol, TypeVar

__all__ = [
    "PIECE_BYTES",
    "Disk",
    "SystemDisk",
    "append_lines",
    "flush_directory",
    "in_thread",
    "is_disk_full",
    "move_durably",
    "read_pieces",
    "write_durably",
]

P = ParamSpec("P")
T = TypeVar("T")

PIECE_BYTES: Final = (
    1 << 20
)  # What is read, hashed or written at a time: large enough to cost few calls, small enough for a board's memory.
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Disk(Protocol):
    """What a disk must keep: `write` may take less than it was given, `flush` returns after the bytes are durable."""

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write at the descriptor's position and return how many bytes were taken.

        Raises:
            OSError: As write(2); `is_disk_full` knows which of them mean that there is no room.
        """
        ...

    def flush(self, descriptor: int) -> None:
        """Return when everything written is durable."""
        ...

    def free_bytes(self, path: Path) -> int:
        """Return how much an ordinary user may still write to the file system of `path`."""
        ...


class SystemDisk:
    """The disk of the machine."""

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write, as the system call does."""
        return os.write(descriptor, data)

    def flush(self, descriptor: int) -> None:
        """Flush as fdatasync(2) does, which also flushes a changed length."""
        os.fdatasync(descriptor)

    def free_bytes(self, path: Path) -> int:
        """Look as statvfs(2) does: blocks available to ordinary users."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize


def is_disk_full(error: OSError) -> bool:
    """Return whether the error means that there is no room: a full file system or a used-up quota."""
    return error.errno in _FULL


def flush_directory(path: Path) -> None:
    """Return when the entries of a directory are durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_durably(source: Path, target: Path) -> None:
    """Rename a file whose bytes are durable, replacing what is there, and return when the name is durable too.

    Directories that are missing are made. `source` and `target` must be on one file system.
    """
    missing = target.parent
    made: list[Path] = []
    while not missing.exists():
        made.append(missing)
        missing = missing.parent
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
    flush_directory(target.parent)
    for directory in made:
        flush_directory(directory.parent)


def write_durably(target: Path, body: bytes, scratch: Path, disk: Disk) -> None:
    """Make `target` hold exactly `body`, by way of the file `scratch` on the same file system, which is gone in every case."""
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        rest = memoryview(body)
        while rest:
            rest = rest[disk.write(descriptor, rest) :]
        disk.flush(descriptor)
        move_durably(scratch, target)
    finally:
        os.close(descriptor)
        scratch.unlink(missing_ok=True)


def append_lines(path: Path, body: bytes, disk: Disk, *, flush: bool) -> None:
    """Append whole lines to a file (made with mode 0600); one that a crash or a full disk left without its end stays by itself.

    Args:
        path: The file.
        body: Lines, each with its end.
        disk: Disk that it is on.
        flush: Whether the bytes are durable when this returns.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        rest = memoryview(b"\n" + body if torn else body)
        while rest:
            rest = rest[disk.write(descriptor, rest) :]
        if flush:
            disk.flush(descriptor)
    finally:
        os.close(descriptor)
    if flush and not size:
        flush_directory(path.parent)


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make a blocking call in a thread; when cancelled, wait for it to end first, so that nobody closes a file under it."""
    running = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait((running,))
        if not running.cancelled():
            running.exception()  # Nobody waits for it any more; asyncio would log it as forgotten.
        raise


def read_pieces(path: Path, length: int = -1) -> Generator[bytes, None, None]:
    """Yield the first `length` bytes of a file (all of it when negative) in pieces of PIECE_BYTES."""
    with path.open("rb", buffering=0) as file:
        while length:
            piece = file.read(PIECE_BYTES if length < 0 else min(PIECE_BYTES, length))
            if not piece:
                return
            length -= len(piece)
            yield piece
