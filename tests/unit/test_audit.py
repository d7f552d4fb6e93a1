"""The audit log's files: whole lines in order, bounded, never lost to a full disk, refusals gathered."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.audit import REFUSALS_MAX, WRITES_MAX, AuditLog
from rkfleet.errors import FailedPrecondition
from rkfleet.metrics import Metrics
from tests.support.clocks import ManualClock
from tests.support.disk import LimitedDisk


def eventually(holds: Callable[[], bool]) -> None:
    """Wait for a level that the log's thread reaches."""
    waited = threading.Event()
    for _ in range(500):
        if holds():
            return
        waited.wait(0.01)
    raise AssertionError("it never holds")


def lines(directory: Path) -> list[dict[str, object]]:
    """Return all lines, oldest first."""
    files = sorted(directory.glob("audit.jsonl*"), key=lambda path: -int(path.suffix[1:]) if path.suffix[1:].isdigit() else 0)
    return [json.loads(line) for file in files for line in file.read_text().splitlines() if line]


def make(directory: Path, disk: LimitedDisk | None = None, **limits: int) -> AuditLog:
    return AuditLog(directory, ManualClock(), Metrics("controller"), disk or LimitedDisk(), **limits)


def test_lines_are_whole_in_order_and_also_there_after_a_restart(tmp_path: Path) -> None:
    """A line that a kill cut off stays alone; files are their owner's."""
    with make(tmp_path / "audit") as log:
        for number in range(1000):
            log.wrote({"n": number})
    file = tmp_path / "audit" / "audit.jsonl"
    assert [line["n"] for line in lines(tmp_path / "audit")] == list(range(1000))
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    with file.open("a") as opened:
        opened.write('{"n": 10')
    with make(tmp_path / "audit") as log:
        log.wrote({"n": 1001})
    assert file.read_text().splitlines()[-2:] == ['{"n": 10', '{"n":1001}']


def test_files_rotate_and_the_oldest_goes(tmp_path: Path) -> None:
    """Size and number are bounded; what is left is the newest, without a gap."""
    with make(tmp_path, file_bytes_max=2000, files_max=3) as log:
        for number in range(3000):
            log.wrote({"n": number})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    kept = [line["n"] for line in lines(tmp_path)]
    assert kept == list(range(3000 - len(kept), 3000))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 * (2000 + 256 * 11)


def test_on_a_full_disk_writes_are_to_be_refused_and_no_line_is_lost(tmp_path: Path) -> None:
    """Also when the disk took a part of a line; what was written meanwhile comes when there is room."""
    disk = LimitedDisk()
    with make(tmp_path, disk) as log:
        disk.room = 13
        log.wrote({"n": 0})
        log.wrote({"n": 1})
        eventually(lambda: "No space left on device" in log.why_not())
        log.wrote({"n": 2})
        disk.room = None
        eventually(lambda: not log.why_not())
    assert [line["n"] for line in lines(tmp_path)] == [0, 1, 2]


def test_what_waits_is_bounded(tmp_path: Path) -> None:
    """Writes are refused before more of them wait; refusals are counted and lost."""
    disk = LimitedDisk()
    disk.room = 0
    with make(tmp_path, disk) as log:
        log.wrote({})
        eventually(lambda: bool(log.trouble))
        for _ in range(WRITES_MAX):
            log.wrote({})
        for _ in range(REFUSALS_MAX + 1):
            log.refused({})
        log.trouble = ""
        assert f"{WRITES_MAX} lines wait" in log.why_not()
        disk.room = None
    assert len(lines(tmp_path)) == 1 + WRITES_MAX + REFUSALS_MAX


def test_refusals_of_one_address_are_one_line_with_a_count(tmp_path: Path) -> None:
    """Whoever guesses tokens fills no disk."""
    with make(tmp_path) as log:
        for number in range(500):
            log.refused({"who": "a", "n": number, "annotations": {"x": "y"}}, "10.0.0.1")
        log.refused({"who": "b"}, "10.0.0.2")
    assert lines(tmp_path) == [
        {"who": "a", "n": 0, "annotations": {"x": "y", "rkfleet.dev/count": "500"}},
        {"who": "b", "annotations": {"rkfleet.dev/count": "1"}},
    ]


def test_a_log_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    """With what to do."""
    (tmp_path / "audit").write_text("")
    with pytest.raises(FailedPrecondition, match="--audit-log ''"), make(tmp_path / "audit"):
        pass


@pytest.mark.processes
def test_a_real_file_system_that_is_full_costs_no_line(tmp_path: Path) -> None:
    """A tmpfs of 1 MiB, full, then freed: the log says so meanwhile and goes on by itself."""
    private = ["unshare", "--mount", "--map-root-user"]
    if subprocess.run([*private, "mount", "-t", "tmpfs", "none", str(tmp_path)], stderr=subprocess.PIPE, check=False).returncode:
        pytest.skip("this machine does not let a test mount a tmpfs")
    child = [*private, sys.executable, "-m", "tests.support.audit_child", str(tmp_path)]
    done = subprocess.run(child, stdout=subprocess.PIPE, timeout=30, check=True)
    facts = json.loads(done.stdout)
    assert "No space left on device" in facts["said"]
    assert facts["whole"]
