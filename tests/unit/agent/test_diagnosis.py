"""Each cause is named, and nothing else with it; a healthy board has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.board.diagnosis import CHECKS, Finding, diagnose, is_throttled
from agent.board.npu import Account
from agent.board.slowness import slowness
from agent.board.snapshot import BoardSnapshot
from agent.board.telemetry import observe_board
from tests.support.board_tree import GI, BoardTree, as_nobody, rk3576_tree, rk3588_tree

AGENT = Account(990, frozenset({990, 105}))
STRANGER = Account(1000, frozenset({1000}))


def seen(tree: BoardTree, account: Account | None = None) -> BoardSnapshot:
    return observe_board(tree.root, tree.data_dir, account=account)


def found(tree: BoardTree, account: Account | None = None) -> dict[str, Finding]:
    """Return every finding that is not ok, by check."""
    return {one.check: one for one in diagnose(seen(tree, account)) if one.verdict != "ok"}


@pytest.mark.parametrize("make", [rk3588_tree, rk3576_tree])
def test_a_healthy_board_has_no_finding(tmp_path: Path, make: Callable[[Path], BoardTree]) -> None:
    """Every check that applies says ok, also for the agent's unprivileged user."""
    tree = make(tmp_path).memory_bus(*([16] * (4 if make is rk3588_tree else 2)))
    assert found(tree) == found(tree, AGENT) == {}
    assert len(diagnose(seen(tree))) == len(CHECKS)


Seed = Callable[[BoardTree], BoardTree]
FAULTS: list[tuple[str, str, Seed, str]] = [
    ("npu-driver", "is older than 0.9.8", lambda tree: tree.old_driver("0.8.2"), "cat /sys/module/rknpu/version"),
    ("npu-driver", "more than about 2 GB", lambda tree: tree.old_driver("0.9.7"), "cat /sys/module/rknpu/version"),
    ("npu-node", "is not there, as in a container", lambda tree: tree.no_node(), "docker run --device /dev/dri/renderD129"),
    ("npu-node", "may not be opened", lambda tree: tree.forbidden_node(), "usermod -aG"),
    ("npu-node", "is a symbolic link to /dev/dri/renderD129", lambda tree: tree.legacy_symlink(), "sudo rm /dev/rknpu"),
    ("npu-clients", "frigate (process 4711) also has the NPU open", lambda tree: tree.client(4711, "frigate"), "systemctl status 4711"),
    ("npu-iommu", "without an IOMMU", lambda tree: tree.iommu(on=False), "grep Cma"),
    ("runtime-library", "librkllmrt.so is in none", lambda tree: tree.libraries(rkllm=False), "ldconfig"),
    ("openmp-library", "libomp.so", lambda tree: tree.libraries(openmp=False), "apt install libomp"),
    ("npu-load", "debugfs is not mounted", lambda tree: tree.no_debugfs(), "mount -t debugfs -o gid="),
    ("npu-load", "nothing that can be read", lambda tree: tree.load_text("?"), "cat /sys/kernel/debug/rknpu/load"),
    ("cpu-governor", "under governor ondemand", lambda tree: tree.clock("cpu4", "ondemand", 408000000), "policy4/scaling_governor"),
    ("cpu-governor", "under governor userspace", lambda tree: tree.clock("cpu4", "userspace", 408000000), "policy4/scaling_governor"),
    ("npu-clock", "powersave keeps the NPU at 300 MHz", lambda tree: tree.clock("npu", "powersave", 300000000), ".npu/governor"),
    ("memory-clock", "no node for the memory's clock (dmc)", lambda tree: tree.no_clock("dram"), "ls /sys/class/devfreq"),
    ("memory-clock", "powersave keeps the memory", lambda tree: tree.clock("dram", "powersave", 528000000), "dmc/governor"),
    ("throttling", "heat at 96 °C keeps", lambda tree: tree.throttled(), "thermal_zone"),
    ("cpu-mask", "may use core 6", lambda tree: tree.worker(900, cpus="6"), "taskset -apc"),
    ("cpu-mask", "0 are fast ones", lambda tree: tree.worker(900, cpus="0-3"), "taskset -apc 4-7 900"),
    ("memory", "less than the 1Gi", lambda tree: tree.memory(8 * GI, GI // 2), "ps aux"),
    ("storage", "has read 23 MB/s", lambda tree: tree.storage("sd", megabytes_per_second=23), "dd if=/dev/mmcblk1"),
    ("storage", "not read enough in large", lambda tree: tree.storage("emmc", megabytes_per_second=None), "dd if=/dev/mmcblk0"),
]  # fmt: skip


@pytest.mark.parametrize("make", [rk3588_tree, rk3576_tree])
@pytest.mark.parametrize("fault", FAULTS, ids=[f"{one[0]}-{one[1][:16]}" for one in FAULTS])
def test_a_seeded_fault_is_named_alone(tmp_path: Path, make: Callable[[Path], BoardTree], fault: tuple[str, str, Seed, str]) -> None:
    """One sentence that says what it is, one command."""
    check, words, seed, command = fault
    left = found(seed(make(tmp_path)), AGENT)
    assert set(left) == {check}
    assert words in left[check].sentence
    assert command in left[check].command
    assert left[check].verdict == ("unknown" if check == "npu-load" or "not read enough" in words else "bad")


def test_a_mainline_kernel_is_the_cause_and_not_a_missing_node(tmp_path: Path) -> None:
    left = found(rk3588_tree(tmp_path).mainline())
    assert "rocket" in left["npu-driver"].sentence
    assert not {"npu-node", "npu-clients", "npu-load"} & set(left)
    assert "no NPU driver" in found(rk3588_tree(tmp_path / "none").no_driver())["npu-driver"].sentence


def test_a_narrow_memory_bus_is_named_where_the_kernel_tells(tmp_path: Path) -> None:
    """RK3576 has 32 bits by design."""
    left = found(rk3588_tree(tmp_path).memory_bus(16, 16))
    assert "32 bits wide and the chip's 64: decoding gets about 50%" in left["memory-bus"].sentence
    assert found(rk3576_tree(tmp_path / "b").memory_bus(16, 16)) == {}


def test_a_node_opens_for_those_whom_its_mode_lets(tmp_path: Path) -> None:
    """Root asks for the agent's user; a driver with DMA_HEAP has another node."""
    tree = rk3588_tree(tmp_path)
    assert "may not be opened" in found(tree, STRANGER)["npu-node"].sentence
    assert found(tree.dma_heap(), STRANGER) == {}


def test_what_a_user_may_not_read_is_unknown_and_not_well(tmp_path: Path) -> None:
    """Debugfs as every distribution mounts it, and the files of other users' processes."""
    tree = rk3588_tree(tmp_path).private_debugfs().process(1234, "secret")
    tree.path("proc/1234/fd").chmod(0o700)
    with as_nobody(tree):
        left = found(tree, AGENT)
    assert (left["npu-load"].verdict, left["npu-clients"].verdict) == ("unknown", "unknown")
    assert "closed to this user" in left["npu-load"].sentence
    assert "remount,gid=" in left["npu-load"].command
    assert set(left) == {"npu-load", "npu-clients"}


@pytest.mark.parametrize(
    ("stat", "megabytes"),
    [
        ("8000 0 8388608 40000 0 0 0 0 0 60000 0", 107),  # one read at a time, and writes beside them
        ("8000 0 8388608 400000 0 0 0 0 0 20000 0", 215),  # ten reads at a time
        ("800000 0 8388608 400000 0 0 0 0 0 200000 0", None),  # of 5 kB each
        ("8 0 8000 10 0 0 0 0 0 10 0", None),
        ("1 2 3", None),
    ],
)
def test_a_disk_is_as_fast_as_it_was_in_large_pieces(tmp_path: Path, stat: str, megabytes: int | None) -> None:
    disk = seen(rk3588_tree(tmp_path).write("sys/block/nvme0n1/stat", stat)).disk
    assert disk is not None
    assert (disk.device, disk.kind) == ("/dev/nvme0n1", "nvme")
    found = disk.read_bytes_per_second
    assert (None if found is None else round(found / 1e6)) == megabytes


def test_a_library_beside_others_is_found_and_an_encoder_is_a_worker(tmp_path: Path) -> None:
    """As the agent itself looks for them, and starts them."""
    tree = rk3588_tree(tmp_path).libraries(rkllm=False).write("opt/rkfleet/runtimes/1.2.3/librkllmrt.so", "\x7fELF")
    tree.process(901, "python", "/usr/bin/python3", "-m", "agent.workers.rknn.child", "3", cpus="4-7")
    found = seen(tree)
    assert found.libraries is not None
    assert found.libraries.rkllm == "/opt/rkfleet/runtimes/1.2.3/librkllmrt.so"
    assert [(one.pid, one.name) for one in found.masks or ()] == [(900, "worker"), (901, "worker")]


def test_children_of_the_agent_are_no_strangers(tmp_path: Path) -> None:
    """Workers by their command line, whatever they start by their parent; a node of another name by its driver."""
    from agent.board.clients import ClientScan

    tree = rk3588_tree(tmp_path).process(70, "rkfleet-agent").process(71, "sh", parent=70).client(72, "encoder", parent=71)
    tree.client(80, "camera", node="/dev/dri/renderD200")
    scan = ClientScan(tree.root, 70)
    steps = 0
    while scan.clients is None:
        scan.step({"/dev/dri/renderD129"}, 2)
        steps += 1
    assert steps > 3
    assert [(one.pid, one.name) for one in scan.clients] == [(80, "camera")]


def test_throttling_is_heat_and_a_clock_below_its_request_together(tmp_path: Path) -> None:
    """A slow clock on a cool board is no throttling, and heat alone is none either."""
    tree = rk3588_tree(tmp_path)
    assert is_throttled(seen(tree.stuck("cpu4", 1200000000))) is False
    assert is_throttled(seen(tree.hot(91))) is True
    assert is_throttled(seen(rk3588_tree(tmp_path / "hot").hot(91))) is False
    assert is_throttled(seen(tree.remove("sys/class/thermal"))) is None


@pytest.mark.parametrize(
    ("seed", "check"),
    [
        (lambda tree: tree.throttled(), "throttling"),
        (lambda tree: tree.clock("cpu6", "ondemand", 408000000), "cpu-governor"),
        (lambda tree: tree.no_clock("dram"), "memory-clock"),
        (lambda tree: tree.worker(900, cpus="0-3"), "cpu-mask"),
        (lambda tree: tree.client(4711, "frigate"), "npu-clients"),
        (lambda tree: tree.memory_bus(16, 16), "memory-bus"),
    ],
)
def test_a_slow_model_has_its_cause_named(tmp_path: Path, seed: Callable[[BoardTree], BoardTree], check: str) -> None:
    """Half of the table's speed, and nothing failed."""
    slow = slowness(15.8, 32.91, seen(seed(rk3588_tree(tmp_path))))
    assert slow is not None
    assert slow.causes[0].check == check
    assert "15.8 tokens/s are 48% of the 32.9" in slow.sentence
    assert slow.command


def test_a_slow_model_without_a_cause_suspects_the_memory_bus_and_a_fast_one_nothing(tmp_path: Path) -> None:
    healthy = seen(rk3588_tree(tmp_path))
    slow = slowness(16.0, 32.91, healthy)
    assert slow is not None
    assert "32-bit memory bus" in slow.causes[-1].sentence
    assert slowness(30.0, 32.91, healthy) is None
    assert slowness(1.0, 0.0, healthy) is None
    other = slowness(25.0, 32.91, healthy)
    assert other is not None
    assert "no cause can be seen" in other.causes[-1].sentence
