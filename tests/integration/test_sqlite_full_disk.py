"""A disk that has no room: writes are refused with the reason, reads go on, and the store recovers by itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

CHILD = [sys.executable, "-m", "tests.support.store_child"]


def facts_of(command: list[str]) -> dict[str, dict[str, Any]]:
    """Run a child to its end and return what it said."""
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=True)
    return dict(msgspec.json.decode(line) for line in done.stdout.splitlines())


@pytest.mark.processes
def test_a_full_file_system_refuses_writes_and_recovers_without_a_restart(tmp_path: Path) -> None:
    """A real tmpfs of 1 MiB, full."""
    private = ["unshare", "--mount", "--map-root-user"]
    if subprocess.run([*private, "mount", "-t", "tmpfs", "none", str(tmp_path)], stderr=subprocess.PIPE, check=False).returncode:
        pytest.skip("this machine does not let a test mount a tmpfs")
    facts = facts_of([*private, *CHILD, "tmpfs", str(tmp_path)])
    assert facts["full"]["refused"] == facts["full"]["trouble"]
    assert "the disk is full; free space on its file system" in facts["full"]["refused"]
    assert facts["full"]["readable"]
    assert facts["free"] == {"watched": True}
    assert facts["again"] == {"kept": True}


@pytest.mark.processes
def test_a_disk_that_fails_refuses_writes_and_recovers_without_a_restart(tmp_path: Path) -> None:
    """A file size limit makes the kernel refuse the bytes with EFBIG, which SQLite reports as an error of the disk."""
    facts = facts_of([*CHILD, "limit", str(tmp_path)])
    assert facts["full"]["refused"] == facts["full"]["trouble"]
    assert "cannot be written" in facts["full"]["refused"]
    assert facts["full"]["readable"]
    assert facts["free"] == {"watched": True}
    assert facts["again"] == {"kept": True}
