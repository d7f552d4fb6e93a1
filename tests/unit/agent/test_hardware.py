"""NPUReady, ThermalPressure and ClocksPinned: one reason for each cause, in the doctor's words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent.board.npu import Account
from agent.board.profile import Item
from agent.board.snapshot import Client
from agent.board.telemetry import Telemetry
from agent.planning.events import happenings
from agent.planning.hardware import clocks_pinned, npu_ready, thermal_pressure
from rkfleet.conditions import Condition, condition
from rkfleet.report import BoardFacts, BoardState
from tests.support.board_tree import BoardTree, rk3576_tree, rk3588_tree

AGENT = Account(990, frozenset({990, 105}))


def ready(tree: BoardTree, runtime_problem: str = "") -> Condition:
    found = npu_ready(Telemetry(tree.root, account=AGENT).observe(links_max=None), runtime_problem)
    assert found is not None
    return found


@pytest.mark.parametrize("make", [rk3588_tree, rk3576_tree])
@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (lambda tree: tree, ("True", "NPUUsable")),
        (lambda tree: tree.dma_heap(), ("True", "NPUUsable")),
        (lambda tree: tree.no_debugfs(), ("True", "NPUUsable")),
        (lambda tree: tree.old_driver("0.9.7"), ("True", "SmallModelsOnly")),
        (lambda tree: tree.old_driver("0.9.6"), ("False", "DriverTooOld")),
        (lambda tree: tree.old_driver("0.10.1"), ("True", "NPUUsable")),
        (lambda tree: tree.old_driver("nonsense"), ("Unknown", "DriverUnknown")),
        (lambda tree: tree.remove("sys"), ("Unknown", "DriverUnknown")),
        (lambda tree: tree.no_driver(), ("False", "DriverMissing")),
        (lambda tree: tree.mainline(), ("False", "MainlineDriver")),
        (lambda tree: tree.no_node(), ("False", "NodeMissing")),
        (lambda tree: tree.forbidden_node(), ("False", "NodeForbidden")),
        (lambda tree: tree.legacy_symlink(), ("False", "LegacyNodeSymlink")),
        (lambda tree: tree.client(4711, "frigate"), ("False", "OtherNPUClient")),
        (lambda tree: tree.old_driver("0.9.7").no_node(), ("False", "NodeMissing")),
    ],
)
def test_each_cause_has_its_reason_one_sentence_and_one_command(
    tmp_path: Path, make: Callable[[Path], BoardTree], seed: Callable[[BoardTree], BoardTree], expected: tuple[str, str]
) -> None:
    found = ready(seed(make(tmp_path)))
    assert (found.status, found.reason) == expected
    if expected != ("True", "NPUUsable"):
        assert ". Try: " in found.message
        assert found.message.endswith(", on the board")


def test_a_runtime_library_that_cannot_be_used_is_the_loops_to_say(tmp_path: Path) -> None:
    """What the kernel shows comes first."""
    tree = rk3588_tree(tmp_path)
    found = ready(tree, "librkllmrt.so is of no known generation")
    assert (found.status, found.reason) == ("False", "RuntimeLibraryUnknown")
    assert ready(tree.no_node(), "librkllmrt.so is of no known generation").reason == "NodeMissing"


def test_a_board_without_an_npu_says_nothing(tmp_path: Path) -> None:
    seen = Telemetry(rk3588_tree(tmp_path).compatible("brcm,bcm2712").root).observe()
    assert npu_ready(seen) is None
    assert thermal_pressure(seen, before=False) is None
    assert clocks_pinned("Unmanaged", (), has_npu=False, has_profile=False) is None
    wanted = clocks_pinned("Fixed", (), has_npu=False, has_profile=False)
    assert wanted is not None
    assert (wanted.status, wanted.reason) == ("False", "NoClockProfile")


def test_thermal_pressure_ends_only_once_it_is_cooler(tmp_path: Path) -> None:
    """Its message has no figure: that would be a write every five seconds."""
    tree = rk3588_tree(tmp_path)
    telemetry = Telemetry(tree.root)

    def pressure(*, before: bool) -> str:
        found = thermal_pressure(telemetry.observe(), before=before)
        assert found is not None
        return found.status

    assert [pressure(before=before) for before in (False, True)] == ["False", "False"]
    tree.throttled()
    assert pressure(before=False) == "True"
    tree.write("sys/class/thermal/cooling_device0/cur_state", 0).hot(82)
    assert [pressure(before=before) for before in (False, True)] == ["False", "True"]
    assert pressure(before=True) == "True"
    tree.hot(79)
    assert pressure(before=True) == "False"
    tree.remove("sys/class/thermal")
    assert pressure(before=True) == "Unknown"


ITEMS = (
    Item("npu", "/sys/class/devfreq/fdab0000.npu", "userspace 1000 MHz", "userspace 1000 MHz", "pinned"),
    Item("dram", "/sys/class/devfreq/dmc", "userspace 2112 MHz", "userspace 2112 MHz", "pinned"),
    Item("gpu", "/sys/class/devfreq/fb000000.gpu", "userspace 1000 MHz", "userspace 1000 MHz", "pinned", needed=False),
    Item("idle", "/sys/devices/system/cpu/cpu*/cpuidle/state1", "off", "8 of 8 cores off", "pinned", needed=False),
)


def pinned(*changes: tuple[str, str, str], problem: str = "") -> tuple[str, str, str]:
    by_name = {name: (outcome, why) for name, outcome, why in changes}
    items = [
        item._replace(outcome=by_name[item.name][0], why=by_name[item.name][1], got="x") if item.name in by_name else item for item in ITEMS
    ]  # type: ignore[arg-type]
    found = clocks_pinned("Fixed", items, has_npu=True, has_profile=True, problem=problem)
    assert found is not None
    return found.status, found.reason, found.message


def test_clocks_that_are_not_as_wanted_are_named_with_node_wanted_and_got() -> None:
    assert pinned() == ("True", "ClocksFixed", "")
    status, reason, message = pinned(("dram", "missing", ""))
    assert (status, reason) == ("False", "ClockMissing")
    assert message == (
        "dram: the kernel has no /sys/class/devfreq/dmc, userspace 2112 MHz is wanted. Try: ls /sys/class/devfreq, on the board"
    )
    status, reason, message = pinned(
        ("npu", "differs", ""), ("dram", "refused", "/sys/…/governor does not take userspace: Invalid argument")
    )
    assert (status, reason) == ("False", "ClockDiffers")
    assert "npu: /sys/class/devfreq/fdab0000.npu has x and userspace 1000 MHz is wanted; /sys/…/governor does not take userspace" in message
    assert pinned(("npu", "refused", "why"))[1] == "ClockRefused"
    assert pinned(problem="no helper")[1] == "ClocksForbidden"
    assert "enable --now rkfleet-clocks" in pinned(problem="no helper")[2]


def test_what_tokens_do_not_depend_on_is_a_note() -> None:
    """Without the GPU's clock, or at the highest that a chip has, models are as fast as they can be."""
    status, _, message = pinned(("gpu", "missing", ""), ("npu", "highest", ""), ("idle", "missing", ""))
    assert status == "True"
    assert "npu runs at x, the highest of this chip, instead of userspace 1000 MHz" in message
    assert "gpu: the kernel has no" in message
    assert "idle" not in message


def test_what_was_left_is_said_after_undoing() -> None:
    left = Item("cpu4", "/sys", "schedutil", "performance", "left", "somebody else has changed it")
    found = clocks_pinned("Unmanaged", (left,), has_npu=True, has_profile=True)
    assert found is not None
    assert (found.status, found.reason) == ("False", "ClocksLeft")
    clean = clocks_pinned("Unmanaged", (left._replace(outcome="restored"),), has_npu=True, has_profile=True)
    assert clean is not None
    assert (clean.reason, clean.message) == ("ClocksUnmanaged", "")


def test_what_needs_somebody_is_an_event_and_what_is_well_is_none() -> None:
    state = BoardState(assignment_number=1, facts=BoardFacts(soc="rk3588"))

    def told(*said: Condition) -> list[str]:
        return [one.reason for one in happenings(state, msgspec.structs.replace(state, conditions=said))]

    assert told(condition("NPUReady", "True", "NPUUsable"), condition("ThermalPressure", "False", "NotThrottled")) == []
    assert told(condition("NPUReady", "False", "NodeMissing"), condition("ThermalPressure", "True", "Throttled")) == [
        "NodeMissing",
        "Throttled",
    ]
    assert told(condition("ClocksPinned", "False", "ClocksUnmanaged")) == []
    assert told(condition("ClocksPinned", "False", "ClockMissing")) == ["ClockMissing"]


def test_a_long_list_of_other_users_is_cut(tmp_path: Path) -> None:
    seen = Telemetry(rk3588_tree(tmp_path).root).observe(links_max=None)
    many = tuple(Client(pid=at, name=f"camera{at}", node="/dev/dri/renderD129") for at in range(9))
    found = npu_ready(msgspec.structs.replace(seen, clients=many))
    assert found is not None
    assert "camera2 (process 2) and 6 more also" in found.message
