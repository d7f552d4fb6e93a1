"""The unit of the clock helper lets it write what its profiles name, and starts what there is."""

from __future__ import annotations

from pathlib import Path

from agent import clocks
from agent.board.clock_wire import SOCKET
from agent.board.profile import PROFILES

UNIT = Path(clocks.__file__).parent / "packaging/rkfleet-clocks.service"


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).extend(value.split())
    return found


def test_every_clock_of_every_profile_can_be_written_and_nothing_else() -> None:
    """devfreq nodes lie below their platform device, cpufreq and cpuidle below the CPUs."""
    paths = {path.removeprefix("-") for path in settings()["ReadWritePaths"]}
    devices = {
        domain.directory.rpartition("/")[2].rstrip("*") for one in PROFILES.values() for domain in one.domains if domain.kind == "devfreq"
    }
    assert {f"/sys/devices/platform/{device}" for device in devices} <= paths
    assert "/sys/devices/system/cpu" in paths
    assert all(path.startswith("/sys/devices/") for path in paths)


def test_it_is_root_without_capabilities_and_listens_where_the_agent_asks() -> None:
    found = settings()
    assert found["ExecStart"] == ["/opt/rkfleet/bin/python", "-m", "agent.clocks", "--user", clocks.USER]
    assert (found["User"], found["Group"], found["CapabilityBoundingSet"]) == (["root"], [clocks.USER], [])
    assert SOCKET.parent == Path("/run") / found["RuntimeDirectory"][0]
    assert clocks.RECORD.parent == Path("/var/lib") / found["StateDirectory"][0]
    assert found["RestrictAddressFamilies"] == ["AF_UNIX"]
