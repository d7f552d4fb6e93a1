"""What a board remembers of an outage: moments, the ring of samples, and the file that outlives the agent."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from agent.moments import AGE_SECONDS_MAX, Moment, Moments
from agent.outage import FILE_BYTES_MAX, FILE_NAME, Outage
from agent.reports import Reports
from agent.samples import RING_BYTES_MAX, SAMPLES_MAX, Samples, read_series
from rkfleet.disk import SystemDisk
from rkfleet.fleet_time import FleetTime
from rkfleet.metric_names import BOARD_MEMORY_AVAILABLE, GENERATION_TOKENS, TIME_TO_FIRST_TOKEN
from rkfleet.metrics import Metrics
from rkfleet.report import LOG_ENTRIES_MAX, SAMPLES_PER_REPORT_MAX, SERIES_MAX
from tests.support.clocks import ManualClock
from tests.support.disk import LimitedDisk


class JumpingClock(ManualClock):
    """A machine whose calendar is off by `offset`."""

    offset = timedelta()

    def now(self) -> datetime:
        return super().now() + self.offset


class Agent:
    """The parts that remember, on one directory; each is one life of the agent."""

    def __init__(self, directory: Path, clock: JumpingClock, *, boot_id: str = "boot-1", disk: LimitedDisk | None = None) -> None:
        self.clock = clock
        self.time = FleetTime(clock)
        self.reports = Reports(clock, self.time)
        self.in_session = False
        self.tokens = 0.0
        self.outage = Outage(
            directory, disk or SystemDisk(), boot_id=boot_id, clock=clock, reports=self.reports, in_session=lambda: self.in_session,
            read=lambda: {'rkfleet_generation_tokens_total{model_name="m"}': self.tokens, "rkfleet_board_storage_free_bytes": 5.0},
        )  # fmt: skip

    async def live(self, minutes: int) -> None:
        """Load, and let so many minutes pass; then the agent is killed."""
        await self.outage.load()
        self.minute(minutes)

    def minute(self, count: int = 1) -> None:
        """What `run` does once a minute."""
        for _ in range(count):
            self.clock.advance(60.0)
            self.tokens += 10
            if not self.in_session:
                self.reports.samples.take(self.outage._read())
            self.outage._save()

    def told(self) -> list[tuple[int, float | None]]:
        return [(entry.sequence, entry.age_seconds) for entry in self.reports.log()]


def test_what_happened_outlives_the_agent_with_its_moments(tmp_path: Path) -> None:
    """An agent that was started again in an outage tells everything once, with the ages that are right by then, and counts on."""

    async def scenario() -> None:
        clock = JumpingClock()
        first = Agent(tmp_path, clock)
        await first.live(0)
        first.reports.record("Warning", "WorkerExited", "signal 11", name="chat-1")
        first.minute(3)
        second = Agent(tmp_path, clock)
        await second.live(2)
        second.reports.record("Normal", "ModelLoaded", "it answers again")
        clock.advance(30.0)
        assert second.told() == [(1, 330.0), (2, 30.0)]
        samples = second.reports.samples.oldest()
        assert [(one.sequence, one.age_seconds) for one in samples] == [(1, 270.0), (2, 210.0), (3, 150.0), (4, 90.0), (5, 30.0)]
        assert samples[0].readings == (('rkfleet_generation_tokens_total{model_name="m"}', 10.0), ("rkfleet_board_storage_free_bytes", 5.0))
        second.reports.acknowledge(2)
        second.reports.samples.acknowledge(5)
        second.in_session = True
        second.minute()
        assert not (tmp_path / FILE_NAME).exists()
        third = Agent(tmp_path, clock)
        await third.live(1)
        assert (third.told(), third.reports.samples.kept[0].sequence) == ([], 1)

    asyncio.run(scenario())


@pytest.mark.parametrize("jump", [timedelta(days=3650), timedelta(days=-3650)])
def test_a_clock_that_jumps_ten_years_changes_no_age(tmp_path: Path, jump: timedelta) -> None:
    """Within a boot durations are monotonic, also over a restart of the agent."""

    async def scenario() -> None:
        clock = JumpingClock()
        first = Agent(tmp_path, clock)
        await first.live(0)
        first.reports.record("Normal", "R", "before")
        first.minute()
        clock.offset = jump
        first.reports.record("Normal", "R", "after")
        first.minute()
        second = Agent(tmp_path, clock)
        await second.live(1)
        assert second.told() == [(1, 180.0), (2, 120.0)]
        assert [one.age_seconds for one in second.reports.samples.oldest()] == [120.0, 60.0, 0.0]

    asyncio.run(scenario())


def test_after_a_reboot_ages_come_from_the_calendar_if_it_can_be_believed(tmp_path: Path) -> None:
    """A board that is in 1970 again says no age, until the controller has told the time; samples of unknown age are dropped and counted."""

    async def scenario() -> None:
        clock = JumpingClock()
        first = Agent(tmp_path, clock)
        await first.live(0)
        first.reports.record("Normal", "R", "before the reboot")
        first.minute()
        clock.advance(600.0)
        second = Agent(tmp_path, clock, boot_id="boot-2")
        await second.live(0)
        assert second.told() == [(1, 660.0)]

        clock.offset = datetime(1970, 1, 2, tzinfo=UTC) - clock.now()
        third = Agent(tmp_path, clock, boot_id="boot-3")
        await third.live(0)
        assert third.told() == [(1, None)]
        third.time.tell(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=3600))
        assert third.told() == [(1, 3600.0)]
        assert [one.age_seconds for one in third.reports.samples.oldest()] == [3540.0]

        fourth = Agent(tmp_path, clock, boot_id="boot-4")
        await fourth.live(0)
        assert fourth.reports.samples.oldest() == ()
        assert (fourth.reports.samples.dropped, fourth.reports.samples.newest) == (1, 0)

    asyncio.run(scenario())


def test_ages_that_cannot_be_true_are_unknown() -> None:
    """The future, and more than a month ago."""
    clock = ManualClock()
    moments = Moments(clock, FleetTime(clock))
    now = clock.now().timestamp()
    assert moments.age_seconds(Moment(now - 5.0, None)) == 5.0
    assert moments.age_seconds(Moment(now + 5.0, None)) is None
    assert moments.age_seconds(Moment(now - AGE_SECONDS_MAX - 1, None)) is None
    assert moments.age_seconds(Moment(0.0, 0.0)) == 0.0


def test_a_spoiled_or_torn_file_costs_the_lines_that_are_spoiled(tmp_path: Path) -> None:
    """Neither the start of the agent nor what can be read depends on what cannot; nothing comes twice."""

    async def scenario() -> None:
        clock = JumpingClock()
        first = Agent(tmp_path, clock)
        await first.live(4)
        path = tmp_path / FILE_NAME
        lines = path.read_bytes().splitlines(keepends=True)
        assert len(lines) == 6  # boot, series, four samples
        path.write_bytes(b"".join([*lines[:3], b"\x00\xff{" + lines[3][8:], *lines[4:], lines[5], lines[5][:20]]))
        second = Agent(tmp_path, clock)
        await second.live(0)
        assert [one.sequence for one in second.reports.samples.kept] == [1, 3, 4]
        path.write_bytes(b"\xff" * 1000)
        third = Agent(tmp_path, clock)
        await third.live(1)
        assert len(third.reports.samples.kept) == 1

    asyncio.run(scenario())


def test_a_full_disk_costs_the_file_and_not_what_is_in_memory(tmp_path: Path) -> None:
    """The board remembers while it runs, says so once, and writes everything when there is room again."""

    async def scenario() -> None:
        clock, disk = JumpingClock(), LimitedDisk()
        agent = Agent(tmp_path, clock, disk=disk)
        disk.room = 40
        await agent.live(3)
        assert len(agent.reports.samples.kept) == 3
        disk.room = 1 << 20
        agent.minute()
        again = Agent(tmp_path, clock)
        await again.live(0)
        assert [one.sequence for one in again.reports.samples.kept] == [1, 2, 3, 4]

    asyncio.run(scenario())


def test_a_week_away_stays_within_the_bounds(tmp_path: Path) -> None:
    """A day of samples and the newest of the log are kept; ring and file do not grow beyond what they may, and what went is counted."""

    async def scenario() -> None:
        clock = JumpingClock()
        agent = Agent(tmp_path, clock)
        await agent.outage.load()
        size = 0
        for minute in range(3 * SAMPLES_MAX):
            if minute % 10 == 0:
                agent.reports.record("Warning", "WorkerExited", "x" * 500)
            agent.minute()
            size = max(size, (tmp_path / FILE_NAME).stat().st_size)
        ring = agent.reports.samples
        assert (len(ring.kept), ring.dropped, len(agent.reports.log())) == (SAMPLES_MAX, 2 * SAMPLES_MAX, LOG_ENTRIES_MAX)
        assert size <= FILE_BYTES_MAX
        again = Agent(tmp_path, clock)
        await again.live(0)
        assert again.reports.samples.kept == ring.kept
        assert again.told() == agent.told()

    asyncio.run(scenario())


def test_samples_of_many_series_are_bounded_by_bytes() -> None:
    """Whatever a board serves, the ring takes half a mebibyte."""
    clock = ManualClock()
    ring = Samples(Moments(clock, FleetTime(clock)))
    for _ in range(SAMPLES_MAX):
        ring.take({f"rkfleet_board_{number}": 1.0 for number in range(SERIES_MAX)})
    assert sum(one.size_bytes for one in ring.kept) <= RING_BYTES_MAX
    assert ring.dropped == SAMPLES_MAX - len(ring.kept)
    assert len(ring.oldest()) == SAMPLES_PER_REPORT_MAX
    ring.acknowledge(10_000)
    assert (ring.newest, ring.oldest()) == (0, ())


def test_what_is_sampled_are_the_figures_of_the_machine_and_of_its_models() -> None:
    """Counters and gauges with their labels, the machine's first; no histograms."""
    metrics = Metrics("agent")
    metrics.gauge(BOARD_MEMORY_AVAILABLE).set(5)
    for number in range(2 * SERIES_MAX):
        metrics.counter(GENERATION_TOKENS, namespace="default", model_name=f'a "{number}"\n').inc(3)
    metrics.histogram(TIME_TO_FIRST_TOKEN, namespace="default", model_name="m").observe(1)
    found = read_series(metrics)
    assert len(found) == SERIES_MAX
    assert next(iter(found)).startswith("rkfleet_board_")
    assert found["rkfleet_board_memory_available_bytes"] == 5
    assert found['rkfleet_generation_tokens_total{namespace="default",model_name="a \\"0\\"\\n"}'] == 3
    assert not any("time_to_first_token" in series for series in found)
    assert msgspec.json.encode(found)
