"""Samples: the figures of an outage, kept until the controller has them.

In: readings of the agent's own metrics, once a minute while there is no session. Out: samples with their ages, oldest first, for the
session. `agent/outage.py` takes them, `agent/session/pump.py` carries them. Prometheus asks a board for its metrics; while nobody can
reach the board nobody asks, and this is what fills the gap afterwards.

The ring is bounded by number and by bytes; the oldest samples make room and are counted.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from agent.moments import Moment, Moments
from rkfleet.metric_names import (
    ASSIGNMENT_NUMBER,
    GENERATION_TOKENS,
    PROMPT_TOKENS,
    REQUESTS,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    WORKER_EXITS,
    WORKERS,
)
from rkfleet.metrics import Metrics
from rkfleet.report import SAMPLES_PER_REPORT_MAX, SERIES_LENGTH_MAX, SERIES_MAX, Sample

__all__ = ["SAMPLES_MAX", "SAMPLE_SECONDS", "Kept", "Samples", "read_series"]

SAMPLE_SECONDS: Final = 60.0  # A dashboard of a day shows it as a line; a board writes two figures a second to its disk.
SAMPLES_MAX: Final = 1440  # A day. What happened before that is no incident any more.
RING_BYTES_MAX: Final = 512 << 10  # A day of 25 series, in an agent that is to stay within 60 MiB.
SAMPLE_BYTES: Final = 160  # A sample without its values: struct, moment, array, place in the ring.
BOARD_PREFIX: Final = "rkfleet_board_"  # What the machine says of itself: memory, storage, temperatures.

_NAMES: Final = frozenset({
    one.name for one in (
        ASSIGNMENT_NUMBER, WORKERS, WORKER_EXITS, REQUESTS, REQUESTS_RUNNING, REQUESTS_WAITING, PROMPT_TOKENS, GENERATION_TOKENS,
    )
})  # fmt: skip


class Kept(msgspec.Struct, frozen=True, gc=False):
    """One sample: `values[i]` is of `series[i]`; samples in a row share one tuple of series."""

    sequence: int
    moment: Moment
    series: tuple[str, ...]
    values: array[float]

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        return SAMPLE_BYTES + 8 * len(self.values)


class Samples:
    """The ring.

    Attributes:
        dropped: Samples lost to the bounds, or to an age that cannot be known, since the agent started.
    """

    def __init__(self, moments: Moments) -> None:
        """Take what tells moments and ages."""
        self._moments: Final = moments
        self._kept: Final[deque[Kept]] = deque()
        self._size_bytes = 0
        self._series: tuple[str, ...] = ()
        self._sequence = 0
        self.dropped = 0

    @property
    def newest(self) -> int:
        """Sequence of the newest sample that nobody has taken yet; 0 when there is none."""
        return self._kept[-1].sequence if self._kept else 0

    @property
    def kept(self) -> tuple[Kept, ...]:
        """Everything that nobody has taken yet, oldest first."""
        return tuple(self._kept)

    def take(self, readings: Mapping[str, float]) -> None:
        """Keep these figures as those of this moment."""
        self.restore((Kept(self._sequence + 1, self._moments.now(), tuple(readings), array("d", readings.values())),))

    def restore(self, samples: Iterable[Kept]) -> None:
        """Keep samples that were taken before, with the sequences that they had."""
        for sample in samples:
            series = self._series = self._series if sample.series == self._series else sample.series
            self._kept.append(msgspec.structs.replace(sample, series=series))
            self._size_bytes += sample.size_bytes
            self._sequence = max(self._sequence, sample.sequence)
        while len(self._kept) > SAMPLES_MAX or self._size_bytes > RING_BYTES_MAX:
            self._forget_oldest()
            self.dropped += 1

    def oldest(self) -> tuple[Sample, ...]:
        """Return as many of the oldest samples as a report carries; those whose age cannot be known are dropped."""
        found: list[Sample] = []
        for sample in self.kept:
            age = self._moments.age_seconds(sample.moment)
            if age is None and not found:
                self._forget_oldest()
                self.dropped += 1
            elif age is not None:
                readings = tuple(zip(sample.series, sample.values, strict=True))
                found.append(Sample(sequence=sample.sequence, age_seconds=age, readings=readings))
            if len(found) == SAMPLES_PER_REPORT_MAX:
                break
        return tuple(found)

    def acknowledge(self, sequence: int) -> None:
        """Forget the samples up to and including this sequence: somebody else keeps them now."""
        while self._kept and self._kept[0].sequence <= sequence:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        self._size_bytes -= self._kept.popleft().size_bytes


def read_series(metrics: Metrics) -> dict[str, float]:
    """Return the figures that are worth keeping over an outage, by series, the machine's own first; at most `SERIES_MAX`."""
    found: dict[str, float] = {}
    for family in sorted(metrics.families(), key=lambda one: not one.name.startswith(BOARD_PREFIX)):
        for sample in family.samples:
            series = _series(sample.name, sample.labels)
            if (sample.name in _NAMES or sample.name.startswith(BOARD_PREFIX)) and len(series) <= SERIES_LENGTH_MAX:
                found[series] = sample.value
    return dict(list(found.items())[:SERIES_MAX])


def _series(name: str, labels: Mapping[str, str]) -> str:
    """Return a series as Prometheus' text format writes it."""
    escaped = {label: value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"') for label, value in labels.items()}
    inner = ",".join(f'{label}="{value}"' for label, value in escaped.items())
    return f"{name}{{{inner}}}" if inner else name
