"""Samples of outages at the controller: kept in bounded files, and told as OpenMetrics that Prometheus takes in."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from controller.outages import Outages
from controller.sessions.seams import TimedSample
from rkfleet.errors import Unavailable
from tests.support.disk import LimitedDisk

START = datetime(2026, 11, 25, 12, tzinfo=UTC)
TOKENS = 'rkfleet_generation_tokens_total{namespace="default",model_name="qwen2"}'
LABELS = {"job": "rkfleet-board", "board": "b-1"}


def minutes(first: int, count: int, *, late: float = 0.0) -> list[TimedSample]:
    """Return a sample for each minute; `late` is how much later they are believed to be."""
    return [
        TimedSample(
            START + timedelta(minutes=number, seconds=late), ((TOKENS, 10.0 * number), ("rkfleet_board_storage_free_bytes", 7e9 + number))
        )
        for number in range(first, first + count)
    ]


def points(text: bytes, name: str) -> list[tuple[float, float]]:
    """Return time and value of each sample, as Prometheus' own client reads them."""
    found = [one for family in text_string_to_metric_families(text.decode()) for one in family.samples if one.name == name]
    return [(float(one.timestamp), one.value) for one in found]  # type: ignore[arg-type]


def test_what_was_delivered_is_told_with_its_times_and_once(tmp_path: Path) -> None:
    """Also when the acknowledgement was lost and the same comes again, a little later by the clock, and after a restart."""
    outages = Outages(tmp_path / "outages")
    outages.keep("b-1", "u-1", minutes(0, 60))
    outages.keep("b-1", "u-1", minutes(30, 60, late=0.4))
    again = Outages(tmp_path / "outages")
    again.keep("b-1", "u-1", minutes(60, 31))
    text = again.openmetrics("b-1", "u-1", LABELS)
    found = points(text, "rkfleet_generation_tokens_total")
    assert [value for _, value in found] == [10.0 * number for number in range(91)]
    assert all(abs(moment - (START + timedelta(minutes=number)).timestamp()) < 0.5 for number, (moment, _) in enumerate(found))
    assert b"# TYPE rkfleet_generation_tokens counter\n" in text
    assert b'rkfleet_board_storage_free_bytes{job="rkfleet-board",board="b-1"} 7000000000.0 1795608000.000\n' in text
    assert text.endswith(b"# EOF\n")
    assert again.openmetrics("b-1", "u-2", LABELS) == again.openmetrics("b-2", "u-1", LABELS) == b"# EOF\n"
    assert next((tmp_path / "outages").iterdir()).stat().st_mode & 0o777 == 0o600


def test_files_are_bounded_each_and_together(tmp_path: Path) -> None:
    """The older half of a board's file goes, and the files that were written to longest ago."""
    outages = Outages(tmp_path, file_bytes_max=20_000, all_bytes_max=50_000)
    for hour in range(60):
        outages.keep("b-1", "u", minutes(60 * hour, 60))
    assert (tmp_path / "b-1.u.jsonl").stat().st_size <= 20_000
    found = points(outages.openmetrics("b-1", "u", {}), "rkfleet_generation_tokens_total")
    assert found[-1][1] == 10.0 * (60 * 60 - 1)
    assert 120 < len(found) < 3600
    for number in range(2, 12):
        outages.keep(f"b-{number}", "u", [*minutes(0, 60), *minutes(60, 60)])
        os.utime(tmp_path / f"b-{number}.u.jsonl", (number, number))
    left = sorted(path.name for path in tmp_path.iterdir())
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 50_000
    assert "b-11.u.jsonl" in left
    assert "b-2.u.jsonl" not in left


def test_a_full_disk_is_unavailable_and_nothing_is_acknowledged_that_is_not_kept(tmp_path: Path) -> None:
    """The same again, when there is room, makes it whole: a line that was cut off is passed over."""
    disk = LimitedDisk()
    outages = Outages(tmp_path, disk)
    disk.room = 100
    with pytest.raises(Unavailable, match="samples of board b-1 cannot be written"):
        outages.keep("b-1", "u", minutes(0, 60))
    disk.room = 1 << 20
    outages.keep("b-1", "u", minutes(0, 60))
    assert len(points(outages.openmetrics("b-1", "u", {}), "rkfleet_generation_tokens_total")) == 60


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed; Debian has it in its package prometheus")
def test_prometheus_takes_it_in(tmp_path: Path) -> None:
    """The text becomes blocks, and the blocks hold every sample at its time."""
    outages = Outages(tmp_path / "outages")
    outages.keep("b-1", "u", minutes(0, 60))
    (tmp_path / "outage.om").write_bytes(outages.openmetrics("b-1", "u", LABELS))
    made = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(tmp_path / "outage.om"), str(tmp_path / "data")]
    subprocess.run(made, check=True, capture_output=True)
    (tmp_path / "data" / "wal").mkdir()  # promtool looks for it and finds it in every database that has run
    dump = ["promtool", "tsdb", "dump", "--match={__name__='rkfleet_generation_tokens_total'}", str(tmp_path / "data")]
    said = subprocess.run(dump, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(said) == 60
    assert 'board="b-1"' in said[0]
    assert said[59].endswith(f"590 {round((START + timedelta(minutes=59)).timestamp() * 1000)}")
