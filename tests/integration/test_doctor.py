"""`rkfleet doctor`, as a person or a script runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.board_tree import BoardTree, rk3588_tree
from tests.support.terminals import on_a_terminal

ROOT = Path(__file__).resolve().parents[2]


def doctor(tree: BoardTree, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rkfleet.cli.main", "doctor", "--filesystem-root", str(tree.root), "--data-dir", str(tree.data_dir)]
    return subprocess.run([*command, *words], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)


def test_a_healthy_board_is_a_plain_table_and_status_0(tmp_path: Path) -> None:
    """Nothing is coloured in a pipe."""
    done = doctor(rk3588_tree(tmp_path), "--user", "rkfleet")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "✓ npu-driver       rknpu 0.9.8\n" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("checks: 0 failed, 0 unknown")


def test_faults_have_a_mark_a_sentence_a_command_and_status_1(tmp_path: Path) -> None:
    """All at once, for a person and for a program."""
    tree = rk3588_tree(tmp_path).old_driver().no_clock("dram").client(4711, "frigate").no_debugfs()
    done = doctor(tree)
    assert done.returncode == 1
    assert "✗ npu-clients      frigate (process 4711) also has the NPU open" in done.stdout
    assert "try: sudo systemctl status 4711" in done.stdout
    assert "? npu-load         debugfs is not mounted" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("3 failed, 1 unknown")
    body = json.loads(doctor(tree, "-o", "json").stdout)
    assert body["healthy"] is False
    assert [one["check"] for one in body["findings"] if one["verdict"] == "bad"] == ["npu-driver", "npu-clients", "memory-clock"]
    assert body["snapshot"]["driver"]["version"] == "0.8.2"
    assert body["snapshot"]["soc"]["npu_cores"] == 3


def test_a_terminal_gets_colours(tmp_path: Path) -> None:
    tree = rk3588_tree(tmp_path)
    command = [sys.executable, "-m", "agent.doctor", "--filesystem-root", str(tree.root), "--data-dir", str(tree.data_dir)]
    status, shown = on_a_terminal(command, ROOT, os.environ)
    assert status == 0
    assert b"\x1b[32m\xe2\x9c\x93\x1b[0m npu-driver" in shown


def test_a_user_that_does_not_exist_is_not_found(tmp_path: Path) -> None:
    done = doctor(rk3588_tree(tmp_path), "--user", "nobody-here")
    assert done.returncode == 3
    assert done.stderr == "error: user 'nobody-here' of --user is not in /etc/passwd\n"


def test_a_speed_is_compared_with_the_table_and_its_cause_named(tmp_path: Path) -> None:
    """A model that the table does not have is not found."""
    tree = rk3588_tree(tmp_path)
    assert "speed            32 tokens/s, 97% of the table's" in doctor(tree, "--speed", "Qwen3-0.6B,w8a8=32").stdout
    slow = doctor(tree.clock("cpu4", "ondemand", 408000000), "--speed", "Qwen3-0.6B,w8a8=15.8")
    assert slow.returncode == 1
    assert "✗ speed            15.8 tokens/s are 48% of the 32.9 that this chip gives: the fast cores of cpu4" in slow.stdout
    assert doctor(tree, "--speed", "Nothing-1B,w8a8=1").returncode == 3
    wrong = doctor(tree, "--speed", "15.8")
    assert (wrong.returncode, "is not like Qwen3-0.6B,w8a8=15.8" in wrong.stderr) == (2, True)
