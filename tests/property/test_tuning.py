"""Whatever happens between two wishes about the clocks: what others set stays theirs, and nothing of ours is left behind."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.board import tuning
from agent.board.profile import PROFILES
from tests.support.board_tree import MEMORY, BoardTree, rk3576_tree
from tests.support.killed_tuning import killed_before_write

NAMES = ["npu", "dram", "cpu0", "cpu4"]
GOVERNORS = ["ondemand", "performance", "userspace"]
STEPS = st.lists(
    st.one_of(
        st.just(("apply",)),
        st.just(("undo",)),
        st.tuples(st.just("kill"), st.integers(1, 14)),
        st.tuples(st.just("other"), st.sampled_from(NAMES), st.sampled_from(GOVERNORS), st.sampled_from([408_000_000, 1_008_000_000])),
    ),
    max_size=8,
)


class World:
    """A board, our tuning of it, and somebody else who sets clocks."""

    def __init__(self, tree: BoardTree) -> None:
        self.tree = tree.untuned()
        self.record = tree.root.parent / "clocks.json"
        self.theirs = {name: {tree.governor(name)} for name in NAMES}
        self.last = {name: (tree.governor(name), False) for name in NAMES}
        """What others set last, and whether we have set the clock since."""

    def step(self, step: tuple[Any, ...], patch: pytest.MonkeyPatch) -> None:
        match step:
            case ("apply",):
                self.apply()
            case ("kill", at):
                self.killed(at, patch)
            case ("undo",):
                self.undo()
            case ("other", name, governor, hertz):
                self.tree.clock(name, governor, hertz)
                self.theirs[name].add(governor)
                self.last[name] = (governor, False)

    def apply(self) -> None:
        self.last = {name: (governor, True) for name, (governor, _) in self.last.items()}
        tuning.apply(self.tree.root, PROFILES["rk3576"], self.record, "boot-1")

    def killed(self, at: int, patch: pytest.MonkeyPatch) -> None:
        with killed_before_write(at, patch):
            self.apply()

    def undo(self) -> None:
        before = {name: self.tree.governor(name) for name in NAMES}
        items = {item.name: item for item in tuning.undo(self.tree.root, self.record, "boot-1")}
        assert not self.record.exists()
        for name in NAMES:
            governor, touched = self.last[name]
            now = self.tree.governor(name)
            assert now in self.theirs[name], "nothing of ours is left"
            if not touched and governor != "userspace":
                assert now == governor, "what others have set since is theirs"
            if items.get(name) is not None and items[name].outcome == "left":
                assert now == before[name]


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_after_undoing_every_governor_is_one_that_others_set(steps: list[tuple[Any, ...]]) -> None:
    """Kills come in between, and other programs do."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory, pytest.MonkeyPatch.context() as patch:
        world = World(rk3576_tree(Path(directory)))
        for step in steps:
            world.step(step, patch)
        world.undo()
