"""The watch over a board's hardware, on a clock that the test moves: conditions, gauges, drift, undoing."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from agent.board.clock_control import Answer, ClockControl
from agent.board.sensors import LOOK_SECONDS
from agent.board.telemetry import Telemetry
from agent.metrics import AgentMetrics
from agent.watch import MESSAGE_SECONDS, BoardWatch
from rkfleet.conditions import Condition, find
from rkfleet.metrics import Metrics
from tests.support.board_tree import BoardTree, as_nobody, rk3588_tree
from tests.support.clocks import ManualClock
from tests.support.sessions import until


class CountingControl(ClockControl):
    """The real one; counts."""

    applied = 0

    def apply(self) -> Answer:
        self.applied += 1
        return super().apply()


@dataclass
class Watched:
    """A running watch and everything around it."""

    tree: BoardTree
    clock: ManualClock
    metrics: Metrics
    control: CountingControl
    watch: BoardWatch
    wakes: list[int]

    def said(self, type: str) -> Condition | None:
        return find(self.watch.conditions, type)

    def reason(self, type: str) -> str:
        found = self.said(type)
        return f"{found.status}/{found.reason}" if found else ""

    async def after_looks(self, count: int, level: Callable[[], object]) -> None:
        """Let looks come due one after the other until the level holds, at most so many."""
        for _ in range(count):
            if level():
                return
            self.clock.advance(LOOK_SECONDS)
            with contextlib.suppress(TimeoutError):
                await until(level, 0.1)
        assert level()

    def lines(self) -> str:
        return self.metrics.text().decode()


@contextlib.asynccontextmanager
async def watched(tree: BoardTree, directory: Path) -> AsyncIterator[Watched]:
    clock, metrics, wakes = ManualClock(), Metrics("agent"), list[int]()
    control = CountingControl(tree.root, directory / "clocks.json", directory / "clocks.sock")
    watch = BoardWatch(Telemetry(tree.root), control, clock=clock, metrics=AgentMetrics(metrics), on_change=lambda: wakes.append(1))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(watch.run())
        yield Watched(tree, clock, metrics, control, watch, wakes)
        running.cancel()


def test_clocks_are_set_kept_and_put_back(tmp_path: Path) -> None:
    """As the assignment says, at once; the loop is woken by what comes of it."""

    async def body() -> None:
        async with watched(rk3588_tree(tmp_path).untuned(), tmp_path) as w:
            await until(lambda: w.reason("NPUReady") == "True/NPUUsable")
            assert w.reason("ClocksPinned") == "", "nobody has said yet what is wanted"
            w.watch.want("Unmanaged")
            await until(lambda: w.reason("ClocksPinned") == "False/ClocksUnmanaged")
            w.watch.want("Fixed")
            await until(lambda: w.reason("ClocksPinned") == "True/ClocksFixed")
            assert (w.tree.governor("cpu4"), w.tree.hertz("dram")) == ("userspace", 2_112_000_000)
            assert w.control.applied == 1
            w.tree.clock("cpu4", "ondemand", 408_000_000)
            await w.after_looks(2, lambda: w.tree.governor("cpu4") == "userspace")
            w.watch.want("Unmanaged")
            await until(lambda: w.reason("ClocksPinned") == "False/ClocksUnmanaged")
            assert (w.tree.governor("cpu4"), w.tree.governor("npu")) == ("schedutil", "rknpu_ondemand")
            assert len(w.wakes) >= 5

    asyncio.run(body())


def test_a_wish_that_changes_while_clocks_are_set_is_followed(tmp_path: Path) -> None:
    """What comes of the earlier wish says nothing about the later one, and delays it by nothing."""

    async def body() -> None:
        async with watched(rk3588_tree(tmp_path).untuned(), tmp_path) as w:
            begun, go_on, real = threading.Event(), threading.Event(), w.control.apply

            def slow() -> Answer:
                begun.set()
                assert go_on.wait(10)
                return real()

            w.control.apply = slow  # type: ignore[method-assign]
            w.watch.want("Fixed")
            await until(begun.is_set)
            w.watch.want("Unmanaged")
            go_on.set()
            await until(lambda: w.reason("ClocksPinned") == "False/ClocksUnmanaged")
            assert w.tree.governor("cpu4") == "schedutil"

    asyncio.run(body())


def test_a_clock_that_never_follows_is_not_fought_for(tmp_path: Path) -> None:
    """Half an hour of looks costs a handful of attempts, and the condition says what is wrong all the while."""

    async def body() -> None:
        async with watched(rk3588_tree(tmp_path).untuned().stuck("npu", 600_000_000), tmp_path) as w:
            w.watch.want("Fixed")
            await until(lambda: w.reason("ClocksPinned") == "False/ClockDiffers")
            found = w.said("ClocksPinned")
            assert found is not None
            assert "fdab0000.npu has userspace 600 MHz and userspace 1000 MHz is wanted" in found.message
            for _ in range(int(1800 / LOOK_SECONDS)):
                looked = w.clock.monotonic()
                w.clock.advance(LOOK_SECONDS)
                await until(lambda looked=looked: len(w.clock._sleepers) > 0 and w.clock._sleepers[0][0] > looked + LOOK_SECONDS)  # type: ignore[misc]
            assert 5 <= w.control.applied <= 12
            assert w.reason("ClocksPinned") == "False/ClockDiffers"

    asyncio.run(body())


def test_who_may_not_set_clocks_says_how_it_would_be_allowed(tmp_path: Path) -> None:
    tree = rk3588_tree(tmp_path).untuned()

    async def body() -> None:
        async with watched(tree, tmp_path) as w:
            with as_nobody(tree):
                w.watch.want("Fixed")
                await until(lambda: w.reason("ClocksPinned") == "False/ClocksForbidden")
            found = w.said("ClocksPinned")
            assert found is not None
            assert "there is no helper at" in found.message
            assert "sudo systemctl enable --now rkfleet-clocks" in found.message

    asyncio.run(body())


def test_a_sentence_that_changes_all_the_time_is_told_once_a_minute(tmp_path: Path) -> None:
    """Each change is a write on the controller; a change of status or reason is told at once."""

    async def body() -> None:
        async with watched(rk3588_tree(tmp_path).client(5000, "camera"), tmp_path) as w:
            await w.after_looks(3, lambda: w.reason("NPUReady") == "False/OtherNPUClient")
            first = w.said("NPUReady")
            assert first is not None
            w.tree.remove("proc/5000").client(5001, "camera")
            for _ in range(3):
                w.clock.advance(LOOK_SECONDS)
                await until(lambda: w.clock._sleepers)
            assert w.said("NPUReady") == first
            await w.after_looks(int(MESSAGE_SECONDS / LOOK_SECONDS) + 2, lambda: w.said("NPUReady") != first)
            assert "process 5001" in (w.said("NPUReady") or first).message
            w.tree.remove("proc/5001")
            await w.after_looks(4, lambda: w.reason("NPUReady") == "True/NPUUsable")

    asyncio.run(body())


def test_gauges_show_what_is_known_and_nothing_else(tmp_path: Path) -> None:
    """Unknown is no sample: not 0, not what was known before."""

    async def body() -> None:
        async with watched(rk3588_tree(tmp_path).load(7, 0, 100), tmp_path) as w:
            await until(lambda: "rkfleet_npu_frequency_hertz 1e+09" in w.lines())
            for line in (
                'rkfleet_npu_utilization_ratio{core="0"} 0.07', 'rkfleet_npu_utilization_ratio{core="1"} 0.0',
                'rkfleet_npu_utilization_ratio{core="2"} 1.0', 'rkfleet_cpu_frequency_hertz{policy="4"} 2.352e+09',
                "rkfleet_dram_frequency_hertz 2.112e+09", "rkfleet_gpu_frequency_hertz 1e+09",
                'rkfleet_temperature_celsius{zone="npu-thermal"} 47.0', "rkfleet_board_throttled 0.0", "rkfleet_npu_other_clients 0.0",
            ):  # fmt: skip
                assert f"\n{line}\n" in w.lines(), line
            w.tree.no_debugfs().no_clock("dram").remove("sys/class/thermal").remove("proc").remove("dev/dri/renderD129")
            await w.after_looks(3, lambda: "rkfleet_npu_utilization_ratio{" not in w.lines())
            samples = [line.split("{")[0].split(" ")[0] for line in w.lines().splitlines() if not line.startswith("#")]
            assert "rkfleet_npu_frequency_hertz" in samples
            gone = {"npu_utilization_ratio", "dram_frequency_hertz", "temperature_celsius", "board_throttled"}
            assert not {f"rkfleet_{name}" for name in gone} & set(samples)
            assert "# HELP rkfleet_dram_frequency_hertz" in w.lines(), "what it would be is told all the same"

    asyncio.run(body())


def test_files_that_say_the_unexpected_do_not_end_the_watch(tmp_path: Path) -> None:
    """A failure is counted and the next look is made."""

    async def body() -> None:
        async with watched(rk3588_tree(tmp_path), tmp_path) as w:
            w.control.read = lambda: 1 / 0  # type: ignore[assignment,method-assign,return-value]
            w.watch.want("Fixed")
            await until(lambda: "rkfleet_agent_loop_errors_total 1.0" in w.lines())
            del w.control.read  # type: ignore[method-assign]
            await w.after_looks(2, lambda: w.reason("ClocksPinned") == "True/ClocksFixed")

    asyncio.run(body())


def test_a_look_costs_less_than_5_ms(tmp_path: Path) -> None:
    """Of every five seconds; a busy machine has processes by the hundred."""
    from time import process_time

    tree = rk3588_tree(tmp_path)
    for pid in range(2000, 2200):
        tree.process(pid, "busy")
    telemetry = Telemetry(tree.root)
    spent = []
    for _ in range(15):
        began = process_time()
        telemetry.observe()
        spent.append(process_time() - began)
    assert sorted(spent)[len(spent) // 2] < 0.005, spent
