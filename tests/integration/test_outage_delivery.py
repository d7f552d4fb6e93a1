"""What a board kept of an outage reaches the controller over real gRPC, with its times, and people through the API."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path

from click.testing import Result
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from typer.testing import CliRunner

from agent.samples import SAMPLES_MAX
from controller.api.kubeconfig import kubeconfig
from rkfleet import metric_names
from rkfleet.cli.main import app
from rkfleet.clock import SystemClock, parse_time
from rkfleet.errors import NotFound
from rkfleet.report import SAMPLES_PER_REPORT_MAX
from tests.integration.test_enrollment import enrolling_world, join
from tests.support.sessions import RunningBoard, SessionWorld, session_world, until

SERIES = 'rkfleet_generation_tokens_total{namespace="default",model_name="qwen2"}'


class BoardClock(SystemClock):
    """A machine that was on for `ahead` seconds more than this test, with a calendar that is wrong by `wrong`."""

    ahead = 0.0
    wrong = timedelta()

    def now(self) -> datetime:
        return super().now() + self.wrong

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


def reports_received(world: SessionWorld) -> float:
    return float(world.metrics.counter(metric_names.SESSION_MESSAGES, direction="received", message="report")._value.get())


def points(text: str) -> list[tuple[float, float]]:
    families = text_string_to_metric_families(text)
    return [(float(one.timestamp), one.value) for family in families for one in family.samples]  # type: ignore[arg-type]


def be_away(board: RunningBoard, clock: BoardClock, minutes: int) -> None:
    """Have the board take a sample a minute and record what happens every hour."""
    for minute in range(minutes):
        if minute % 60 == 0:
            board.reports.record("Warning", "Hour", f"hour {minute // 60}")
        clock.ahead += 60.0
        board.reports.samples.take({SERIES: float(minute)})


def test_five_hours_away_are_complete_afterwards_and_cost_nothing_later(tmp_path: Path) -> None:
    """Every minute and every event has its own time, although the board's calendar was in 1970; then only heartbeats are sent."""

    async def scenario() -> None:
        clock = BoardClock()
        async with session_world(tmp_path) as world:
            board = RunningBoard(await world.join("b-1"), clock=clock)
            clock.wrong = datetime(1970, 1, 1, tzinfo=clock.now().tzinfo) - clock.now()
            be_away(board, clock, 300)
            back = SystemClock().now()
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(board.runner.run())
                await until(lambda: not board.reports.samples.kept and not board.reports.log())
                uid = (await world.board("b-1")).metadata.uid
                found = points(world.outages.openmetrics("b-1", uid, {}).decode())
                assert [value for _, value in found] == [float(number) for number in range(300)]
                for number, (moment, _) in enumerate(found):
                    assert abs(moment - (back - timedelta(minutes=299 - number)).timestamp()) < 5
                events = sorted(await world.events("Hour"), key=lambda event: event.message)
                for hour, event in enumerate(events):
                    assert abs(parse_time(event.last_timestamp) - (back - timedelta(hours=5 - hour))) < timedelta(seconds=5)
                assert len(events) == 5
                assert 300 / SAMPLES_PER_REPORT_MAX <= reports_received(world) < 20
                before, since = reports_received(world), SystemClock().monotonic()
                await until(lambda: reports_received(world) >= before + 3)
                assert SystemClock().monotonic() - since > 0.9  # three heartbeats of half a second, the first under way
                running.cancel()

    asyncio.run(scenario())


def test_samples_that_a_board_had_to_forget_are_told(tmp_path: Path) -> None:
    """Two days away: the last day is there, and an Event says how many are not."""

    async def scenario() -> None:
        clock = BoardClock()
        async with session_world(tmp_path) as world:
            board = RunningBoard(await world.join("b-1"), clock=clock)
            be_away(board, clock, 2 * SAMPLES_MAX)
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(board.runner.run())
                await until(lambda: not board.reports.samples.kept)
                uid = (await world.board("b-1")).metadata.uid
                assert len(points(world.outages.openmetrics("b-1", uid, {}).decode())) == SAMPLES_MAX
                (told,) = await until(lambda: world.events("SamplesDropped"))
                assert told.message.startswith(f"{SAMPLES_MAX} samples of board b-1 were lost")
                running.cancel()

    asyncio.run(scenario())


def test_a_disk_of_the_controller_that_is_full_loses_no_sample(tmp_path: Path) -> None:
    """The board keeps what is not acknowledged and the controller tries again; a controller that keeps none is sent none."""

    async def scenario() -> None:
        clock = BoardClock()
        async with session_world(tmp_path) as world:
            (tmp_path / "outages").write_text("in the way")
            board = RunningBoard(await world.join("b-1"), clock=clock)
            be_away(board, clock, 90)
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(board.runner.run())
                await until(lambda: board.number and not board.reports.log())
                assert len(board.reports.samples.kept) == 90
                (tmp_path / "outages").unlink()
                await until(lambda: not board.reports.samples.kept)
                running.cancel()

    asyncio.run(scenario())


def test_samples_are_read_with_one_command_by_admins_only(tmp_path: Path) -> None:
    """`rkfleet board samples` prints what promtool takes; boards that do not exist are named."""

    async def scenario() -> None:
        clock = BoardClock()
        async with enrolling_world(tmp_path / "controller") as world:
            identity = await join(tmp_path / "b-1" / "identity", world.enrolment())
            board = RunningBoard(identity, clock=clock)
            be_away(board, clock, 3)
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(board.runner.run())
                await until(lambda: not board.reports.samples.kept)
                running.cancel()
            config = tmp_path / "kubeconfig"
            token = world.sessions.tokens.issue_api_token("admin", "admin")
            config.write_text(kubeconfig(server=world.url, ca_pem=world.sessions.pki.ca_pem("servers").encode(), token=token))

            async def said(name: str) -> Result:
                return await asyncio.to_thread(CliRunner().invoke, app, ["board", "samples", name, "--kubeconfig", str(config)])

            text = (await said("b-1")).output
            assert [value for _, value in points(text)] == [0.0, 1.0, 2.0]
            assert 'job="rkfleet-board",board="b-1",soc="cpu",simulated="false",namespace="default"' in text
            assert isinstance((await said("b-9")).exception, NotFound)
            gateway = world.sessions.tokens.issue_api_token("gw", "gateway")
            for bearer, expected in ((gateway, 403), ("", 401)):
                async with world.client(bearer) as client:
                    assert (await client.get("/samples/v1alpha1/boards/b-1")).status_code == expected

    asyncio.run(scenario())
