"""Clocks are fixed as the vendor's script fixes them, and put back as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.board.profile import PROFILES, Item
from agent.board.tuning import apply, can_write, read, read_record, undo
from tests.support.board_tree import BoardTree, as_nobody, rk3576_tree, rk3588_tree
from tests.support.killed_tuning import killed_before_write

BOTH = [rk3588_tree, rk3576_tree]


class Tuned:
    """A tree with its profile and its record."""

    def __init__(self, tree: BoardTree) -> None:
        self.tree = tree.untuned()
        self.profile = PROFILES[tree.chip.soc]
        self.record = tree.root.parent / "state/clocks.json"
        self.boot = "boot-1"

    def apply(self) -> dict[str, Item]:
        return {one.name: one for one in apply(self.tree.root, self.profile, self.record, self.boot)}

    def undo(self) -> dict[str, Item]:
        return {one.name: one for one in undo(self.tree.root, self.record, self.boot)}

    def outcomes(self) -> dict[str, str]:
        return {one.name: one.outcome for one in read(self.tree.root, self.profile)}

    def clocks(self) -> dict[str, tuple[str, int]]:
        return {name: (self.tree.governor(name), self.tree.hertz(name)) for name in ("npu", "gpu", "dram", *self.policies())}

    def policies(self) -> list[str]:
        return [f"cpu{one.cpus[0]}" for one in self.tree.chip.policies]

    def idle(self) -> list[str]:
        return [self.tree.read(f"sys/devices/system/cpu/cpu{cpu}/cpuidle/state1/disable") for cpu in range(8)]


RK3588_FIXED = {
    "npu": 1_000_000_000, "gpu": 1_000_000_000, "dram": 2_112_000_000, "cpu0": 1_800_000_000, "cpu4": 2_352_000_000, "cpu6": 2_352_000_000,
}  # fmt: skip
RK3576_FIXED = {"npu": 1_000_000_000, "gpu": 950_000_000, "dram": 2_112_000_000, "cpu0": 2_208_000_000, "cpu4": 2_304_000_000}


@pytest.mark.parametrize(("make", "expected"), [(rk3588_tree, RK3588_FIXED), (rk3576_tree, RK3576_FIXED)])
def test_every_clock_has_the_vendors_frequency_and_comes_back(
    tmp_path: Path, make: Callable[[Path], BoardTree], expected: dict[str, int]
) -> None:
    """Governors, frequencies and idle states; a second time changes nothing."""
    tuned = Tuned(make(tmp_path))
    before = tuned.clocks()
    assert set(tuned.outcomes().values()) == {"differs"}
    items = tuned.apply()
    assert {one.outcome for one in items.values()} == {"pinned"}
    assert tuned.clocks() == {name: ("userspace", hertz) for name, hertz in expected.items()}
    assert tuned.idle() == ["1"] * 8
    recorded = tuned.record.read_bytes()
    assert tuned.apply() == items
    assert tuned.record.read_bytes() == recorded
    assert {one.outcome for one in tuned.undo().values()} == {"restored"}
    assert {name: governor for name, (governor, _) in tuned.clocks().items()} == {name: governor for name, (governor, _) in before.items()}
    assert tuned.idle() == ["0"] * 8
    assert not tuned.record.exists()
    assert tuned.undo() == {}


def test_a_request_of_an_earlier_userspace_governor_comes_back_too(tmp_path: Path) -> None:
    tuned = Tuned(rk3588_tree(tmp_path))
    tuned.tree.clock("cpu4", "userspace", 1_200_000_000)
    assert tuned.apply()["cpu4"].outcome == "pinned"
    tuned.undo()
    assert tuned.clocks()["cpu4"] == ("userspace", 1_200_000_000)


def test_what_is_so_already_is_not_undone(tmp_path: Path) -> None:
    """An operator's own setting is no change of ours."""
    tuned = Tuned(rk3588_tree(tmp_path))
    tuned.tree.clock("npu", "userspace", 1_000_000_000)
    tuned.apply()
    assert "npu" not in tuned.undo()
    assert tuned.clocks()["npu"] == ("userspace", 1_000_000_000)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tree: tree.clock("cpu4", "performance", 2_352_000_000), "scaling_governor says performance, not userspace as it was set"),
        (lambda tree: tree.clock("cpu4", "userspace", 1_008_000_000), "scaling_setspeed says 1008000, not 2352000 as it was set"),
    ],
)
def test_what_somebody_else_changed_is_left_and_said(tmp_path: Path, change: Callable[[BoardTree], BoardTree], says: str) -> None:
    """All other clocks come back."""
    tuned = Tuned(rk3588_tree(tmp_path))
    tuned.apply()
    change(tuned.tree)
    theirs = tuned.clocks()["cpu4"]
    undone = tuned.undo()
    assert undone["cpu4"].outcome == "left"
    assert says in undone["cpu4"].why
    assert {one.outcome for name, one in undone.items() if name != "cpu4"} == {"restored"}
    assert tuned.clocks()["cpu4"] == theirs


def test_a_governor_that_came_back_by_itself_is_restored(tmp_path: Path) -> None:
    """Its request is nobody's any more."""
    tuned = Tuned(rk3588_tree(tmp_path))
    tuned.apply()
    tuned.tree.clock("npu", "rknpu_ondemand", 600_000_000)
    assert tuned.undo()["npu"].outcome == "restored"
    assert tuned.clocks()["npu"] == ("rknpu_ondemand", 600_000_000)


def test_drift_is_seen_and_set_again_and_the_first_state_comes_back(tmp_path: Path) -> None:
    tuned = Tuned(rk3588_tree(tmp_path))
    tuned.apply()
    tuned.tree.clock("cpu6", "ondemand", 408_000_000)
    assert [name for name, outcome in tuned.outcomes().items() if outcome != "pinned"] == ["cpu6"]
    assert tuned.apply()["cpu6"].outcome == "pinned"
    tuned.undo()
    assert tuned.clocks()["cpu6"][0] == "schedutil"


def test_each_missing_node_is_named_and_the_rest_is_set(tmp_path: Path) -> None:
    """Many kernels have no dmc; some call the GPU otherwise; without idle states there is nothing to switch off."""
    tuned = Tuned(rk3588_tree(tmp_path).no_clock("dram"))
    gpu = tuned.tree.path(tuned.tree.node("gpu"))
    gpu.rename(gpu.with_name("fb000000.gpu-mali"))
    for cpu in range(8):
        tuned.tree.remove(f"sys/devices/system/cpu/cpu{cpu}/cpuidle")
    items = tuned.apply()
    missing = {name: one for name, one in items.items() if one.outcome != "pinned"}
    assert set(missing) == {"dram", "idle"}
    assert (missing["dram"].outcome, missing["dram"].node, missing["dram"].needed) == ("missing", "/sys/class/devfreq/dmc", True)
    assert missing["idle"].needed is False


def test_a_clock_that_does_not_follow_differs_and_one_of_a_lower_bin_is_at_its_highest(tmp_path: Path) -> None:
    """Read-back tells; a chip cannot do more than it can."""
    tuned = Tuned(rk3588_tree(tmp_path))
    tuned.tree.stuck("npu", 600_000_000).offered("cpu4", 2_256_000_000).offered("dram", 1_800_000_000)
    items = tuned.apply()
    assert (items["npu"].outcome, items["npu"].wanted, items["npu"].got) == ("differs", "userspace 1000 MHz", "userspace 600 MHz")
    assert {items[name].outcome for name in ("cpu4", "dram")} == {"highest"}


def test_a_write_that_the_kernel_refuses_is_named_with_its_file(tmp_path: Path) -> None:
    tuned = Tuned(rk3588_tree(tmp_path))
    path = tuned.tree.path(f"{tuned.tree.node('cpu4')}/scaling_setspeed")
    path.unlink()
    path.mkdir()
    item = tuned.apply()["cpu4"]
    assert item.outcome == "refused"
    assert "scaling_setspeed does not take 2352000: Is a directory" in item.why


def test_a_boot_makes_the_record_void(tmp_path: Path) -> None:
    """The clocks went back by themselves; what a new boot has is the new before."""
    tuned = Tuned(rk3588_tree(tmp_path))
    tuned.apply()
    tuned.tree.untuned().clock("cpu4", "interactive", 600_000_000)
    tuned.boot = "boot-2"
    assert tuned.undo() == {}
    tuned.apply()
    tuned.undo()
    assert tuned.clocks()["cpu4"][0] == "interactive"


def test_without_a_durable_record_nothing_is_written(tmp_path: Path) -> None:
    """What could not be undone is not done."""
    tuned = Tuned(rk3588_tree(tmp_path))
    tuned.record.parent.write_text("in the way")
    before = tuned.clocks()
    with pytest.raises(OSError):
        tuned.apply()
    assert tuned.clocks() == before


@pytest.mark.parametrize("body", [b"", b"{", b'{"bootId": "boot-1", "writes": [{}]}', b"[]", b"\xff" * 100])
def test_a_spoiled_record_is_said_and_replaced(tmp_path: Path, body: bytes) -> None:
    tuned = Tuned(rk3588_tree(tmp_path))
    tuned.apply()
    tuned.record.write_bytes(body)
    assert "is spoiled" in read_record(tuned.record).problem
    assert tuned.undo()["record"].outcome == "left"
    assert {one.outcome for one in tuned.apply().values()} == {"pinned"}


@pytest.mark.parametrize("make", BOTH)
def test_a_kill_at_any_write_leaves_a_record_that_undoes_all(
    tmp_path: Path, make: Callable[[Path], BoardTree], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each of its writes in turn; the next start undoes."""
    for kill_at in range(1, 40):
        tuned = Tuned(make(tmp_path / str(kill_at)))
        before = {name: governor for name, (governor, _) in tuned.clocks().items()}
        with killed_before_write(kill_at, monkeypatch) as killed:
            tuned.apply()
        assert json.loads(tuned.record.read_text())["bootId"] == "boot-1"
        assert {one.outcome for one in tuned.undo().values()} == {"restored"}
        assert {name: governor for name, (governor, _) in tuned.clocks().items()} == before
        assert tuned.idle() == ["0"] * 8
        if not killed[0]:
            return
    raise AssertionError("a profile has fewer writes than that")


def test_who_may_not_write_knows_it(tmp_path: Path) -> None:
    tuned = Tuned(rk3588_tree(tmp_path))
    assert can_write(tuned.tree.root, tuned.profile)
    with as_nobody(tuned.tree):
        assert not can_write(tuned.tree.root, tuned.profile)
    assert not can_write(tmp_path / "nothing", tuned.profile)
