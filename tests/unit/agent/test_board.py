"""Facts of boards, read from file systems that the tests describe."""

from pathlib import Path

import pytest

from agent.board import kernel, soc
from agent.board.facts import STORAGE_STEP_BYTES, SYSTEM_STORAGE_BYTES, Overrides, observe_facts
from agent.board.memory import Memory, observe_memory, under_pressure
from agent.board.storage import observe_storage
from rkfleet.kinds.board import DriverVersion, Runtime

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
        ("radxa,rock-5b\x00rockchip,rk3588\x00", soc.Soc("rk3588", 3)),
        ("x\x00rockchip,rk3588s\x00rockchip,rk3588\x00", soc.Soc("rk3588", 3)),
        ("friendlyarm,nanopi-m5\x00rockchip,rk3576\x00", soc.Soc("rk3576", 2)),
        ("raspberrypi,5-model-b\x00brcm,bcm2712\x00", soc.CPU),
    ],
)
def test_the_chip_is_read_from_the_device_tree(tmp_path: Path, compatible: str, expected: soc.Soc) -> None:
    """A board that is none of ours is a CPU board."""
    assert soc.observe_soc(machine(tmp_path, proc__device_tree__compatible=compatible)) == expected


def test_the_npu_driver_is_the_vendor_module_or_nothing(tmp_path: Path) -> None:
    """A mainline kernel without the module has no driver that the vendor's runtime could use."""
    assert kernel.observe_npu_driver(tmp_path) == DriverVersion()
    machine(tmp_path, sys__module__rknpu__version="0.9.8\n")
    assert kernel.observe_npu_driver(tmp_path) == DriverVersion(family="rknpu", version="0.9.8")


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
