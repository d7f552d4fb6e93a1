"""The audit log: one line of JSON for every write and every refusal, in files that are only appended to.

In: records of the API's edge. Out: `audit.jsonl` in a directory, and older files beside it (`audit.jsonl.1` is the one before), bounded in
size and number. One thread writes; the event loop only puts records into a queue. Lines are in the form of `audit.k8s.io/v1` Events at the
level Metadata, stage ResponseComplete, so that tools for those read them; there are no bodies and no secrets.

While the log cannot be written, `trouble` says why, and the API refuses writes: nothing is done that nobody can look up. What was
done before is kept in memory and written once it can be. Lines are handed to the system, not flushed to the disk: they outlive the
controller at once, and the loss of power up to half a minute later.

Refusals for want of a known token are cheap for whoever sends them, so that those of one address within a second become one line with
a count.

Source: Kubernetes `staging/src/k8s.io/apiserver/pkg/apis/audit/v1/types.go`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any, Final

import msgspec

from rkfleet.clock import Clock
from rkfleet.disk import Disk, SystemDisk
from rkfleet.errors import FailedPrecondition
from rkfleet.metric_names import AUDIT_LINES, AUDIT_LINES_LOST
from rkfleet.metrics import Metrics

__all__ = ["AuditLog", "Record"]

FILE_BYTES_MAX: Final = 64 << 20  # About 100,000 lines.
FILES_MAX: Final = 10  # 640 MiB at most; a fleet with a write a second fills it in two weeks.
WRITES_MAX: Final = 4_096  # Lines of writes that wait for the disk, about 3 MB; when so many do, writes are refused.
REFUSALS_MAX: Final = 4_096  # Lines of refusals that wait; what is above is counted and lost.
RETRY_SECONDS: Final = 1.0  # How often a disk that refused is tried again, and how long refusals of one address are gathered.
ADDRESSES_MAX: Final = 1_024  # Whose refusals are gathered at once.
BATCH_LINES: Final = 256  # Written with one call.
CLOSE_SECONDS_MAX: Final = 5.0  # What a stop waits for the last lines.

Record = dict[str, Any]
"""One line, as `audit.k8s.io/v1` names its fields."""

_log: Final = logging.getLogger(__name__)

_COUNT: Final = "rkfleet.dev/count"


class AuditLog:
    """The files and the thread that writes them; use it as a context manager.

    Args:
        directory: Where the files are; it is made, readable by its owner only.
        clock: Tells when gathered refusals are written.
        metrics: Counts lines.
        disk: Disk that they are on.
        file_bytes_max: Size at which a new file is begun.
        files_max: How many files there are at most.
    """

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        metrics: Metrics,
        disk: Disk = SystemDisk(),
        *,
        file_bytes_max: int = FILE_BYTES_MAX,
        files_max: int = FILES_MAX,
    ) -> None:
        self._path: Final = directory / "audit.jsonl"
        self._clock: Final = clock
        self._written: Final = metrics.counter(AUDIT_LINES)
        self._lost: Final = metrics.counter(AUDIT_LINES_LOST)
        self._disk: Final = disk
        self._file_bytes_max: Final = file_bytes_max
        self._files_max: Final = files_max
        self._writes: Final[deque[Record]] = deque()
        self._refusals: Final[deque[tuple[str, Record]]] = deque()
        self._gathered: Final[OrderedDict[str, tuple[float, Record, int]]] = OrderedDict()
        self._rest = b""  # Of lines that the disk did not take; the thread's.
        self._rest_lines = 0
        self._descriptor = -1
        self._size = 0
        self._wake: Final = threading.Event()
        self._closing = False
        self._thread: Final = threading.Thread(target=self._run, name="audit", daemon=True)
        self.trouble = ""

    def __enter__(self) -> AuditLog:
        """Open the file and start the thread.

        Raises:
            FailedPrecondition: The file cannot be opened.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._open()
        except OSError as error:
            raise FailedPrecondition(
                f"the audit log {self._path} cannot be opened: {error.strerror or error}; free the disk, or start with --audit-log ''"
            ) from error
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Write what waits, as far as the disk takes it, and close the file."""
        self._closing = True
        self._wake.set()
        self._thread.join(CLOSE_SECONDS_MAX)
        if lost := self._rest_lines + len(self._writes) + len(self._refusals):
            _log.error("%d lines of the audit log are lost, because it could not be written before the controller stopped", lost)
        if not self._thread.is_alive() and self._descriptor >= 0:
            os.close(self._descriptor)

    def why_not(self) -> str:
        """Return why a write must be refused now; empty when its line will be kept."""
        if self.trouble:
            return self.trouble
        return f"{len(self._writes)} lines wait for the disk" if len(self._writes) >= WRITES_MAX else ""

    def wrote(self, record: Record) -> None:
        """Keep the line of a write; it is never lost while the controller runs."""
        self._writes.append(record)
        self._wake.set()

    def refused(self, record: Record, address: str = "") -> None:
        """Keep the line of a refusal; those of one `address` within a second are one line, with a count."""
        if len(self._refusals) >= REFUSALS_MAX:
            self._lost.inc()
            return
        self._refusals.append((address, record))
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait(RETRY_SECONDS)
            self._wake.clear()
            closing = self._closing
            while self._take(closing=closing):
                pass
            if closing:
                return

    def _take(self, *, closing: bool) -> bool:
        """Write a batch of what waits; return whether there may be more that the disk takes."""
        if not self._rest:
            self._gather(closing=closing)
            records = [self._writes.popleft() for _ in range(min(len(self._writes), BATCH_LINES))]
            while self._refusals and len(records) < BATCH_LINES:
                address, record = self._refusals.popleft()
                if address:
                    self._add(address, record)
                else:
                    records.append(record)
            self._rest = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
            self._rest_lines = len(records)
        if not self._rest:
            return bool(self._refusals or self._writes or (closing and self._gathered))
        try:
            self._write()
        except OSError as error:
            if not self.trouble:
                _log.error("the audit log cannot be written; writes to the API are refused until it can", exc_info=error)
            self.trouble = f"{self._path} cannot be written: {error.strerror or error}"
            return False
        self.trouble = ""
        self._written.inc(self._rest_lines)
        self._rest_lines = 0
        return True

    def _add(self, address: str, record: Record) -> None:
        since, first, count = self._gathered.pop(address, (self._clock.monotonic(), record, 0))
        self._gathered[address] = (since, first, count + 1)

    def _gather(self, *, closing: bool) -> None:
        """Move gathered refusals to the lines when their second is over, and when there are too many of them."""
        until = self._clock.monotonic() - RETRY_SECONDS
        for address, (since, first, count) in tuple(self._gathered.items()):
            if closing or since <= until or len(self._gathered) > ADDRESSES_MAX:
                del self._gathered[address]
                annotations = {**first.get("annotations", {}), _COUNT: str(count)}
                self._refusals.append(("", {**first, "annotations": annotations}))

    def _write(self) -> None:
        """Write the rest; what the disk takes of it is taken off."""
        if self._size >= self._file_bytes_max:
            self._rotate()
        if self._descriptor < 0:
            self._open()
        while self._rest:
            taken = self._disk.write(self._descriptor, memoryview(self._rest))
            self._size += taken
            self._rest = self._rest[taken:]

    def _rotate(self) -> None:
        """Begin a new file; the oldest goes."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        for number in range(self._files_max - 1, 0, -1):
            older = self._path if number == 1 else self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))
        self._size = 0

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _open(self) -> None:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._descriptor).st_size
        if self._size and os.pread(self._descriptor, 1, self._size - 1) != b"\n":
            self._rest = b"\n" + self._rest  # A kill cut the last line off; it stays alone on its line.
