"""What a board remembers of an outage: samples taken once a minute, and a small file that outlives the agent.

In: whether there is a session, the agent's metrics, the log and the samples that nobody has taken yet. Out: new samples while there is no
session, and `outage.jsonl` in the data directory. `app.py` makes one, loads it before anything is recorded, and runs it. The log and the
ring stay the only truth while the agent runs; the file is read at its start and never again.

The file is appended to once a minute and not flushed: flash wears by flushes, and the kernel writes within half a minute. So a kill of
the agent loses what happened in the last minute, a cut of the power a half more. What was delivered may stand in the file until it is
removed, when nothing waits any more; the controller knows entries that come twice. A line that cannot be read is passed over.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from agent.moments import Moment
from agent.reports import Recorded, Reports
from agent.samples import SAMPLE_SECONDS, Kept
from rkfleet.clock import Clock
from rkfleet.disk import Disk, append_lines, in_thread, write_durably
from rkfleet.report import LogEntry

__all__ = ["FILE_BYTES_MAX", "Outage"]

FILE_NAME: Final = "outage.jsonl"
FILE_BYTES_MAX: Final = 1 << 20  # Twice what log and ring can hold at once; above it the file is written anew from them.

T = TypeVar("T")

_log = logging.getLogger(__name__)


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the file: the boot that follows, the series that follow, an entry of the log, or a sample.

    Attributes:
        boot: Identity of the boot that moments after this line belong to.
        series: Series of the samples after this line.
        wall: Of the moment.
        at: Of the moment.
        sequence: Of a sample.
        values: Of a sample.
        entry: Of the log.
    """

    boot: str = ""
    series: tuple[str, ...] | None = None
    wall: float = 0.0
    at: float | None = None
    sequence: int = 0
    values: tuple[float, ...] | None = None
    entry: LogEntry | None = None


class Outage:
    """Takes samples and keeps the file; `load`, then `run`."""

    def __init__(
        self,
        directory: Path,
        disk: Disk,
        *,
        boot_id: str,
        clock: Clock,
        reports: Reports,
        read: Callable[[], Mapping[str, float]],
        in_session: Callable[[], bool],
    ) -> None:
        """Take what it keeps.

        Args:
            directory: Data directory of the agent.
            disk: Disk that it is on.
            boot_id: Of this boot of the machine; empty if nothing tells it, and then nothing is known to be of this boot.
            clock: Monotonic time.
            reports: Log and ring.
            read: Returns the figures of this moment by series.
            in_session: Whether somebody listens.
        """
        self._path: Final = directory / FILE_NAME
        self._disk: Final = disk
        self._boot_id: Final = boot_id
        self._clock: Final = clock
        self._reports: Final = reports
        self._read: Final = read
        self._in_session: Final = in_session
        self._written_entry = 0
        self._written_sample = 0
        self._series: tuple[str, ...] | None = None
        self._headed = False
        self._failed = False

    async def load(self) -> None:
        """Give log and ring back what the file holds; a file that cannot be read is as good as none."""
        entries, samples = await in_thread(self._load)
        self._reports.restore(entries)
        self._reports.samples.restore(samples)
        self._written_entry = max((one.entry.sequence for one in entries), default=0)
        self._written_sample = max((one.sequence for one in samples), default=0)
        if entries or samples:
            _log.info("kept from before", extra={"log_entries": len(entries), "samples": len(samples)})

    async def run(self) -> None:
        """Take a sample and keep the file once a minute; when cancelled, keep it once more."""
        try:
            while True:
                await self._clock.sleep(SAMPLE_SECONDS)
                if not self._in_session():
                    self._reports.samples.take(self._read())
                await in_thread(self._save)
        finally:
            self._save()

    def _save(self) -> None:
        """Append what is not in the file yet, or remove the file when nothing waits."""
        entries, samples = self._reports.recorded, self._reports.samples.kept
        try:
            if not entries and not samples:
                self._path.unlink(missing_ok=True)
                self._headed, self._series = False, None
                return
            body = self._body(
                [one for one in entries if one.entry.sequence > self._written_entry],
                [one for one in samples if one.sequence > self._written_sample],
            )
            if body and self._size() + len(body) > FILE_BYTES_MAX:
                self._headed, self._series = False, None
                body = self._body(list(entries), list(samples))
                write_durably(self._path, body, self._path.with_name(f"{FILE_NAME}.new"), self._disk)
            elif body:
                append_lines(self._path, body, self._disk, flush=False)
        except OSError as error:
            if not self._failed:
                _log.warning("what happens without a controller is kept in memory only: %s: %s", self._path, error.strerror or error)
            self._failed, self._headed, self._series = True, False, None
            return
        self._failed = False
        self._written_entry = max((one.entry.sequence for one in entries), default=self._written_entry)
        self._written_sample = max((one.sequence for one in samples), default=self._written_sample)

    def _body(self, entries: list[Recorded], samples: list[Kept]) -> bytes:
        """Return lines for these, after the lines that they need before them."""
        lines: list[_Line] = []
        kept: list[Recorded | Kept] = [*entries, *samples]
        current = [one for one in kept if one.moment.at is not None]
        earlier = [one for one in kept if one.moment.at is None]
        if earlier:
            lines += [_Line(boot="?"), *self._lines(earlier)]
            self._headed = False
        if current and not self._headed:
            lines.append(_Line(boot=self._boot_id or "?"))
            self._headed = True
        lines += self._lines(current)
        return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)

    def _lines(self, kept: list[Recorded | Kept]) -> list[_Line]:
        lines = []
        for one in kept:
            moment = one.moment
            if isinstance(one, Recorded):
                lines.append(_Line(wall=moment.wall, at=moment.at, entry=one.entry))
                continue
            if one.series != self._series:
                self._series = one.series
                lines.append(_Line(series=one.series))
            lines.append(_Line(wall=moment.wall, at=moment.at, sequence=one.sequence, values=tuple(one.values)))
        return lines

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    def _load(self) -> tuple[list[Recorded], list[Kept]]:
        entries: list[Recorded] = []
        samples: list[Kept] = []
        try:
            with self._path.open("rb") as file:
                text = file.read(2 * FILE_BYTES_MAX)
        except OSError:
            return entries, samples
        series: tuple[str, ...] = ()
        here = False
        for raw in text.split(b"\n"):
            try:
                line = msgspec.json.decode(raw, type=_Line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
            moment = Moment(line.wall, line.at if here else None)
            if line.boot:
                here = bool(self._boot_id) and line.boot == self._boot_id
            elif line.series is not None:
                series = line.series
            elif line.entry is not None:
                entries.append(Recorded(line.entry, moment))
            elif line.values is not None and len(line.values) == len(series):
                samples.append(Kept(line.sequence, moment, series, array("d", line.values)))
        return _rising(entries, lambda one: one.entry.sequence), _rising(samples, lambda one: one.sequence)


def _rising(kept: list[T], sequence: Callable[[T], int]) -> list[T]:
    """Return those whose sequence is above that of all before them: a spoiled file must not bring any twice."""
    found: list[T] = []
    for one in kept:
        if sequence(one) > (sequence(found[-1]) if found else 0):
            found.append(one)
    return found
