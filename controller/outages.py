"""Samples of outages: kept in files, and told as OpenMetrics for Prometheus to take in late.

In: samples that a board delivers after it was away, with their times by this controller's clock. Out: one file per Board, and its text
for `GET /samples/...` (`api/samples.py`). Sessions give, the API reads; it stands apart from the store because these are measurements,
not objects, and from Prometheus because that takes in samples of the past only as blocks which it is given (`promtool tsdb
create-blocks-from openmetrics`).

A file is `<board>.<uid>.jsonl`: a line for each delivery, appended and flushed before the board may forget its copy. Half of a file that
grew too large goes, the older half. All files together are bounded too; those that were written to longest ago go first. A line that
cannot be read is passed over.

Source of the text: OpenMetrics 1.0, https://prometheus.io/docs/specs/om/open_metrics_spec/.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

import msgspec

from rkfleet.disk import Disk, SystemDisk, append_lines, write_durably
from rkfleet.errors import Unavailable
from rkfleet.metric_names import ALL

__all__ = ["ALL_BYTES_MAX", "FILE_BYTES_MAX", "Outages", "Timed"]

FILE_BYTES_MAX: Final = 2 << 20  # About ten days away, with 25 series a minute.
ALL_BYTES_MAX: Final = 1 << 30  # A day of outage of 5,000 boards.
APART_SECONDS: Final = 1.0  # Samples are a minute apart; one that comes twice is counted back from two moments and differs by less.

_log = logging.getLogger(__name__)
_TYPES: Final[Mapping[str, str]] = {entry.name: entry.type for entry in ALL}


class Timed(Protocol):
    """Figures at a moment."""

    @property
    def taken(self) -> datetime: ...  # noqa: D102 (said above)

    @property
    def readings(self) -> tuple[tuple[str, float], ...]: ...  # noqa: D102


class _Point(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A sample: when, in milliseconds since 1970, and the places of its series in the delivery, with their values."""

    milliseconds: int
    places: tuple[int, ...]
    values: tuple[float, ...]


class _Delivery(msgspec.Struct, frozen=True):
    series: tuple[str, ...]
    points: tuple[_Point, ...]


class Outages:
    """The files of one directory; methods block for the disk and may be called from any thread."""

    def __init__(
        self, directory: Path, disk: Disk = SystemDisk(), *, file_bytes_max: int = FILE_BYTES_MAX, all_bytes_max: int = ALL_BYTES_MAX
    ) -> None:
        """Take the directory, which need not exist, and the bounds."""
        self._directory: Final = directory
        self._disk: Final = disk
        self._file_bytes_max: Final = file_bytes_max
        self._all_bytes_max: Final = all_bytes_max
        self._lock: Final = threading.Lock()
        self._newest: Final[dict[Path, int]] = {}

    def keep(self, board: str, uid: str, samples: Sequence[Timed]) -> None:
        """Keep the samples of a Board, oldest first; durable when this returns. Those that are there already are passed over.

        Raises:
            Unavailable: The disk refuses; the same may be given again.
        """
        path = self._path(board, uid)
        with self._lock:
            try:
                self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                newest = self._newest.get(path)
                if newest is None:
                    newest = max((point.milliseconds for one in _read(path) for point in one.points), default=0)
                fresh = [one for one in samples if _milliseconds(one.taken) > newest + APART_SECONDS * 1000]
                if fresh:
                    self._append(path, msgspec.json.encode(_delivery(fresh)) + b"\n")
                    newest = _milliseconds(fresh[-1].taken)
                self._newest[path] = newest
            except OSError as error:
                raise Unavailable(f"samples of board {board} cannot be written to {path}: {error.strerror or error}") from error

    def openmetrics(self, board: str, uid: str, labels: Mapping[str, str]) -> bytes:
        """Return everything that is kept of a Board as OpenMetrics, each sample with its time.

        Args:
            board: Its name.
            uid: Its uid: samples of another Board of that name are not this one's.
            labels: Given to every series, as the scrape configuration gives them.
        """
        series: dict[str, list[tuple[int, float]]] = {}
        for delivery in _read(self._path(board, uid)):
            for point in delivery.points:
                for place, value in zip(point.places, point.values, strict=True):
                    series.setdefault(delivery.series[place], []).append((point.milliseconds, value))
        return "".join(_text(series, labels)).encode()

    def _path(self, board: str, uid: str) -> Path:
        return self._directory / f"{board}.{uid}.jsonl"

    def _append(self, path: Path, body: bytes) -> None:
        size = path.stat().st_size if path.exists() else 0
        if size + len(body) > self._file_bytes_max:
            lines = path.read_bytes().splitlines(keepends=True) if size else []
            body = b"".join(_newer_half(lines)) + body
            write_durably(path, body, path.with_name(f".{path.name}.partial"), self._disk)
            _log.warning("older samples of an outage went", extra={"file": path.name})
            return
        self._make_room(path, len(body))
        append_lines(path, body, self._disk, flush=True)

    def _make_room(self, path: Path, bytes_more: int) -> None:
        """Remove files of other boards until there is room for so many bytes, those first that were written to longest ago."""
        found = [(one.stat().st_mtime_ns, one.stat().st_size, one) for one in self._directory.glob("*.jsonl")]
        total = sum(size for _, size, _ in found) + bytes_more
        for _, size, one in sorted(found):
            if total <= self._all_bytes_max:
                return
            if one != path:
                one.unlink()
                self._newest.pop(one, None)
                total -= size
                _log.warning("samples of an outage went", extra={"file": one.name})


def _newer_half(lines: list[bytes]) -> list[bytes]:
    kept: list[bytes] = []
    room = sum(len(line) for line in lines) // 2
    for line in reversed(lines):
        room -= len(line)
        if room < 0:
            break
        kept.insert(0, line)
    return kept


def _delivery(samples: Iterable[Timed]) -> _Delivery:
    places: dict[str, int] = {}
    points = []
    for one in samples:
        for name, _ in one.readings:
            places.setdefault(name, len(places))
        at = tuple(places[name] for name, _ in one.readings)
        points.append(_Point(_milliseconds(one.taken), at, tuple(value for _, value in one.readings)))
    return _Delivery(tuple(places), tuple(points))


def _read(path: Path) -> Iterator[_Delivery]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            delivery = msgspec.json.decode(line, type=_Delivery)
        except msgspec.MsgspecError:
            continue
        known = range(len(delivery.series))
        if all(len(one.places) == len(one.values) and all(place in known for place in one.places) for one in delivery.points):
            yield delivery


def _text(series: Mapping[str, list[tuple[int, float]]], labels: Mapping[str, str]) -> Iterator[str]:
    """Yield the text: all series of a metric together, the samples of a series in the order of their times."""
    family = ""
    for name in sorted(series, key=lambda one: (one.partition("{")[0], one)):
        metric, _, rest = name.partition("{")
        if metric != family:
            family = metric
            type_ = _TYPES.get(metric, "unknown")
            yield f"# TYPE {metric.removesuffix('_total') if type_ == 'counter' else metric} {type_}\n"
        said = ",".join([*(f'{label}="{value}"' for label, value in labels.items()), *([rest.removesuffix("}")] if rest else [])])
        for milliseconds, value in sorted(series[name]):
            yield f"{metric}{{{said}}} {value!r} {milliseconds / 1000:.3f}\n"
    yield "# EOF\n"


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
