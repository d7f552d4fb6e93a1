"""How the agent's process starts and ends when it has no fleet yet."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.agents import running_agent
from tests.support.sessions import until


def test_an_agent_without_identity_and_token_ends_with_the_command_that_helps(tmp_path: Path) -> None:
    """Exit status 1 and one sentence."""

    async def body() -> None:
        async with running_agent(tmp_path / "cpu-1", ready=False) as agent:
            assert await asyncio.wait_for(agent.process.wait(), 15) == 1
        assert "holds no identity; give --token and --ca-pin, see: rkfleet join-token create" in agent.log.read_text()

    asyncio.run(body())


def test_an_agent_that_waits_for_its_controller_says_so_locks_its_directory_and_dies_with_its_parent(tmp_path: Path) -> None:
    """It enrols as soon as it can; until then /readyz says why, and a second agent is turned away."""

    async def body() -> None:
        flags = ("--token", "rkj1.id.secret", "--ca-pin", f"sha256:{'0' * 64}")
        async with running_agent(tmp_path / "cpu-1", *flags, ready=False) as agent:

            async def waits() -> bool:
                return "enrolment waits" in agent.log.read_text()

            await until(waits)
            answer = await agent.get("/readyz")
            assert (answer.status_code, answer.text) == (503, "the board has not joined its fleet yet, or is starting\n")
            assert (await agent.get("/healthz")).status_code == 200
            assert (await agent.get("/v1/models")).status_code == 200
            async with running_agent(tmp_path / "cpu-1", *flags, ready=False) as second:
                assert await asyncio.wait_for(second.process.wait(), 15) == 1
            assert f"is in use by process {agent.process.pid}" in second.log.read_text()
        assert agent.process.returncode == 0

    asyncio.run(body())


def test_an_ops_listener_beyond_loopback_answers_no_model_requests(tmp_path: Path) -> None:
    """Health and metrics are for whoever may reach the port; `/v1`, which asks for no key here, stays with this machine."""

    async def body() -> None:
        (tmp_path / "token").write_text('{"token": "rkj1.id.secret", "role": "board", "expires": "", "caPin": "sha256:00"}')
        flags = ("--ops-host", "0.0.0.0", "--token-file", str(tmp_path / "token"))
        async with running_agent(tmp_path / "cpu-1", *flags, ready=False) as agent:

            async def waits() -> bool:
                return "enrolment waits" in agent.log.read_text()

            await until(waits)
            assert (await agent.get("/healthz")).status_code == 200
            assert (await agent.get("/metrics")).status_code == 200
            assert (await agent.get("/v1/models")).status_code == 404

    asyncio.run(body())
