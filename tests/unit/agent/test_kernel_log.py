"""The kernel's log from a moment on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.board.kernel_log import KEPT_LINES_MAX, follow_kernel_log

RESET = "3,1201,912345678,-;RKNPU: soft reset, num: 1\n SUBSYSTEM=platform\n DEVICE=+platform:fdab0000.npu\n"
NOISE = "6,1202,912345679,-;usb 1-1: new high-speed USB device\n"
OOM = "3,1203,912345680,-;Out of memory: Killed process 4242 (python3) total-vm:1kB, anon-rss:2kB\n"


def log(root: Path, *records: str) -> Path:
    file = root / "dev/kmsg"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        opened.writelines(records)
    return root


def test_only_lines_since_the_start_and_about_npu_or_memory_are_told(tmp_path: Path) -> None:
    """An earlier worker's reset is no reason of this one's end."""
    root = log(tmp_path, RESET)
    tail = follow_kernel_log(root)
    assert (tail.absent, tail.lines()) == ("", ())
    log(root, NOISE, RESET.replace("num: 1", "num: 2"), OOM)
    assert tail.lines() == ("RKNPU: soft reset, num: 2", "Out of memory: Killed process 4242 (python3) total-vm:1kB, anon-rss:2kB")
    assert tail.lines() == ()
    tail.close()
    tail.close()
    assert tail.lines() == ()


def test_a_flood_keeps_its_newest_lines(tmp_path: Path) -> None:
    """A loop of domain switches fills the kernel's log and not ours."""
    tail = follow_kernel_log(log(tmp_path))
    log(tmp_path, *(f"6,{number},1,-;RKNPU: switch iommu domain from 0 to {number}\n" for number in range(3 * KEPT_LINES_MAX)))
    lines = tail.lines()
    tail.close()
    assert len(lines) == KEPT_LINES_MAX
    assert lines[-1].endswith(f"to {3 * KEPT_LINES_MAX - 1}")


def test_a_board_without_the_log_or_the_privilege_has_no_lines_and_says_so(tmp_path: Path) -> None:
    """That is no error: most systems keep the log from programs without privileges."""
    tail = follow_kernel_log(tmp_path)
    assert tail.lines() == ()
    assert "cannot be read" in tail.absent
    assert "No such file" in tail.absent
    tail.close()


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK), reason="the kernel's log may not be read here")
def test_the_kernels_own_log_is_read_without_waiting() -> None:
    """With nothing new there is nothing to wait for."""
    tail = follow_kernel_log(Path("/"))
    assert isinstance(tail.lines(), tuple)
    tail.close()
