"""What is wrong with a board, cause by cause. Pure.

In: a `BoardSnapshot`. Out: one `Finding` for each check: ok, bad or unknown, each with one sentence, and one command where one helps. The
doctor (`agent/doctor.py`) prints them, `agent/planning/npu.py` makes conditions from the same facts, `slowness.py` picks those that explain
a slow model. Unknown is never ok: what cannot be read is said, with the command that makes it readable.

`CHECKS` is a list so that others can be put beside it: a check is a function from a snapshot to a finding, or to None where it does not
apply.

Sources of the limits: airockchip/rknn-llm (fix_freq scripts, README, issues 27, 271, 315, 409, 413, 532), rknn-toolkit2 issue 534.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Literal

import msgspec

from agent.board.libraries import RKLLM_NAME
from agent.board.snapshot import BoardSnapshot, Frequency, ProcessMask
from agent.failures.facts import version_of
from agent.failures.modes import DRIVER_MIN, DRIVER_WANTED
from rkfleet.quantity import format_bytes, round_bytes

__all__ = [
    "CHECKS",
    "DRIVER_SMALL",
    "NPU_CHECKS",
    "Check",
    "Finding",
    "Verdict",
    "diagnose",
    "heat",
    "hottest",
    "is_throttled",
]

Verdict = Literal["ok", "bad", "unknown"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found.

    Attributes:
        check: Its name, for people and programs: npu-driver.
        sentence: What is so, with the value and the limit.
        command: What to type on the board; empty where nothing needs to be done.
        failure: Row of the table of known failures (`agent/failures/modes.py`) that this is; 0 for none.
    """

    check: str
    verdict: Verdict
    sentence: str
    command: str = ""
    failure: int = 0


Check = Callable[[BoardSnapshot], Finding | None]

# With 0.9.7 the runtime runs and large allocations fail; below, every matrix multiplication may fail while the answer goes on as garbage.
DRIVER_SMALL: Final = (0, 9, 7)
# Where no zone names a trip point: above it, boards with a passive cooler were seen to slow down.
HOT_CELSIUS: Final = 80.0
# A clock's reading differs from the request by rounding to what its PLL can make.
CLOCK_SHARE_MIN: Final = 0.97
# Of the highest frequency; below it a fixed or capped clock costs more than what separates two measurements.
LOW_CLOCK_SHARE: Final = 0.9
# Agent, kernel and the smallest useful model.
MEMORY_AVAILABLE_MIN: Final = 1 << 30
# A model of 1.5 GB then takes half a minute to load. SD cards read 20 to 90 MB/s, eMMC 150 to 300.
STORAGE_BYTES_PER_SECOND_MIN: Final = 60e6
MEGABYTE: Final = 1e6
GIGA: Final = 1e9
# Governors that bring a clock to its highest frequency and keep it there.
_STEADY: Final = frozenset({"performance", "userspace"})
NAMED_MAX: Final = 3  # Of a list that could be long, a sentence names these.


def diagnose(snapshot: BoardSnapshot, checks: Iterable[Check] | None = None) -> tuple[Finding, ...]:
    """Return what each check says, in the order of the list; those that do not apply say nothing."""
    return tuple(found for check in (CHECKS if checks is None else checks) if (found := check(snapshot)) is not None)


# ---- facts that others ask for too ---------------------------------------------------------------------------------------------------


def hottest(snapshot: BoardSnapshot) -> float | None:
    """Return the highest temperature in degrees Celsius, or None without a sensor."""
    return max((zone.celsius for zone in snapshot.zones), default=None)


def heat(snapshot: BoardSnapshot) -> float | None:
    """Return by how many degrees the hottest zone is above what the kernel acts at; negative below, None without a sensor."""
    return max((zone.celsius - (zone.passive_celsius or HOT_CELSIUS) for zone in snapshot.zones), default=None)


def is_throttled(snapshot: BoardSnapshot) -> bool | None:
    """Return whether heat keeps a clock below what was asked of it; None if neither temperature nor cooling can be read."""
    if any(one.state > 0 for one in snapshot.cooling):
        return True
    above = heat(snapshot)
    if above is None:
        return False if snapshot.cooling else None
    return above >= 0 and any(_is_held_down(one) for one in snapshot.frequencies)


def _is_held_down(clock: Frequency) -> bool:
    if clock.requested_hertz and clock.current_hertz and clock.current_hertz < CLOCK_SHARE_MIN * clock.requested_hertz:
        return True
    return bool(clock.limit_hertz and clock.highest_hertz and clock.limit_hertz < CLOCK_SHARE_MIN * clock.highest_hertz)


# ---- the NPU -------------------------------------------------------------------------------------------------------------------------


def _chip(seen: BoardSnapshot) -> Finding:
    if not seen.soc.npu_cores:
        return _unknown(
            "chip", "the device tree names no RK3588 or RK3576, so nothing about an NPU is checked", "cat /proc/device-tree/compatible"
        )
    cores = min(seen.soc.npu_cores, len(seen.load)) if seen.load else seen.soc.npu_cores
    return _ok("chip", f"{seen.soc.model} with {cores} NPU cores, kernel {seen.kernel or 'unknown'}")


def _driver(seen: BoardSnapshot) -> Finding | None:
    if not seen.soc.npu_cores:
        return None
    if seen.driver is None:
        return _unknown("npu-driver", "/sys cannot be read, so the NPU's driver is unknown", "sudo mount -t sysfs sysfs /sys")
    if seen.driver.family == "rocket":
        why = "the mainline kernel's driver rocket runs the NPU, which the vendor's runtime cannot use: it needs a vendor kernel with rknpu"
        return _bad("npu-driver", why, "uname -r", 5)
    if not seen.driver.family:
        return _bad(
            "npu-driver",
            f"the kernel has no NPU driver: it needs a vendor kernel with rknpu {DRIVER_WANTED}",
            "sudo modprobe rknpu; uname -r",
            4,
        )
    found = version_of(seen.driver.version) if seen.driver.version else None
    if found is None:
        return _unknown("npu-driver", "driver rknpu is there and nothing tells its version", "sudo cat /sys/kernel/debug/rknpu/version")
    if found < DRIVER_SMALL:
        why = f"driver rknpu {seen.driver.version} is older than {DRIVER_WANTED}: models load and answer garbage or fail"
        return _bad("npu-driver", f"{why}; a newer kernel image brings a newer driver", "cat /sys/module/rknpu/version", 1)
    if found < DRIVER_MIN:
        why = f"driver rknpu {seen.driver.version} is older than {DRIVER_WANTED}: models of more than about 2 GB may not find memory"
        return _bad("npu-driver", why, "cat /sys/module/rknpu/version", 1)
    return _ok("npu-driver", f"rknpu {seen.driver.version}")


def _has_rknpu(seen: BoardSnapshot) -> bool:
    return seen.driver is not None and seen.driver.family == "rknpu"


def _node(seen: BoardSnapshot) -> Finding | None:
    if not _has_rknpu(seen):
        return None
    if seen.legacy_symlink:
        why = f"/dev/rknpu is a symbolic link to {seen.legacy_symlink}, which makes the runtime take the wrong path and crash"
        return _bad("npu-node", why, "sudo rm /dev/rknpu", 6)
    if any(node.state == "usable" for node in seen.nodes):
        usable = next(node for node in seen.nodes if node.state == "usable")
        return _ok("npu-node", f"{usable.path} can be opened")
    if not seen.nodes or all(node.state == "missing" for node in seen.nodes):
        path = seen.nodes[0].path if seen.nodes else "/dev/dri/renderD*"
        why = f"the driver runs and its node {path} is not there, as in a container that was not given it"
        return _bad("npu-node", why, f"docker run --device {seen.nodes[0].path if seen.nodes else '/dev/dri'} …", 4)
    node = next(one for one in seen.nodes if one.state != "missing")
    if node.state == "dead":
        return _bad("npu-node", f"{node.path} is there and leads to no device", "sudo dmesg | grep -i rknpu", 4)
    why = f"{node.path} may not be opened for reading and writing ({node.permissions})"
    return _bad("npu-node", why, f"sudo usermod -aG $(stat -c %G {node.path}) rkfleet", 4)


def _clients(seen: BoardSnapshot) -> Finding | None:
    if not _has_rknpu(seen) or not seen.nodes:
        return None
    if seen.clients:
        named = ", ".join(f"{one.name} (process {one.pid})" for one in seen.clients[:NAMED_MAX])
        more = f" and {len(seen.clients) - NAMED_MAX} more" if len(seen.clients) > NAMED_MAX else ""
        why = f"{named}{more} also has the NPU open: two programs on it at once can hang the whole board"
        return _bad("npu-clients", why, f"sudo systemctl status {seen.clients[0].pid}", 14)
    if seen.clients is None or seen.hidden_processes:
        why = f"{seen.hidden_processes} processes do not show their files to this user, so another program may have the NPU open"
        return _unknown("npu-clients", why, "sudo rkfleet doctor")
    return _ok("npu-clients", "no other program has the NPU open")


def _load(seen: BoardSnapshot) -> Finding | None:
    if not _has_rknpu(seen):
        return None
    if seen.load is not None:
        return _ok("npu-load", ", ".join(f"core {core} {share:.0%}" for core, share in sorted(seen.load.items())))
    match seen.load_problem:
        case "missing":
            how = "sudo mount -t debugfs -o gid=$(getent group render | cut -d: -f3),mode=750 debugfs /sys/kernel/debug"
            return _unknown("npu-load", "debugfs is not mounted, so the NPU's load is unknown", how, 23)
        case "garbled":
            return _unknown("npu-load", "the driver's load file says nothing that can be read", "sudo cat /sys/kernel/debug/rknpu/load", 23)
        case _:
            how = "sudo mount -o remount,gid=$(getent group render | cut -d: -f3),mode=750 /sys/kernel/debug"
            return _unknown("npu-load", "debugfs is closed to this user, so the NPU's load is unknown", how, 23)


def _iommu(seen: BoardSnapshot) -> Finding | None:
    if not _has_rknpu(seen):
        return None
    if seen.iommu is None:
        return _unknown("npu-iommu", f"/sys/bus/platform/devices/{seen.soc.npu_device} is not there", "sudo dmesg | grep -i 'rknpu iommu'")
    if not seen.iommu:
        why = "the NPU runs without an IOMMU, so that models must fit into the kernel's contiguous memory"
        return _bad("npu-iommu", why, "grep Cma /proc/meminfo")
    return _ok("npu-iommu", "the NPU's addresses are translated")


def _libraries(seen: BoardSnapshot) -> Finding | None:
    if not seen.soc.npu_cores or seen.libraries is None:
        return None
    if not seen.libraries.rkllm:
        why = f"{RKLLM_NAME} is in none of the loader's directories"
        return _bad("runtime-library", why, f"sudo install -m 644 {RKLLM_NAME} /usr/lib/ && sudo ldconfig")
    return _ok("runtime-library", seen.libraries.rkllm)


def _openmp(seen: BoardSnapshot) -> Finding | None:
    if not seen.soc.npu_cores or seen.libraries is None:
        return None
    if not seen.libraries.openmp:
        return _bad("openmp-library", f"libomp.so, which {RKLLM_NAME} loads, is not there", "sudo apt install libomp-dev", 21)
    return _ok("openmp-library", seen.libraries.openmp)


# ---- clocks --------------------------------------------------------------------------------------------------------------------------


def _governors(seen: BoardSnapshot) -> Finding | None:
    if not seen.soc.npu_cores:
        return None
    policies = [one for one in seen.policies if not seen.fast_cpus or set(one.cpus) & seen.fast_cpus]
    if not policies or any(one.governor is None for one in policies):
        return _unknown("cpu-governor", "the kernel shows no governor for the fast cores", "ls /sys/devices/system/cpu/cpufreq")
    for one in policies:
        steady = one.governor in _STEADY and not _is_pinned_low(one)
        if not steady:
            at = "" if one.current_hertz is None else f" and run at {_mega(one.current_hertz)}"
            why = f"the fast cores of {one.name} are under governor {one.governor}{at}: decoding then gets as little as half its tokens/s"
            return _bad("cpu-governor", why, f"echo performance | sudo tee {one.node}/scaling_governor", 18)
    return _ok("cpu-governor", ", ".join(f"{one.name} {one.governor}" for one in policies))


def _is_pinned_low(clock: Frequency) -> bool:
    """Return whether a governor asks for less than the clock has."""
    wanted = clock.requested_hertz if clock.requested_hertz is not None else clock.current_hertz
    return bool(clock.governor == "userspace" and wanted and clock.highest_hertz and wanted < LOW_CLOCK_SHARE * clock.highest_hertz)


def _npu_clock(seen: BoardSnapshot) -> Finding | None:
    if not _has_rknpu(seen):
        return None
    return _device_clock(seen, "npu", "npu-clock", "the NPU")


def _dram_clock(seen: BoardSnapshot) -> Finding | None:
    if not seen.soc.npu_cores:
        return None
    if seen.frequency("dram") is None and any(one.name in {"npu", "gpu"} for one in seen.frequencies):
        why = "the kernel has no node for the memory's clock (dmc), so that it may run slower than the vendor's figures need"
        return _bad("memory-clock", f"{why}; a kernel or boot loader with DDR scaling brings it", "ls /sys/class/devfreq")
    return _device_clock(seen, "dram", "memory-clock", "the memory")


def _device_clock(seen: BoardSnapshot, name: str, check: str, words: str) -> Finding:
    clock = seen.frequency(name)
    if clock is None or clock.governor is None:
        return _unknown(check, f"the kernel does not show the clock of {words}", "ls /sys/class/devfreq")
    if clock.governor == "powersave" or _is_pinned_low(clock):
        at = "an unknown frequency" if clock.current_hertz is None else _mega(clock.current_hertz)
        why = f"governor {clock.governor} keeps {words} at {at}"
        offers = f", it can run at {_mega(clock.highest_hertz)}" if clock.highest_hertz else ""
        return _bad(check, f"{why}{offers}", f"echo performance | sudo tee {clock.node}/governor")
    if clock.current_hertz is None:
        return _unknown(check, f"the frequency of {words} cannot be read", f"cat {clock.node}/cur_freq")
    return _ok(check, f"{clock.governor}, {_mega(clock.current_hertz)} now")


def _throttling(seen: BoardSnapshot) -> Finding | None:
    throttled, celsius = is_throttled(seen), hottest(seen)
    if throttled is None:
        if not seen.soc.npu_cores:
            return None
        return _unknown("throttling", "the kernel shows no thermal zone", "ls /sys/class/thermal")
    at = "" if celsius is None else f" at {celsius:.0f} °C"
    if throttled:
        held = [one.name for one in seen.frequencies if _is_held_down(one)] or [one.name for one in seen.cooling if one.state > 0]
        why = f"heat{at} keeps {', '.join(held[:NAMED_MAX])} below what is asked for: the board needs better cooling"
        return _bad("throttling", why, "grep . /sys/class/thermal/thermal_zone*/temp", 19)
    return _ok("throttling", f"no clock is held down{at}")


# ---- the rest of the machine ---------------------------------------------------------------------------------------------------------


def _cpu_mask(seen: BoardSnapshot) -> Finding | None:
    if not seen.soc.npu_cores or not seen.masks:
        return None
    needed = seen.soc.npu_cores
    for mask in seen.masks:
        if len(mask.cpus) < needed:
            why = f"{mask.name} {mask.pid} may use {_cores(mask)}: the runtime refuses fewer than the NPU's {needed} cores"
            return _bad("cpu-mask", why, f"sudo taskset -apc 0-7 {mask.pid}", 13)
        fast = seen.fast_cpus & set(mask.cpus)
        if seen.fast_cpus and len(fast) < min(needed, len(seen.fast_cpus)):
            first, last = min(seen.fast_cpus), max(seen.fast_cpus)
            why = f"{mask.name} {mask.pid} may use {_cores(mask)}, of which {len(fast)} are fast ones: decoding runs on slow cores"
            return _bad("cpu-mask", why, f"sudo taskset -apc {first}-{last} {mask.pid}")
    return _ok("cpu-mask", ", ".join(f"{mask.name} {mask.pid} may use {_cores(mask)}" for mask in seen.masks[:NAMED_MAX]))


def _cores(mask: ProcessMask) -> str:
    return f"core {mask.cpus[0]}" if len(mask.cpus) == 1 else f"{len(mask.cpus)} cores ({','.join(map(str, mask.cpus))})"


def _memory(seen: BoardSnapshot) -> Finding:
    if seen.memory_available_bytes is None or seen.memory_total_bytes is None:
        return _unknown("memory", "the kernel does not tell how much memory is available", "cat /proc/meminfo")
    shown = f"{round_bytes(seen.memory_available_bytes)} of {round_bytes(seen.memory_total_bytes)} is available"
    if seen.memory_available_bytes < MEMORY_AVAILABLE_MIN:
        return _bad("memory", f"{shown}, less than the {format_bytes(MEMORY_AVAILABLE_MIN)} of a small model", "ps aux --sort=-rss | head")
    return _ok("memory", shown)


def _memory_bus(seen: BoardSnapshot) -> Finding | None:
    wanted = seen.soc.memory_bus_bits
    if not wanted or seen.memory_bus_bits is None:
        return None  # Few kernels tell; `slowness.py` suspects it where speed does.
    if seen.memory_bus_bits < wanted:
        share = f"{seen.memory_bus_bits / wanted:.0%}"
        why = f"the memory bus is {seen.memory_bus_bits} bits wide and the chip's {wanted}: decoding gets about {share} of the tokens/s"
        return _bad("memory-bus", f"{why}, and only another board helps", "cat /proc/dmcdbg/dmcinfo")
    return _ok("memory-bus", f"{seen.memory_bus_bits} bits")


def _storage(seen: BoardSnapshot) -> Finding:
    if seen.disk is None:
        return _unknown("storage", "the disk below the data directory cannot be told", "findmnt -T /var/lib/rkfleet")
    disk, speed = seen.disk, seen.disk.read_bytes_per_second
    what = f"{disk.device}{f' ({disk.kind})' if disk.kind else ''}"
    test = f"sudo dd if={disk.device} of=/dev/null bs=4M count=64 iflag=direct"
    if speed is None:
        return _unknown("storage", f"{what} has not read enough in large pieces since boot to tell its speed", test)
    if speed < STORAGE_BYTES_PER_SECOND_MIN:
        limit = f"{STORAGE_BYTES_PER_SECOND_MIN / MEGABYTE:.0f} MB/s"
        why = f"{what} has read {speed / MEGABYTE:.0f} MB/s since boot, less than {limit}"
        return _bad("storage", f"{why}: a model of 1.5 GB takes {1.5 * GIGA / max(speed, 1.0):.0f} s to load", test)
    return _ok("storage", f"{what}, {speed / MEGABYTE:.0f} MB/s since boot")


# Those that say whether a model can run on the NPU at all; NPUReady follows from them.
NPU_CHECKS: Final[tuple[Check, ...]] = (_driver, _node, _clients)
# The order is that of a person who looks: is there an NPU, can it be used, does it run as fast as it can, has it what else it needs.
CHECKS: Final[tuple[Check, ...]] = (
    _chip, *NPU_CHECKS, _iommu, _libraries, _openmp, _load, _governors, _npu_clock, _dram_clock, _throttling, _cpu_mask,
    _memory, _memory_bus, _storage,
)  # fmt: skip


def _mega(hertz: int) -> str:
    return f"{hertz / MEGABYTE:.0f} MHz"


def _ok(check: str, sentence: str) -> Finding:
    return Finding(check=check, verdict="ok", sentence=sentence)


def _bad(check: str, sentence: str, command: str, failure: int = 0) -> Finding:
    return Finding(check=check, verdict="bad", sentence=sentence, command=command, failure=failure)


def _unknown(check: str, sentence: str, command: str, failure: int = 0) -> Finding:
    return Finding(check=check, verdict="unknown", sentence=sentence, command=command, failure=failure)
