"""Whatever the files of a board say: nothing crashes, and unknown is neither zero nor well."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.board.diagnosis import diagnose
from agent.board.slowness import slowness
from agent.board.snapshot import BoardSnapshot
from agent.board.telemetry import observe_board
from tests.support.board_tree import MEMORY, BoardTree, rk3576_tree, rk3588_tree

GARBAGE = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"", b"\n", b"\xff\xfe", b"-1", b"0", b"99999999999999999999999", b"1 2 3", b"0-99999999", b"Core0: %", b"NaN", b"1e9"]
    ),
)


def files_of(tree: BoardTree) -> list[Path]:
    return sorted(path for path in tree.root.rglob("*") if path.is_file() or path.is_symlink())


def spoil(tree: BoardTree, draw: st.DataObject) -> None:
    """Remove some files, fill some with garbage, make directories of some, in a healthy tree."""
    files = files_of(tree)
    for path in draw.draw(st.lists(st.sampled_from(files), max_size=12, unique=True)):
        path.unlink()
        match draw.draw(st.sampled_from(["missing", "garbage", "directory", "loop"])):
            case "garbage":
                path.write_bytes(draw.draw(GARBAGE))
            case "directory":
                path.mkdir()
            case "loop":
                path.symlink_to(path)


def check_values(seen: BoardSnapshot) -> None:
    assert all(0.0 <= share <= 1.0 for share in (seen.load or {}).values())
    assert (seen.load is None) == bool(seen.load_problem) or not seen.soc.npu_cores
    for clock in seen.frequencies:
        for hertz in (clock.current_hertz, clock.requested_hertz, clock.limit_hertz, clock.highest_hertz):
            assert hertz is None or hertz > 0
    assert seen.memory_bus_bits is None or seen.memory_bus_bits > 0


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([rk3588_tree, rk3576_tree]))
def test_a_spoiled_tree_is_read_and_diagnosed(data: st.DataObject, make: object) -> None:
    """Each finding that is not ok has a command; figures stay in their bounds."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        tree = make(Path(directory))  # type: ignore[operator]
        spoil(tree, data)
        seen = observe_board(tree.root, tree.data_dir)
    check_values(seen)
    findings = diagnose(seen)
    assert len({one.check for one in findings}) == len(findings)
    assert all(one.sentence and (one.verdict == "ok" or one.command) for one in findings)
    slowness(1.0, 10.0, seen)


# What each check cannot know once this is gone, from the tree's root.
NEEDS = {
    "npu-load": "sys/kernel/debug",
    "cpu-governor": "sys/devices/system/cpu/cpufreq",
    "npu-clock": "sys/class/devfreq",
    "memory-clock": "sys/class/devfreq",
    "throttling": "sys/class/thermal",
    "memory": "proc/meminfo",
    "storage": "proc/self/mountinfo",
    "npu-iommu": "sys/bus/platform",
}


@settings(max_examples=20, deadline=None)
@given(st.sets(st.sampled_from(sorted(set(NEEDS.values())))), st.sampled_from([rk3588_tree, rk3576_tree]))
def test_what_cannot_be_read_is_never_well(gone: set[str], make: object) -> None:
    """Whole parts of the kernel's files are missing, as in a container."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        tree = make(Path(directory))  # type: ignore[operator]
        for name in gone:
            tree.remove(name)
        findings = {one.check: one for one in diagnose(observe_board(tree.root, tree.data_dir))}
    for check, needed in NEEDS.items():
        assert (findings[check].verdict == "unknown") == (needed in gone), findings[check]
