"""The host of simulated boards against a real controller's session side: boards join, lose their power, and come back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2
import pytest

from controller.trust.binding import MACHINE_ANNOTATION
from rkfleet.cli.fleet import Endpoints, FleetPlan, LocalFleet, local_fleet
from rkfleet.clock import SystemClock
from rkfleet.errors import Invalid, NotFound, Unavailable
from tests.support.sessions import until
from tests.support.simulated_boards import RunningHost, running_host, simulated_world

NAMES = ["rk3588-1", "rk3588-2", "rk3576-1"]


def test_boards_that_do_not_exist_join_as_real_ones_and_say_what_they_are(tmp_path: Path) -> None:
    """Each has a machine of its own and the figures of its chip; a second host on the directory has the same boards, without tokens."""

    async def scenario() -> None:
        async with simulated_world(tmp_path) as world:
            async with running_host(world.config()) as running:
                await until(running.is_ready)
                before = await running.boards()
                boards = [await world.reported(name) for name in NAMES]
            assert sorted(before) == sorted(NAMES)
            assert all(one["simulated"] and one["state"] == "in session" for one in before.values())
            assert [(one.status.soc, one.status.capacity.memory, one.status.capacity.npu_cores) for one in boards] == [
                ("rk3588", "16Gi", 3), ("rk3588", "16Gi", 3), ("rk3576", "8Gi", 2),
            ]  # fmt: skip
            assert all(one.status.simulated and one.status.versions.npu_driver.version == "0.9.8" for one in boards)
            for one in boards:
                said = {found.type: (found.status, found.message) for found in one.status.conditions}
                assert said["NPUReady"] == ("True", "the hardware of this board is simulated")
                assert (said["ThermalPressure"][0], said["ClocksPinned"][0]) == ("False", "False")
            assert len({one.metadata.annotations[MACHINE_ANNOTATION] for one in boards}) == 3
            tokens = len(world.sessions.tokens.join_tokens())
            async with running_host(world.config(kubeconfig=tmp_path / "nowhere")) as running:
                await until(running.is_ready)
                assert await running.boards() == before
            assert len(world.sessions.tokens.join_tokens()) == tokens

    asyncio.run(scenario())


def test_a_board_loses_its_power_and_comes_back_as_itself(tmp_path: Path) -> None:
    """A board whose power is cut is gone at once: its answer breaks off and its listeners are closed. With power again it is the same
    board with the same ledger, serves before it needs anybody, and takes a new session; its neighbours never noticed."""

    async def scenario() -> None:
        async with simulated_world(tmp_path) as world, running_host(world.config()) as running:
            await until(running.is_ready)
            said = (await running.boards())["rk3588-1"]
            await world.assign("rk3588-1")
            before, neighbour = await world.reported("rk3588-1"), await world.reported("rk3588-2")
            ledger = tmp_path / "boards" / "rk3588-1" / "ledger.json"
            async with httpx2.AsyncClient(base_url=said["opsUrl"], trust_env=False, timeout=20) as http:
                await until(lambda: _serves(http))
                held = json.loads(ledger.read_bytes())["number"]
                fleet = _fleet_of(tmp_path, running)
                with pytest.raises(httpx2.TransportError):
                    await _ask_until_cut(http, lambda: fleet.switch_board(running.http, "rk3588-1", on=False))
                await until(lambda: not world.sessions.hub.presence("rk3588-1")[0])
                with pytest.raises(httpx2.ConnectError):
                    await http.get("/healthz")
                assert (await running.boards())["rk3588-1"]["state"] == "off"
                assert (await running.http.get("/readyz")).status_code == 200, "a board without power is not waited for"

                await fleet.switch_board(running.http, "rk3588-1", on=True)
                await until(lambda: _serves(http))
                await until(running.is_ready)
            assert (await running.boards())["rk3588-1"] == said
            assert json.loads(ledger.read_bytes())["number"] == held
            after = await world.board("rk3588-1")
            assert after.status.session.number > before.status.session.number
            assert after.metadata.uid == before.metadata.uid
            assert after.metadata.annotations == before.metadata.annotations
            assert (await world.board("rk3588-2")).status.session.number == neighbour.status.session.number

    asyncio.run(scenario())


async def _serves(http: httpx2.AsyncClient) -> bool:
    try:
        return bool((await http.get("/v1/models")).json()["data"])
    except httpx2.TransportError:
        return False


def _fleet_of(directory: Path, running: RunningHost) -> LocalFleet:
    """Return what `rkfleet up` would have made around this host."""
    url = str(running.http.base_url).rstrip("/")
    endpoints = Endpoints(
        api="", gateway="", gateway_api_key=None, registry="", metrics={}, ca_file="", kubeconfig="", boards={}, simulated_boards=url
    )
    plan = FleetPlan(data_dir=directory, simulated="rk3588=2,rk3576=1")
    return LocalFleet(plan, SystemClock(), None, endpoints)  # type: ignore[arg-type]  # no children here


async def _ask_until_cut(board: httpx2.AsyncClient, cut: Callable[[], Awaitable[None]]) -> None:
    """Ask for an answer of a minute and cut the board's power at its first event."""
    body = {"model": "chat", "stream": True, "max_tokens": 2000, "messages": [{"role": "user", "content": "Count to a thousand."}]}
    async with board.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["x-rkfleet-simulated"] == "true"
        lines = answer.aiter_lines()
        await anext(lines)
        await cut()
        async for _ in lines:
            pass


def test_a_board_that_is_not_simulated_here_cannot_be_switched(tmp_path: Path) -> None:
    """The sentence names the board and those that there are; a plan with a chip that there is not starts nothing."""

    async def scenario() -> None:
        async with httpx2.AsyncClient(base_url="http://127.0.0.1:1", trust_env=False) as http:
            fleet = _fleet_of(tmp_path, RunningHost(http))
            with pytest.raises(NotFound, match=r"board 'cpu-1' is not a simulated one of this fleet, which has rk3588=2,rk3576=1"):
                await fleet.switch_board(http, "cpu-1", on=False)
            with pytest.raises(Unavailable, match="does not answer"):
                await fleet.switch_board(http, "rk3588-1", on=False)
        with pytest.raises(Invalid, match="chip 'rk3399' must be one of rk3588, rk3576"):
            async with local_fleet(FleetPlan(data_dir=tmp_path / "fleet", simulated="rk3399=1"), SystemClock(), print):
                pass
        assert not (tmp_path / "fleet").exists()

    asyncio.run(scenario())


def test_a_board_that_cannot_start_says_why_and_leaves_the_others_alone(tmp_path: Path) -> None:
    """What is wrong with one board's directory is that board's trouble; when it is repaired, the board joins by itself."""

    async def scenario() -> None:
        async with simulated_world(tmp_path) as world:
            config = world.config()
            spoiled = config.data_dir / "rk3588-2" / "identity" / "identity.json"
            spoiled.parent.mkdir(parents=True)
            spoiled.write_text("{")
            async with running_host(config) as running:

                async def level() -> bool:
                    return await running.states() == ["failed", "in session", "in session"]

                await until(level)
                assert "identity.json cannot be read" in (await running.boards())["rk3588-2"]["message"]
                ready = await running.http.get("/readyz")
                assert ready.status_code == 503
                assert "identity.json cannot be read" in ready.text
                metrics = (await running.http.get("/metrics")).text
                assert 'rkfleet_simulated_boards{state="failed"} 1.0' in metrics
                spoiled.unlink()
                await until(running.is_ready)

    asyncio.run(scenario())
