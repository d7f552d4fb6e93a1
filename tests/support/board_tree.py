"""Boards as trees of files: `/sys`, `/proc`, debugfs and `/dev` of an RK3588 or RK3576, with a knob for every fault.

`rk3588_tree(tmp_path)` and `rk3576_tree(tmp_path)` build a healthy board below a directory, as a vendor kernel of 2024 shows one; pass
`tree.root` wherever a file system root is taken. Each knob changes one thing and returns the tree, so that faults can be chained:

    tree = rk3588_tree(tmp_path).old_driver("0.8.2").client(4711, "frigate")

Clocks answer: a clock's current frequency is a link to the file that a userspace governor's request is written to, until `stuck` or
`throttle` cuts the link. Everything else is a plain file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["MEMORY", "NOBODY", "BoardTree", "as_nobody", "rk3576_tree", "rk3588_tree"]

NOBODY: Final = 65534
MEMORY: Final = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
"""Where trees by the hundred cost no disk, for `tempfile`."""
RENDER_GID: Final = 105
GI: Final = 1 << 30
CPU: Final = "sys/devices/system/cpu"


class Policy(NamedTuple):
    """A cpufreq policy; kilohertz."""

    cpus: tuple[int, ...]
    highest: int
    lowest: int = 408000


class Chip(NamedTuple):
    """What differs between the chips."""

    soc: str
    cores: int
    npu: str
    gpu: str
    policies: tuple[Policy, ...]
    gpu_highest: int


RK3588: Final = Chip(
    "rk3588", 3, "fdab0000.npu", "fb000000.gpu",
    (Policy((0, 1, 2, 3), 1800000), Policy((4, 5), 2352000), Policy((6, 7), 2352000)), 1000000000,
)  # fmt: skip
RK3576: Final = Chip("rk3576", 2, "27700000.npu", "27800000.gpu", (Policy((0, 1, 2, 3), 2208000), Policy((4, 5, 6, 7), 2304000)), 950000000)


class BoardTree:
    """A board below `root`.

    Attributes:
        root: The file system root.
        data_dir: A directory that lies on the board's disk.
    """

    def __init__(self, root: Path, chip: Chip) -> None:
        self.root = root
        self.chip = chip
        self.data_dir = root / "var/lib/rkfleet"
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._kernel()
        self._npu()
        self._clocks()
        self._thermal()
        self._disk()
        self.load(*([7] + [0] * (chip.cores - 1)))
        self.worker(900, cpus="0-7").libraries()

    # ---- files ----

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def read(self, name: str) -> str:
        return self.path(name).read_text().strip()

    def write(self, name: str, text: str | int) -> BoardTree:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()
        path.write_text(f"{text}\n")
        return self

    def remove(self, name: str) -> BoardTree:
        path = self.path(name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return self

    def link(self, name: str, target: str) -> BoardTree:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        return self

    # ---- a healthy board ----

    def _kernel(self) -> None:
        soc = self.chip.soc
        self.path("proc/device-tree").mkdir(parents=True)
        self.path("proc/device-tree/compatible").write_bytes(f"vendor,board\0rockchip,{soc}\0".encode())
        self.path("proc/device-tree/serial-number").write_bytes(b"f00dcafe\0")
        self.write("proc/sys/kernel/osrelease", "6.1.84-vendor-rk35xx").boot("boot-1").memory(16 * GI, 12 * GI)
        self.write(
            "etc/passwd",
            f"root:x:0:0::/root:/bin/sh\nrkfleet:x:990:990::/var/lib/rkfleet:/bin/false\nnobody:x:{NOBODY}:{NOBODY}::/:/bin/false",
        )
        self.write("etc/group", f"root:x:0:\nrender:x:{RENDER_GID}:rkfleet\nrkfleet:x:990:")

    def _npu(self) -> None:
        self.write("sys/module/rknpu/version", "0.9.8").write("sys/kernel/debug/rknpu/version", "RKNPU driver: v0.9.8")
        for name, driver, of in (("renderD128", "panthor", "mali"), ("renderD129", "RKNPU", f"{self.chip.soc}-rknpu")):
            self.write(f"sys/class/drm/{name}/device/uevent", f"DRIVER={driver}\nOF_NAME=npu\nOF_COMPATIBLE_0=rockchip,{of}")
            self.write(f"dev/dri/{name}", "")
            self.path(f"dev/dri/{name}").chmod(0o660)
            with contextlib.suppress(PermissionError):
                os.chown(self.path(f"dev/dri/{name}"), 0, RENDER_GID)
        self.write(f"sys/bus/platform/devices/{self.chip.npu}/uevent", "DRIVER=RKNPU").iommu(on=True)

    def _clocks(self) -> None:
        self._devfreq("npu", 1000000000, "rknpu_ondemand", (300000000, 600000000, 1000000000))
        self._devfreq("gpu", self.chip.gpu_highest, "simple_ondemand", (300000000, self.chip.gpu_highest))
        self._devfreq("dram", 2112000000, "dmc_ondemand", (528000000, 1068000000, 2112000000))
        for policy in self.chip.policies:
            at = f"{CPU}/cpufreq/policy{policy.cpus[0]}"
            self.write(f"{at}/scaling_governor", "performance").write(f"{at}/scaling_setspeed", policy.highest)
            self.link(f"{at}/scaling_cur_freq", "scaling_setspeed")
            self.write(f"{at}/cpuinfo_max_freq", policy.highest).write(f"{at}/scaling_max_freq", policy.highest)
            self.write(f"{at}/related_cpus", " ".join(map(str, policy.cpus)))
            for cpu in policy.cpus:
                self.write(f"{CPU}/cpu{cpu}/cpuidle/state1/disable", 0)

    def _devfreq(self, name: str, hertz: int, governor: str, offered: tuple[int, ...]) -> None:
        at = self.node(name)
        self.write(f"{at}/governor", governor).write(f"{at}/userspace/set_freq", hertz).link(f"{at}/cur_freq", "userspace/set_freq")
        self.write(f"{at}/available_frequencies", " ".join(map(str, offered)))
        self.write(f"{at}/max_freq", max(offered)).write(f"{at}/min_freq", min(offered))

    def _thermal(self) -> None:
        for number, name in enumerate(("soc-thermal", "bigcore0-thermal", "npu-thermal")):
            at = f"sys/class/thermal/thermal_zone{number}"
            self.write(f"{at}/type", name).write(f"{at}/temp", 47000)
            self.write(f"{at}/trip_point_0_type", "passive").write(f"{at}/trip_point_0_temp", 85000)
            self.write(f"{at}/trip_point_1_type", "critical").write(f"{at}/trip_point_1_temp", 115000)
        for number, name in enumerate(("thermal-cpufreq-0", "thermal-devfreq-0", "pwm-fan")):
            self.write(f"sys/class/thermal/cooling_device{number}/type", name).write(
                f"sys/class/thermal/cooling_device{number}/cur_state", 0
            )

    def _disk(self) -> None:
        self.storage("nvme", megabytes_per_second=900)

    # ---- knobs: identity ----

    def compatible(self, *entries: str) -> BoardTree:
        """Be another chip: `rockchip,rk3588s`."""
        self.path("proc/device-tree/compatible").write_bytes("".join(f"{entry}\0" for entry in entries).encode())
        return self

    def boot(self, boot_id: str) -> BoardTree:
        """Boot anew, as far as the kernel's boot id tells."""
        return self.write("proc/sys/kernel/random/boot_id", boot_id)

    def memory(self, total_bytes: int, available_bytes: int) -> BoardTree:
        return self.write("proc/meminfo", f"MemTotal: {total_bytes // 1024} kB\nMemFree: 1 kB\nMemAvailable: {available_bytes // 1024} kB")

    # ---- knobs: driver and node ----

    def old_driver(self, version: str = "0.8.2") -> BoardTree:
        return self.write("sys/module/rknpu/version", version).write("sys/kernel/debug/rknpu/version", f"RKNPU driver: v{version}")

    def no_driver(self) -> BoardTree:
        """A kernel without any NPU driver."""
        self.remove("sys/module/rknpu").remove("sys/kernel/debug/rknpu").remove("sys/class/drm/renderD129").remove("dev/dri/renderD129")
        self.path("sys/module/loop").mkdir(exist_ok=True)
        return self.remove(f"sys/bus/platform/devices/{self.chip.npu}")

    def mainline(self) -> BoardTree:
        """A mainline kernel: the driver is rocket, there is no devfreq node for NPU and memory, and a render node is there all the same."""
        self.no_driver().write("sys/module/rocket/initstate", "live").write("sys/class/accel/accel0/device/uevent", "DRIVER=rocket")
        self.write("dev/accel/accel0", "").remove(self.node("npu"))
        return self.remove(self.node("dram")).write("proc/sys/kernel/osrelease", "6.18.2")

    def dma_heap(self) -> BoardTree:
        """A driver built with DMA_HEAP: the node is /dev/rknpu and there is no DRM device."""
        self.remove("sys/class/drm/renderD129").remove("dev/dri/renderD129").write("dev/rknpu", "")
        self.path("dev/rknpu").chmod(0o666)
        return self

    def no_node(self) -> BoardTree:
        """The driver runs and its node is not in /dev: a container, mostly."""
        return self.remove("dev/dri/renderD129")

    def forbidden_node(self) -> BoardTree:
        """Root alone may open it. Ask for another account than root's."""
        self.path("dev/dri/renderD129").chmod(0o600)
        return self

    def legacy_symlink(self) -> BoardTree:
        return self.link("dev/rknpu", "/dev/dri/renderD129")

    def iommu(self, *, on: bool) -> BoardTree:
        at = f"sys/bus/platform/devices/{self.chip.npu}/iommu_group"
        return self.link(at, "../../../../kernel/iommu_groups/3") if on else self.remove(at)

    # ---- knobs: load and debugfs ----

    def load(self, *percent: int) -> BoardTree:
        if len(percent) == 1:
            return self.load_text(f"NPU load:  {percent[0]}%")
        return self.load_text("NPU load:  " + " ".join(f"Core{core}: {share:2d}%," for core, share in enumerate(percent)))

    def load_text(self, text: str) -> BoardTree:
        return self.write("sys/kernel/debug/rknpu/load", text)

    def no_debugfs(self) -> BoardTree:
        """Not mounted."""
        return self.remove("sys/kernel/debug")

    def private_debugfs(self) -> BoardTree:
        """Mounted as usual: for root alone. Look with `as_nobody`."""
        self.path("sys/kernel/debug").chmod(0o700)
        return self

    # ---- knobs: clocks ----

    def node(self, name: str) -> str:
        """Return the directory of a clock: npu, gpu, dram, cpu0, cpu4."""
        if name.startswith("cpu"):
            return f"{CPU}/cpufreq/policy{name[3:]}"
        return f"sys/class/devfreq/{ {'npu': self.chip.npu, 'gpu': self.chip.gpu, 'dram': 'dmc'}[name] }"

    def _files(self, name: str) -> tuple[str, str, str, int]:
        """Return the files of governor, request and current frequency, and the hertz of their unit."""
        at = self.node(name)
        if name.startswith("cpu"):
            return f"{at}/scaling_governor", f"{at}/scaling_setspeed", f"{at}/scaling_cur_freq", 1000
        return f"{at}/governor", f"{at}/userspace/set_freq", f"{at}/cur_freq", 1

    def clock(self, name: str, governor: str, hertz: int) -> BoardTree:
        """Let a clock run under a governor at a frequency."""
        governor_file, request, current, unit = self._files(name)
        self.write(governor_file, governor).write(request, hertz // unit)
        return self.link(current, self.path(request).relative_to(self.path(current).parent).as_posix())

    def untuned(self) -> BoardTree:
        """The clocks of a vendor image that nobody tuned: governors of its own, at low frequencies while idle."""
        own = {"npu": ("rknpu_ondemand", 300000000), "gpu": ("simple_ondemand", 300000000), "dram": ("dmc_ondemand", 528000000)}
        own |= {f"cpu{policy.cpus[0]}": ("schedutil", 408000000) for policy in self.chip.policies}
        for name, (governor, hertz) in own.items():
            if self.path(self.node(name)).exists():
                self.clock(name, governor, hertz)
        return self

    def stuck(self, name: str, hertz: int) -> BoardTree:
        """A clock that takes every request and stays where it is."""
        _, _, current, unit = self._files(name)
        return self.write(current, hertz // unit)

    def offered(self, name: str, hertz: int) -> BoardTree:
        """A chip of a lower bin: this is its highest frequency, and where it stays when more is asked for."""
        if name.startswith("cpu"):
            self.write(f"{self.node(name)}/cpuinfo_max_freq", hertz // 1000)
        else:
            self.write(f"{self.node(name)}/available_frequencies", f"{hertz // 2} {hertz}")
        return self.stuck(name, hertz)

    def no_clock(self, name: str) -> BoardTree:
        """A kernel without the node; `dram` is the one that many lack."""
        return self.remove(self.node(name))

    def governor(self, name: str) -> str:
        return self.read(self._files(name)[0])

    def hertz(self, name: str) -> int:
        _, _, current, unit = self._files(name)
        return int(self.read(current)) * unit

    # ---- knobs: heat ----

    def hot(self, celsius: float) -> BoardTree:
        for zone in sorted(self.path("sys/class/thermal").glob("thermal_zone*")):
            (zone / "temp").write_text(f"{round(celsius * 1000)}\n")
        return self

    def throttled(self) -> BoardTree:
        """Hot, and the kernel has lowered the fast cores."""
        fast = f"cpu{self.chip.policies[-1].cpus[0]}"
        self.hot(96).write("sys/class/thermal/cooling_device0/cur_state", 4)
        return self.stuck(fast, 1200000000)

    # ---- knobs: processes ----

    def process(self, pid: int, name: str, *words: str, parent: int = 1, cpus: str = "0-7") -> BoardTree:
        at = f"proc/{pid}"
        self.write(f"{at}/comm", name).write(f"{at}/status", f"Name:\t{name}\nPid:\t{pid}\nCpus_allowed_list:\t{cpus}")
        self.write(f"{at}/stat", f"{pid} ({name}) S {parent} 0 0")
        self.path(f"{at}/cmdline").write_bytes("".join(f"{word}\0" for word in words or (name,)).encode())
        return self.link(f"{at}/fd/0", "/dev/null")

    def client(self, pid: int, name: str, *, parent: int = 1, node: str = "/dev/dri/renderD129") -> BoardTree:
        """A process that has the NPU open."""
        self.process(pid, name, parent=parent).link(f"proc/{pid}/fd/7", node)
        return self.write(f"proc/{pid}/fdinfo/7", "pos:\t0\ndrm-driver:\trknpu\ndrm-client-id:\t4")

    def worker(self, pid: int, *, cpus: str) -> BoardTree:
        """One of the agent's workers, with the cores that it may use; it has the NPU open, as it should."""
        self.process(pid, "python", "/usr/bin/python3", "-m", "agent.workers.child", cpus=cpus)
        return self.link(f"proc/{pid}/fd/7", "/dev/dri/renderD129")

    # ---- knobs: storage, memory bus, libraries ----

    def storage(self, kind: str, *, megabytes_per_second: float | None) -> BoardTree:
        """Lie on an emmc, sd, nvme or ata disk with this measured speed; None for one that nothing was read from."""
        device = {"emmc": "mmcblk0", "sd": "mmcblk1", "nvme": "nvme0n1", "ata": "sda"}[kind]
        part = f"{device}1" if kind == "ata" else f"{device}p2"
        self.write("proc/self/mountinfo", f"22 1 0:20 / /proc rw - proc proc rw\n25 1 259:2 / / rw,noatime shared:1 - ext4 /dev/{part} rw")
        if kind in {"emmc", "sd"}:
            self.write(f"sys/block/{device}/device/type", {"emmc": "MMC", "sd": "SD"}[kind])
        read = 0 if megabytes_per_second is None else 4 * GI
        milliseconds = round(read / (megabytes_per_second * 1e6) * 1000) if megabytes_per_second else 0
        return self.write(f"sys/block/{device}/stat", f"{read // 100000} 0 {read // 512} {milliseconds} 10 0 800 5 0 {milliseconds + 5} 70")

    def memory_bus(self, *channel_bits: int) -> BoardTree:
        """What the kernels that have /proc/dmcdbg tell of each channel."""
        shown = "\n".join(
            f"Channel [{at}]:\nCS Count:\t1\nBus Width:\t{bits} bit\nDieBusWidth:\t16 bit" for at, bits in enumerate(channel_bits)
        )
        return self.write("proc/dmcdbg/dmcinfo", f"DramType:\tLPDDR4X\n\nDramCapacity:\n{shown}")

    def libraries(self, *, rkllm: bool = True, openmp: bool = True) -> BoardTree:
        for name, wanted in (("usr/lib/librkllmrt.so", rkllm), ("usr/lib/aarch64-linux-gnu/libomp.so.5", openmp)):
            self.write(name, "\x7fELF") if wanted else self.remove(name)
        return self


def rk3588_tree(directory: Path) -> BoardTree:
    """Return a healthy RK3588 below `directory`."""
    return BoardTree(directory / "board", RK3588)


def rk3576_tree(directory: Path) -> BoardTree:
    """Return a healthy RK3576 below `directory`."""
    return BoardTree(directory / "board", RK3576)


@contextlib.contextmanager
def as_nobody(tree: BoardTree) -> Iterator[None]:
    """Look at a tree as somebody whom root's files are closed to; every directory above it lets through."""
    if os.geteuid() != 0:
        yield
        return
    above = [one for one in tree.root.parents if one.stat().st_uid == 0 and one != Path("/")]
    modes = [(one, one.stat().st_mode) for one in above]
    for one, mode in modes:
        one.chmod(mode | 0o011)
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)
        for one, mode in modes:
            one.chmod(mode)
