"""The privileged helper as a process of its own, and the agent's side of it."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.board.clock_control import ClockControl
from tests.support.board_tree import NOBODY, BoardTree, as_nobody, rk3588_tree

ROOT = Path(__file__).resolve().parents[2]
ME = pwd.getpwuid(os.getuid()).pw_name


@contextlib.contextmanager
def helper(tree: BoardTree, user: str = ME) -> Iterator[Path]:
    """Run it until the block ends."""
    path, record = tree.root.parent / "clocks.sock", tree.root.parent / "helper/clocks.json"
    command = [sys.executable, "-m", "agent.clocks", "--socket", str(path), "--record", str(record), "--user", user]
    running = subprocess.Popen([*command, "--filesystem-root", str(tree.root)], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert running.stderr is not None
    try:
        assert running.stderr.readline() == f"listening at {path} for root and {user}\n"
        yield path
    finally:
        running.terminate()
        with running.stderr:
            assert running.wait(30) == 0
        assert not path.exists()


def ask(path: Path, words: bytes) -> dict[str, object]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(30)
        channel.connect(str(path))
        channel.sendall(words)
        channel.shutdown(socket.SHUT_WR)
        body = b""
        while piece := channel.recv(4096):
            body += piece
    found: dict[str, object] = json.loads(body)
    return found


def outcomes(answer: dict[str, object]) -> set[str]:
    return {item[4] for item in answer["items"]}  # type: ignore[attr-defined]


def test_three_verbs_and_nothing_else(tmp_path: Path) -> None:
    """What is not a verb, or too long, or nothing, is answered and changes nothing."""
    tree = rk3588_tree(tmp_path).untuned()
    with helper(tree) as path:
        assert path.stat().st_mode & 0o777 == 0o660
        assert outcomes(ask(path, b"read\n")) == {"differs"}
        for words in (b"write /etc/passwd\n", b"apply", b"", b"x" * 5000, b"\xff\n", b"apply now\n"):
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                assert ask(path, words) == {"items": [], "problem": "the verb must be one of read, apply, undo"}
        assert tree.governor("cpu4") == "schedutil"
        assert outcomes(ask(path, b"apply\n")) == {"pinned"}
        assert (tree.governor("cpu4"), tree.hertz("cpu4")) == ("userspace", 2_352_000_000)
    with helper(tree) as path:  # It was stopped and remembers.
        assert outcomes(ask(path, b"undo\n")) == {"restored"}
        assert tree.governor("cpu4") == "schedutil"


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_another_user_is_refused_also_where_the_file_lets_it_in(tmp_path: Path) -> None:
    """Modes of a directory are an operator's affair; who asks is told by the kernel."""
    tree = rk3588_tree(tmp_path).untuned()
    with helper(tree) as path:
        with as_nobody(tree), pytest.raises(PermissionError):
            ask(path, b"apply\n")
        path.chmod(0o666)
        with as_nobody(tree):
            assert ask(path, b"apply\n") == {"items": [], "problem": f"user {NOBODY} may not change clocks"}
    assert tree.governor("cpu4") == "schedutil"


def test_a_silent_caller_does_not_keep_others_waiting(tmp_path: Path) -> None:
    with helper(rk3588_tree(tmp_path)) as path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.connect(str(path))
        assert len(ask(path, b"read\n")["items"]) == 7  # type: ignore[arg-type]


def test_a_chip_without_a_profile_and_a_user_that_does_not_exist_are_said(tmp_path: Path) -> None:
    with helper(rk3588_tree(tmp_path).compatible("brcm,bcm2712")) as path:
        assert "no RK3588 or RK3576" in str(ask(path, b"apply\n")["problem"])
    done = subprocess.run(
        [sys.executable, "-m", "agent.clocks", "--user", "no-such"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (3, "error: user 'no-such' of --user does not exist\n")


def test_one_verb_can_be_done_by_hand(tmp_path: Path) -> None:
    """Without an agent, or before it is taken away."""
    tree = rk3588_tree(tmp_path).untuned().no_clock("dram")

    def once(verb: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "agent.clocks", "--once", verb, "--record", str(tmp_path / "record.json")]
        return subprocess.run([*command, "--filesystem-root", str(tree.root)], capture_output=True, text=True, check=False, cwd=ROOT)

    done = once("apply")
    assert done.returncode == 1
    assert "cpu4  pinned    userspace 2352 MHz\n" in done.stdout
    assert "dram  missing   no such node, wanted userspace 2112 MHz\n" in done.stdout
    assert tree.governor("cpu4") == "userspace"
    assert (once("undo").returncode, tree.governor("cpu4")) == (0, "schedutil")
    again = once("read")
    assert "npu   differs   rknpu_ondemand" in again.stdout
    tree.compatible("brcm,bcm2712")
    assert once("apply").stderr.startswith("error: there is no clock profile for this machine")


def test_the_helper_carries_no_library_and_little_memory(tmp_path: Path) -> None:
    """It is the one program that is root."""
    code = "import agent.clocks, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"msgspec", "asyncio", "rkfleet", "prometheus_client", "ssl"} & set(loaded.stdout.split())
    with helper(rk3588_tree(tmp_path)) as path:
        ask(path, b"read\n")
        pid = next(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal() and str(path).encode() in _command(entry))
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
        assert int(status["VmRSS"].split()[0]) < 24 << 10  # kB; a bare interpreter has 10 MiB.


def _command(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


def test_the_agent_asks_the_helper_and_does_without_where_it_may_write(tmp_path: Path) -> None:
    """Whoever changed a clock puts it back, also when the other one is there by then."""
    tree = rk3588_tree(tmp_path).untuned()
    control = ClockControl(tree.root, tmp_path / "agent/clocks.json", tmp_path / "clocks.sock")
    with helper(tree):
        answer = control.apply()
        assert (answer.by, answer.problem, {item.outcome for item in answer.items}) == ("helper", "", {"pinned"})
        assert not (tmp_path / "agent").exists()
        assert control.undo().by == "helper"
    assert tree.governor("cpu4") == "schedutil"
    assert control.apply().by == "agent"
    assert tree.governor("cpu4") == "userspace"
    with helper(tree):
        assert {item.outcome for item in control.undo().items} == {"restored"}
    assert tree.governor("cpu4") == "schedutil"


def test_a_helper_that_says_nothing_or_nonsense_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agent.board import tuning

    monkeypatch.setattr(tuning, "can_write", lambda root, profile: False)
    tree = rk3588_tree(tmp_path).untuned()
    path = tmp_path / "clocks.sock"
    control = ClockControl(tree.root, tmp_path / "clocks.json", path)
    assert control.apply().problem == f"the agent may not write clocks and there is no helper at {path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        assert "does not answer: Connection refused" in control.apply().problem
        listener.listen(1)
        other = threading.Thread(target=_answer_nonsense, args=(listener,))
        other.start()
        assert "says what cannot be read" in control.apply().problem
        other.join(30)


def _answer_nonsense(listener: socket.socket) -> None:
    caller, _ = listener.accept()
    with caller:
        caller.recv(100)
        caller.sendall(b"nonsense\n")
