"""Facts of boards, read from file systems that the tests describe."""

from pathlib import Path

import pytest

from agent.board import kernel, npu, soc
from agent.board.facts import STORAGE_STEP_BYTES, SYSTEM_STORAGE_BYTES, Overrides, observe_facts
from agent.board.memory import Memory, observe_memory, under_pressure
from agent.board.snapshot import Driver
from agent.board.storage import observe_storage
from rkfleet.kinds.board import DriverVersion, Runtime
from tests.support.board_tree import rk3576_tree, rk3588_tree

GI = 1 << 30


def machine(root: Path, **files: str) -> Path:
    """Write files below `root`; `__` in a name stands for `/` and `_` for `-` after it where the kernel has one."""
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc/meminfo").write_text("MemTotal:        4194304 kB\nMemFree:          1 kB\nMemAvailable:    2097152 kB\n")
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("device_tree", "device-tree").replace("machine_id", "machine-id")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_a_machine_without_a_device_tree_is_a_cpu_board_and_leaves_memory_to_the_system(tmp_path: Path) -> None:
    """It leaves 1Gi of its memory to the system."""
    root = machine(tmp_path, proc__sys__kernel__osrelease="6.1.84-rk\n")
    facts = observe_facts(root, tmp_path, 0, Overrides(), (Runtime(name="llamacpp", version="1"),))
    assert (facts.soc, facts.npu_cores, facts.memory_bytes, facts.allocatable_memory_bytes) == ("cpu", 0, 4 * GI, 3 * GI)
    assert facts.versions.kernel == "6.1.84-rk"
    assert [runtime.name for runtime in facts.runtimes] == ["llamacpp"]
    assert not facts.simulated


def test_memory_and_artifact_bytes_can_be_overridden(tmp_path: Path) -> None:
    """Several agents on one machine share it by what they are told to report."""
    facts = observe_facts(machine(tmp_path), tmp_path, 0, Overrides(memory_bytes=2 * GI, artifact_limit_bytes=1000), ())
    assert (facts.memory_bytes, facts.allocatable_memory_bytes, facts.allocatable_storage_bytes) == (2 * GI, GI, 1000)
    tiny = observe_facts(machine(tmp_path), tmp_path, 0, Overrides(memory_bytes=GI // 2), ())
    assert tiny.allocatable_memory_bytes == 0


def test_artifacts_may_use_what_is_free_and_what_they_have(tmp_path: Path) -> None:
    """In steps, because free space never rests and every change of a fact is a write."""
    disk = observe_storage(tmp_path)
    facts = observe_facts(machine(tmp_path), tmp_path, 5 * GI, Overrides(), ())
    assert facts.storage_bytes == disk.total_bytes
    assert facts.allocatable_storage_bytes % STORAGE_STEP_BYTES == 0
    assert abs(facts.allocatable_storage_bytes - (disk.free_bytes + 5 * GI - SYSTEM_STORAGE_BYTES)) < GI


@pytest.mark.parametrize(
    ("compatible", "expected"),
    [
        ("radxa,rock-5b\x00rockchip,rk3588\x00", ("rk3588", 3, "rk3588")),
        ("x\x00rockchip,rk3588s\x00rockchip,rk3588\x00", ("rk3588", 3, "rk3588s")),
        ("x\x00rockchip,rk3583\x00rockchip,rk3588s\x00", ("rk3588", 2, "rk3583")),
        ("friendlyarm,nanopi-m5\x00rockchip,rk3576\x00", ("rk3576", 2, "rk3576")),
        ("raspberrypi,5-model-b\x00brcm,bcm2712\x00", soc.CPU[:3]),
    ],
)
def test_the_chip_is_read_from_the_device_tree(tmp_path: Path, compatible: str, expected: tuple[str, int, str]) -> None:
    """A board that is none of ours is a CPU board."""
    assert soc.observe_soc(machine(tmp_path, proc__device_tree__compatible=compatible))[:3] == expected


def test_the_facts_of_a_board_have_its_driver_and_the_cores_that_work(tmp_path: Path) -> None:
    """A chip with a broken NPU core is sold as another one, and the driver shows the cores that are left."""
    tree = rk3588_tree(tmp_path)
    facts = observe_facts(tree.root, tmp_path, 0, Overrides(), ())
    assert (facts.soc, facts.npu_cores) == ("rk3588", 3)
    assert facts.versions.npu_driver == DriverVersion(family="rknpu", version="0.9.8")
    assert observe_facts(tree.load(3, 4).root, tmp_path, 0, Overrides(), ()).npu_cores == 2
    assert observe_facts(tree.no_debugfs().root, tmp_path, 0, Overrides(), ()).npu_cores == 3
    mainline = observe_facts(tree.mainline().root, tmp_path, 0, Overrides(), ())
    assert mainline.versions.npu_driver == DriverVersion(family="rocket")


def test_the_version_of_the_driver_is_told_by_three_files_in_this_order(tmp_path: Path) -> None:
    """The first needs no privilege."""
    tree = rk3576_tree(tmp_path).write("proc/rknpu/version", "RKNPU driver: v0.9.6").write("sys/module/rknpu/version", "0.9.9")
    assert npu.observe_driver(tree.root) == Driver(family="rknpu", version="0.9.9", source="/sys/module/rknpu/version")
    tree.write("sys/module/rknpu/version", "")
    assert npu.observe_driver(tree.root) == Driver(family="rknpu", version="0.9.8", source="/sys/kernel/debug/rknpu/version")
    tree.no_debugfs()
    assert npu.observe_driver(tree.root) == Driver(family="rknpu", version="0.9.6", source="/proc/rknpu/version")
    tree.remove("proc/rknpu")
    assert npu.observe_driver(tree.root) == Driver(family="rknpu")
    assert npu.observe_driver(tree.no_driver().root) == Driver()
    assert npu.observe_driver(tree.remove("sys").root) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NPU load:  Core0:  7%, Core1:  0%, Core2: 100%,", {0: 0.07, 1: 0.0, 2: 1.0}),
        ("NPU load:  42%", {0: 0.42}),
        ("NPU load:  Core0: 429496%, Core1:  1%,", {0: 1.0, 1: 0.01}),
        ("NPU load: none", None),
        ("", None),
    ],
)
def test_the_load_is_read_for_each_core_and_is_never_more_than_all(text: str, expected: dict[int, float] | None) -> None:
    """Drivers before the cap print nonsense, and nothing is not zero."""
    assert npu.parse_load(text) == expected


def test_a_machine_is_told_by_its_chip_before_its_installation(tmp_path: Path) -> None:
    """Cards are cloned with their machine id; chips are not."""
    assert kernel.observe_machine_id(tmp_path) == ""
    machine(tmp_path, etc__machine_id="abc\n")
    assert kernel.observe_machine_id(tmp_path) == "abc"
    machine(tmp_path, proc__device_tree__serial_number="x")
    (tmp_path / "proc/device-tree/serial-number").write_text("f00d\x00")
    assert kernel.observe_machine_id(tmp_path) == "f00d"
    assert kernel.observe_boot_id(machine(tmp_path, proc__sys__kernel__random__boot_id="b-1\n")) == "b-1"


def test_memory_pressure_comes_below_one_border_and_goes_above_another(tmp_path: Path) -> None:
    """A figure at the border does not make the condition flap."""
    assert observe_memory(machine(tmp_path)) == Memory(4 * GI, 2 * GI)
    assert [under_pressure(Memory(100, available), before=False) for available in (4, 5, 6, 9)] == [True, False, False, False]
    assert [under_pressure(Memory(100, available), before=True) for available in (4, 5, 7, 8)] == [True, True, True, False]


def test_a_machine_that_does_not_tell_its_memory_is_an_error(tmp_path: Path) -> None:
    """No figure is invented."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemFree: 1 kB\n")
    with pytest.raises(ValueError, match="no MemTotal"):
        observe_memory(tmp_path)
