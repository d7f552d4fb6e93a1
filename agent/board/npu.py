"""The NPU as the kernel shows it: driver, device nodes, load, IOMMU.

In: the file system root, and for whom a node must open. Out: values of `agent/board/snapshot.py`. Called by `telemetry.py` and `facts.py`.

Sources: drivers/rknpu of the vendor's kernel: `/sys/module/rknpu/version` needs no privilege; debugfs and, with ROCKCHIP_RKNPU_PROC_FS,
procfs show `RKNPU driver: vX.Y.Z` and `NPU load:  Core0:  7%, Core1:  0%, Core2:  0%,` or, with one core, `NPU load:  7%`. With DRM_GEM the
node is `/dev/dri/renderD*`, found by `DRIVER=RKNPU` in its uevent because the number varies; with DMA_HEAP it is `/dev/rknpu`. The mainline
driver is called rocket and makes `/dev/accel/accel*`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from agent.board.readings import Reading, names_in, read, read_text
from agent.board.snapshot import Driver, Node
from agent.board.soc import Soc

__all__ = [
    "Account",
    "observe_driver",
    "observe_iommu",
    "observe_legacy_symlink",
    "observe_load",
    "observe_nodes",
    "parse_load",
    "parse_version",
]

# In the order in which they are asked: what needs no privilege first.
_VERSIONS: Final = ("sys/module/rknpu/version", "sys/kernel/debug/rknpu/version", "proc/rknpu/version")
_LOADS: Final = ("sys/kernel/debug/rknpu/load", "proc/rknpu/load")
_VERSION: Final = re.compile(r"v?(\d{1,4}\.\d{1,4}\.\d{1,4})\b", re.ASCII)
_CORE: Final = re.compile(r"Core(\d{1,2}):\s*(\d{1,18})%", re.ASCII)
_SINGLE: Final = re.compile(r"NPU load:\s*(\d{1,18})%", re.ASCII)

LoadProblem = Literal["", "missing", "forbidden", "unreadable", "garbled"]


class Account(NamedTuple):
    """Somebody who must be able to open a node: user and groups, by number."""

    uid: int
    gids: frozenset[int]


def parse_version(text: str) -> str:
    """Return the `0.9.8` in a version text of any source; empty if there is none."""
    found = _VERSION.search(text)
    return found[1] if found else ""


def parse_load(text: str) -> Mapping[int, float] | None:
    """Return the busy share of each core, or None if the text says nothing.

    Drivers before the cap print shares such as 429496%; a core cannot be busier than always, so they are cut at 1.
    """
    cores = {int(core): min(int(percent), 100) / 100 for core, percent in _CORE.findall(text)}
    if cores:
        return cores
    single = _SINGLE.search(text)
    return {0: min(int(single[1]), 100) / 100} if single else None


def observe_driver(root: Path) -> Driver | None:
    """Return the driver; one without a family if there is none, None if sysfs is not there to ask."""
    if not (root / "sys/module").is_dir() and not (root / "sys/class").is_dir():
        return None
    family = _family(root)
    if family != "rknpu":
        return Driver(family=family)
    for source in _VERSIONS:
        if version := parse_version(read_text(root / source) or ""):
            return Driver(family="rknpu", version=version, source=f"/{source}")
    return Driver(family="rknpu")


def _family(root: Path) -> Literal["", "rknpu", "rocket"]:
    if os.path.lexists(root / "sys/module/rknpu") or os.path.lexists(root / "proc/rknpu/version"):
        return "rknpu"
    names = {driver for kind, prefix in (("drm", "renderD"), ("accel", "accel")) for _, driver in _devices(root, kind, prefix)}
    if "rknpu" in names:
        return "rknpu"
    return "rocket" if "rocket" in names or os.path.lexists(root / "sys/module/rocket") else ""


def _devices(root: Path, kind: str, prefix: str) -> list[tuple[str, str]]:
    """Return the device names of a class with their drivers, in lower case."""
    found = []
    for name in names_in(root / "sys/class" / kind):
        if name.startswith(prefix):
            uevent = read_text(root / "sys/class" / kind / name / "device/uevent") or ""
            driver = next((line.partition("=")[2] for line in uevent.splitlines() if line.startswith("DRIVER=")), "")
            found.append((name, driver.strip().lower()))
    return found


def observe_nodes(root: Path, account: Account | None = None, *, opened: bool = False) -> tuple[Node, ...]:
    """Return the nodes of the vendor's driver, also those that should be in `/dev` and are not.

    Args:
        root: File system root.
        account: For whom they must open; None for this process.
        opened: Whether to open them for a moment, if they must open for this process: in a container, a mode that allows is not all.
    """
    found = [_node(root, f"/dev/dri/{name}", "render", account) for name, driver in _devices(root, "drm", "renderD") if driver == "rknpu"]
    legacy = root / "dev/rknpu"
    if os.path.lexists(legacy) and not legacy.is_symlink():
        found.append(_node(root, "/dev/rknpu", "dma-heap", account))
    return tuple(_opened(root, node) if opened and account is None else node for node in found)


def _opened(root: Path, node: Node) -> Node:
    if node.state != "usable":
        return node
    try:
        os.close(os.open(root / node.path.lstrip("/"), os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except PermissionError:
        return msgspec.structs.replace(node, state="forbidden")
    except OSError:
        return msgspec.structs.replace(node, state="dead")
    return node


def observe_legacy_symlink(root: Path) -> str:
    """Return where `/dev/rknpu` points to; empty if it is no symbolic link.

    A link to the render node makes the runtime take the legacy ioctl path, on which it finds hardware version -1 and crashes.
    """
    try:
        return os.readlink(root / "dev/rknpu")
    except OSError:
        return ""


def _node(root: Path, path: str, kind: Literal["render", "dma-heap"], account: Account | None) -> Node:
    real = root / path.lstrip("/")
    try:
        found = real.stat()
    except (FileNotFoundError, NotADirectoryError):
        return Node(path=path, kind=kind, state="missing")
    except OSError:
        return Node(path=path, kind=kind, state="dead")
    shown = f"{stat.filemode(found.st_mode)} owner {found.st_uid} group {found.st_gid}"
    allowed = os.access(real, os.R_OK | os.W_OK, effective_ids=True) if account is None else _permits(found, account)
    return Node(path=path, kind=kind, state="usable" if allowed else "forbidden", permissions=shown)


def _permits(found: os.stat_result, account: Account) -> bool:
    """Return whether the mode bits let the account read and write. Source: path_resolution(7)."""
    if account.uid == 0:
        return True
    shift = 6 if found.st_uid == account.uid else 3 if found.st_gid in account.gids else 0
    return (found.st_mode >> shift) & 6 == 6


def observe_load(root: Path) -> tuple[Mapping[int, float] | None, LoadProblem]:
    """Return the load of each core, or None and why: an idle NPU and one that cannot be asked are two things."""
    first: Reading | None = None
    for source in _LOADS:
        found = read(root / source)
        if found.text is not None:
            load = parse_load(found.text)
            return (load, "") if load is not None else (None, "garbled")
        first = first or found
    assert first is not None
    # Without the right to enter debugfs its files look forbidden; a directory of mode 0700 hides whether it is mounted at all.
    return None, first.problem


def observe_iommu(root: Path, soc: Soc) -> bool | None:
    """Return whether the NPU's platform device is in an IOMMU group; None without the device."""
    device = root / "sys/bus/platform/devices" / soc.npu_device
    if not soc.npu_device or not device.is_dir():
        return None
    return os.path.lexists(device / "iommu_group")
