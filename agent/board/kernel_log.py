"""What the kernel says from now on: a bounded reader of `/dev/kmsg`.

In: the file system root (tests have a file of their own there). Out: a `KernelTail`, opened when a worker starts and read when it ends, so
that only what happened meanwhile is told. Made in `agent/parts.py`, handed to `agent/workers/backends.py`. Opening the log needs a
privilege on most systems (`kernel.dmesg_restrict`); without it there are no lines, and `absent` says why. That is not an error.

Source: Linux Documentation/ABI/testing/dev-kmsg: each read returns one record `priority,sequence,microseconds,flags;text`, EAGAIN at the
end, EPIPE when records were overwritten before they were read; seeking to the end starts behind the newest record.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from pathlib import Path
from typing import Final

__all__ = ["KEPT_LINES_MAX", "KernelTail", "follow_kernel_log"]

# One record is at most this long (CONSOLE_EXT_LOG_MAX); reading with less fails with EINVAL.
RECORD_BYTES_MAX: Final = 8192
# The ring of a board holds some thousand records; more than these since a worker's start are a flood, whose newest records count.
RECORDS_READ_MAX: Final = 8192
# Of lines that matter. A reset of the NPU is five lines.
KEPT_LINES_MAX: Final = 100
LINE_CHARACTERS_MAX: Final = 400

# The NPU's driver, and kills for want of memory. Everything else of the log is none of ours.
WORDS: Final = ("rknpu", "out of memory", "oom-kill")


class KernelTail:
    """The kernel log from the moment of opening on; `close` it."""

    def __init__(self, path: Path) -> None:
        self._file = -1
        self.absent = ""
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._file, 0, os.SEEK_END)
        except OSError as error:
            self.close()
            self.absent = f"the kernel log cannot be read, so resets of the NPU and kills for memory are not told: {error}"

    def lines(self) -> tuple[str, ...]:
        """Return the lines about the NPU and about memory since the last call, oldest first; the newest `KEPT_LINES_MAX` of them."""
        kept: deque[str] = deque(maxlen=KEPT_LINES_MAX)
        for _ in range(RECORDS_READ_MAX if self._file >= 0 else 0):
            try:
                record = os.read(self._file, RECORD_BYTES_MAX)
            except OSError as error:
                if error.errno == errno.EPIPE:
                    continue  # the oldest records are lost; the next read returns the oldest that is left
                break
            if not record:
                break
            for line in record.decode(errors="replace").splitlines():
                text = line.partition(";")[2] if line[:1].isdigit() and ";" in line else line
                if any(word in text.lower() for word in WORDS):
                    kept.append(text.strip()[:LINE_CHARACTERS_MAX])
        return tuple(kept)

    def close(self) -> None:
        """Give the file back; idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def follow_kernel_log(root: Path) -> KernelTail:
    """Return the kernel log of the machine whose file system is `root`, from now on."""
    return KernelTail(root / "dev/kmsg")
