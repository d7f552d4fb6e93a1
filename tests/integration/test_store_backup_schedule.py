"""Backups that a running controller takes by itself: when, how many are kept, and what a failure leaves."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controller.backups.archive import read_manifest
from controller.backups.schedule import RETRY_SECONDS, SETTLE_SECONDS, Schedule, take_in_child
from controller.config import parse_arguments
from controller.store.sql.store import SqlStore
from rkfleet.clock import give_way
from rkfleet.errors import Unavailable
from rkfleet.kinds import KINDS
from rkfleet.metrics import Metrics
from tests.support.clocks import ManualClock
from tests.support.stores import model, model_ref

DAY = 86_400.0


class World:
    """A schedule of a day on a clock that is moved by hand; backups are empty files."""

    def __init__(self, directory: Path, kept: int = 3) -> None:
        self.directory = directory / "backups"
        self.clock = ManualClock()
        self.metrics = Metrics("controller")
        self.broken = False
        self.schedule = Schedule(directory, every_seconds=DAY, kept=kept, clock=self.clock, metrics=self.metrics, take=self.take)

    async def take(self, target: Path) -> None:
        if self.broken:
            raise Unavailable("the disk is full")
        target.write_bytes(b"")

    @property
    def days(self) -> list[str]:
        """Day and hour of each backup."""
        return [name[14:19] for name in sorted(os.listdir(self.directory))] if self.directory.exists() else []

    async def pass_hours(self, hours: float) -> None:
        for _ in range(int(hours * 6)):
            self.clock.advance(600)
            for _ in range(5):
                await give_way()

    def metric(self, name: str) -> float | None:
        lines = [line for line in self.metrics.text().decode().splitlines() if line.startswith(f"{name} ")]
        return float(lines[0].split()[1]) if lines else None


@asynccontextmanager
async def running(world: World) -> AsyncIterator[None]:
    task = asyncio.create_task(world.schedule.run())
    await give_way()
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def test_one_a_day_is_taken_and_the_newest_are_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        async with running(world):
            await world.pass_hours(1)
            assert world.days == ["01T00"], "the first when things have settled"
            await world.pass_hours(24)
            assert world.days == ["01T00", "02T00"]
            await world.pass_hours(3 * 24)
            assert world.days == ["03T00", "04T00", "05T00"]
            assert world.metric("rkfleet_backup_newest_timestamp_seconds") == 1767225600 + 4 * DAY + SETTLE_SECONDS

    asyncio.run(scenario())


def test_a_restart_neither_skips_nor_repeats_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        for _ in range(10):
            async with running(world):
                await world.pass_hours(10)
        assert world.days == ["03T00", "04T00", "05T00"]

    asyncio.run(scenario())


def test_a_failure_is_told_and_tried_again_and_costs_no_older_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        world = World(tmp_path, kept=1)
        async with running(world):
            await world.pass_hours(1)
            world.broken = True
            with caplog.at_level(logging.ERROR):
                await world.pass_hours(26)
            assert world.days == ["01T00"]
            assert world.metric("rkfleet_backup_failures_total") == pytest.approx(26 * 3600 // RETRY_SECONDS - 22, abs=1)
            assert "failed, older ones are kept: the disk is full" in caplog.text
            world.broken = False
            await world.pass_hours(1.5)
            assert len(world.days) == 1
            assert world.days != ["01T00"]

    asyncio.run(scenario())


def test_files_of_others_are_never_removed_and_its_own_leftovers_are(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path, kept=1)
        world.directory.mkdir()
        (world.directory / "before-the-move.tar").write_text("mine")
        (world.directory / ".rkfleet-20251231T000000Z.tar.store.db").write_text("what a killed backup leaves")
        async with running(world):
            await world.pass_hours(73)
        assert sorted(os.listdir(world.directory)) == ["before-the-move.tar", "rkfleet-20260104T001000Z.tar"]

    asyncio.run(scenario())


@pytest.mark.processes
def test_a_child_backs_up_the_store_that_is_open_here(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "pki").mkdir()
        (tmp_path / "pki" / "fleet.json").write_text('{"fleetId": "f-1"}')
        async with SqlStore.open(tmp_path / "store.db", KINDS) as store:
            await store.create(model_ref("a"), model("a"))
            await take_in_child(tmp_path, tmp_path / "b.tar", with_store=True)
            manifest = read_manifest(tmp_path / "b.tar")
            assert manifest.store is not None
            assert (manifest.fleet_id, manifest.store.objects) == ("f-1", 1)
            with pytest.raises(Unavailable, match=r"b\.tar is there already; name another file"):
                await take_in_child(tmp_path, tmp_path / "b.tar", with_store=True)

    asyncio.run(scenario())


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("90", 90), ("30m", 1800), ("24h", DAY), ("7d", 7 * DAY)])
def test_periods_are_told_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_arguments(["--data-dir", "x", "--backup-every", text]).backup_every_seconds == seconds


def test_a_day_and_a_week_are_the_default() -> None:
    config = parse_arguments(["--data-dir", "x"])
    assert (config.backup_every_seconds, config.backups_kept) == (DAY, 7)


@pytest.mark.parametrize("words", [["--backup-every", "soon"], ["--backup-every", "-1"], ["--backups-kept", "0"], ["--backups-kept", "x"]])
def test_what_is_no_period_and_no_number_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(["--data-dir", "x", *words])
    assert words[0] in capsys.readouterr().err
