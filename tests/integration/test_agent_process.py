"""The agent as a process: assignment in, tokens out; alone, replaced in place, killed, and with spoiled bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from rkfleet.api_keys import key_line
from rkfleet.enrolment import serving_name
from rkfleet.identity import load_identity
from tests.support.agents import BOARD, BoardScene, RunningAgent, board_scene, is_alive, running_agent
from tests.support.sessions import until

pytestmark = [pytest.mark.model, pytest.mark.processes]

WORKER_END_SECONDS = 2.0
KEY = "0123456789abcdef0123456789abcdef"


async def until_serving(agent: RunningAgent) -> None:
    await until(agent.serves, 40)


async def ask_as_gateway(s: BoardScene, agent: RunningAgent) -> tuple[int, str]:
    """Ask the replica's own endpoint over mutual TLS, verifying the board's name."""
    endpoint = (await s.status("chat-1")).status.endpoint
    assert endpoint == f"{agent.serving_url}/replicas/default/chat-1"
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    async with httpx2.AsyncClient(verify=s.gateway_tls(), trust_env=False, timeout=30) as client:
        extensions = {"sni_hostname": s.serving_name}
        answer = await client.post(f"{endpoint}/v1/chat/completions", json=body, extensions=extensions)
    return answer.status_code, answer.headers["x-rkfleet-replica"]


async def ask_with_key(agent: RunningAgent, data_dir: Path, key: str) -> int:
    """Ask over TLS as a client of another machine, which trusts the fleet; the address stands in the agent's log."""
    lines = [json.loads(line) for line in agent.log.read_text().splitlines() if "API key" in line]
    identity = load_identity(data_dir / "identity")
    assert identity is not None
    trusting = ssl.create_default_context(cafile=str(identity.ca_file))
    async with httpx2.AsyncClient(verify=trusting, trust_env=False) as client:
        name = serving_name(identity.name, identity.fleet_id)
        answer = await client.get(
            f"{lines[-1]['url']}/v1/models", headers={"authorization": f"Bearer {key}"}, extensions={"sni_hostname": name}
        )
    return answer.status_code


async def refused_without_certificate(s: BoardScene, agent: RunningAgent) -> bool:
    async with httpx2.AsyncClient(verify=s.registry.tls, trust_env=False) as client:
        try:
            await client.get(f"{agent.serving_url}/v1/models", extensions={"sni_hostname": s.serving_name})
        except httpx2.TransportError:
            return True
    return False


def test_assignment_in_tokens_out_and_after_a_restart_without_a_controller_still_tokens(tmp_path: Path) -> None:
    """What a board accepted once it serves from its own disk; its workers end with it, however it ends."""

    async def body() -> None:
        async with board_scene(tmp_path) as s:
            data_dir = s.data_dir
            async with running_agent(data_dir) as agent:
                await s.assign("chat-1")
                await s.until_condition("chat-1", "Ready", ("True", "Serving"))
                answer = await agent.chat()
                assert answer.status_code == 200
                assert answer.json()["usage"]["completion_tokens"] == 4
                assert await ask_as_gateway(s, agent) == (200, "default/chat-1")
                assert await refused_without_certificate(s, agent)
                await until(lambda: measured(s))
                assert (await s.sessions.board(BOARD)).status.running[0].replica == "default/chat-1"
                assert await agent.metric("rkfleet_assignment_number") == 1
                assert await agent.metric('rkfleet_workers{phase="Ready"}') == 1
                assert await agent.metric("rkfleet_agent_session_open") == 1
                (worker,) = agent.worker_pids()
                agent.kill()
                await until(lambda: not is_alive(worker), WORKER_END_SECONDS)
        keys = tmp_path / "keys"
        keys.write_text(key_line("alice", KEY))
        async with running_agent(data_dir, "--client-host", "127.0.0.1", "--client-port", "0", "--api-keys-file", str(keys)) as agent:
            await until_serving(agent)
            assert (await agent.chat()).status_code == 200
            assert await ask_with_key(agent, data_dir, "wrong") == 401
            assert await ask_with_key(agent, data_dir, KEY) == 200
            assert await agent.metric("rkfleet_agent_session_open") == 0
            (worker,) = agent.worker_pids()
            assert await agent.stop() == 0
            assert not is_alive(worker)

    asyncio.run(body())


async def measured(s: BoardScene) -> bool:
    """Whether the controller knows a speed, in two digits."""
    found = (await s.status("chat-1")).status.measured
    speed = found.decode_tokens_per_second if found else None
    return speed is not None and float(f"{speed:.2g}") == speed


@contextlib.asynccontextmanager
async def open_stream(agent: RunningAgent, tokens: int) -> AsyncIterator[httpx2.Response]:
    """Open a streamed answer of the first replica and wait for its first byte."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "Count to one hundred."}], "max_tokens": tokens, "stream": True}
    path = "/replicas/default/chat-1/v1/chat/completions"
    async with agent.client.stream("POST", path, json=body) as answer:
        yield answer


def test_a_successor_takes_the_place_of_a_draining_replica_and_spoiled_bytes_are_found_and_mended(tmp_path: Path) -> None:
    """The answer under way is finished, the successor loads after the worker before it is gone; one flipped byte is found before a load."""

    async def body() -> None:
        async with board_scene(tmp_path) as s:
            async with running_agent(s.data_dir) as agent:
                first = await s.assign("chat-1")
                await s.assign("chat-2", activation="Staged", replaces=first.uid)
                await s.until_condition("chat-1", "Ready", ("True", "Serving"))
                await s.until_condition("chat-2", "Ready", ("False", "Staged"))
                (worker,) = agent.worker_pids()
                async with open_stream(agent, 80) as answer:
                    lines = answer.aiter_lines()
                    await anext(lines)
                    await s.assign("chat-1", activation="Draining")
                    await s.assign("chat-2", activation="Serving")
                    await s.until_condition("chat-2", "Loaded", ("False", "WaitingForPredecessor"))
                    refused = await agent.chat(path="/replicas/default/chat-1")
                    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "replica_draining")
                    assert is_alive(worker)
                    rest = [line async for line in lines if line]
                assert rest[-1] == "data: [DONE]"
                assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] in {"stop", "length"}
                await s.until_condition("chat-1", "Drained", ("True", "DrainComplete"))
                await s.until_condition("chat-2", "Ready", ("True", "Serving"))
                assert not is_alive(worker)
                await s.remove("chat-1")
                assert (await agent.chat()).headers["x-rkfleet-replica"] == "default/chat-2"
                agent.process.send_signal(signal.SIGTERM)

            artifact = next((s.data_dir / "artifacts" / "sha256").iterdir())
            with artifact.open("r+b") as file:
                file.seek(50_000_000)
                byte = file.read(1)
                file.seek(50_000_000)
                file.write(bytes([byte[0] ^ 1]))
            async with running_agent(s.data_dir) as agent:
                await until_serving(agent)
                assert await agent.metric("rkfleet_artifact_corrupt_total") == 1
                assert await agent.metric("rkfleet_artifact_fetched_bytes_total") == s.file.size_bytes
                await s.until_condition("chat-2", "Ready", ("True", "Serving"))
                assert await s.sessions.events("DigestMismatch")
                assert list((s.data_dir / "partial").iterdir()) == []

    asyncio.run(body())
