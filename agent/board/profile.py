"""The clocks of the vendor's fix_freq scripts, as data: one profile for each chip, and how a clock stands to it. Pure.

`tuning.py` brings a board to its profile and back. Only the standard library is imported, because the privileged helper `agent/clocks.py`
carries nothing else. Sources: airockchip/rknn-llm, `scripts/fix_freq_rk3588.sh` and `fix_freq_rk3576.sh` (releases 1.1.1 to 1.3.0), whose
settings the vendor's benchmark tables are measured with. Units there: devfreq in hertz, cpufreq in kilohertz; here: hertz.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from agent.board.soc import Soc

__all__ = ["PROFILES", "Domain", "Item", "Outcome", "Profile", "find_profile"]

_DEVFREQ: Final = "sys/class/devfreq"
_CPUFREQ: Final = "sys/devices/system/cpu/cpufreq"


Outcome = Literal["pinned", "highest", "missing", "refused", "differs", "restored", "left"]


class Domain(NamedTuple):
    """One clock to fix.

    Attributes:
        name: As `snapshot.Frequency` names it.
        directory: In sysfs, below the root; `*` stands for what some kernels add to the name.
        kind: devfreq (hertz) or cpufreq (kilohertz).
        hertz: Frequency to run at.
        needed: Whether tokens per second depend on it; without the GPU's clock a language model is as fast.
    """

    name: str
    directory: str
    kind: Literal["devfreq", "cpufreq"]
    hertz: int
    needed: bool = True


class Profile(NamedTuple):
    """All of one chip: whose deep idle state is switched off, and which clocks run at which frequency."""

    soc: str
    cpus: int
    domains: tuple[Domain, ...]


class Item(NamedTuple):
    """One clock, or the idle states of all cores.

    Attributes:
        name: npu, cpu0, gpu, dram; idle.
        node: Its directory in sysfs.
        wanted: What the profile wants, for people: `userspace 1000 MHz`.
        got: What was read back.
        outcome: pinned: as wanted. highest: at the chip's highest frequency, which is below the wanted one. missing: no such node.
            refused: the kernel did not take a write. differs: it took the writes and runs otherwise. restored, left: after undoing.
        why: The sentence behind refused and left.
        needed: Whether tokens per second depend on it.
    """

    name: str
    node: str
    wanted: str
    got: str
    outcome: Outcome
    why: str = ""
    needed: bool = True


def _policy(first: int, hertz: int) -> Domain:
    return Domain(f"cpu{first}", f"{_CPUFREQ}/policy{first}", "cpufreq", hertz)


# In the order of the scripts: NPU, CPU from slow to fast, GPU, memory.
PROFILES: Final[Mapping[str, Profile]] = {
    "rk3588": Profile(
        "rk3588",
        8,
        (
            Domain("npu", f"{_DEVFREQ}/fdab0000.npu", "devfreq", 1_000_000_000),
            _policy(0, 1_800_000_000),
            _policy(4, 2_352_000_000),
            _policy(6, 2_352_000_000),
            Domain("gpu", f"{_DEVFREQ}/fb000000.gpu*", "devfreq", 1_000_000_000, needed=False),
            Domain("dram", f"{_DEVFREQ}/dmc", "devfreq", 2_112_000_000),
        ),
    ),
    "rk3576": Profile(
        "rk3576",
        8,
        (
            Domain("npu", f"{_DEVFREQ}/27700000.npu", "devfreq", 1_000_000_000),
            _policy(0, 2_208_000_000),
            _policy(4, 2_304_000_000),
            Domain("gpu", f"{_DEVFREQ}/27800000.gpu*", "devfreq", 950_000_000, needed=False),
            Domain("dram", f"{_DEVFREQ}/dmc", "devfreq", 2_112_000_000),
        ),
    ),
}


def find_profile(soc: Soc) -> Profile | None:
    """Return the profile of a chip, or None if there is none."""
    return PROFILES.get(soc.name)
