"""The agent as a process: assignment in, tokens out; alone, replaced in place, killed, and with spoiled bytes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from rkfleet.api_keys import key_line
from rkfleet.assignment import AssignedFile, ServingParameters
from rkfleet.enrolment import serving_name
from rkfleet.identity import load_identity
from rkfleet.ports import free_port
from tests.support.agents import BOARD, BoardScene, RunningAgent, board_scene, is_alive, running_agent
from tests.support.runtimes import keys, runtime
from tests.support.sessions import until
from tests.support.tcp_proxy import tcp_proxy
from tests.support.wrong_clock import needs_compiler, wrong_clock

pytestmark = [pytest.mark.model, pytest.mark.processes]

WORKER_END_SECONDS = 2.0
KEY = "0123456789abcdef0123456789abcdef"


async def until_serving(agent: RunningAgent) -> None:
    await until(agent.serves, 40)


async def ask_as_gateway(s: BoardScene, agent: RunningAgent) -> tuple[int, str]:
    """Ask the replica's own endpoint over mutual TLS, verifying the board's name."""
    endpoint = f"{agent.serving_url}/replicas/default/chat-1"
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
            async with running_agent(data_dir, program="tests.support.quick_agent") as agent:
                await s.assign("chat-1")
                await s.until_condition("chat-1", "Ready", ("True", "Serving"))
                answer = await agent.chat()
                assert answer.status_code == 200
                assert answer.json()["usage"]["completion_tokens"] == 4
                assert (await s.status("chat-1")).status.endpoint == f"{agent.serving_url}/replicas/default/chat-1"
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


@needs_compiler
def test_a_board_whose_clock_is_wrong_by_decades_serves_alone_and_in_session_and_a_reconnect_restarts_nothing(tmp_path: Path) -> None:
    """In 1970 and in 2040, by its calendar: with network, without, and when it comes back, one worker serves locally and for gateways."""

    async def body() -> None:
        async with board_scene(tmp_path) as s:
            port, facts = free_port(), s.data_dir / "identity" / "identity.json"
            facts.write_text(facts.read_text().replace(f":{s.sessions.port}", f":{port}"))

            async def serves(agent: RunningAgent) -> list[int]:
                assert (await agent.chat()).status_code == 200
                assert await ask_as_gateway(s, agent) == (200, "default/chat-1")
                return agent.worker_pids()

            async with running_agent(s.data_dir, environ=wrong_clock(tmp_path, 1970)) as agent:
                async with tcp_proxy(s.sessions.port, port):
                    await s.assign("chat-1")
                    await s.until_condition("chat-1", "Ready", ("True", "Serving"))
                    (worker,) = await serves(agent)
                await until(lambda: not s.sessions.hub.presence(BOARD)[0])
                assert await serves(agent) == [worker]
                async with tcp_proxy(s.sessions.port, port):
                    await in_session(s, above=1)
                    assert await serves(agent) == [worker]
                    agent.kill()
            async with running_agent(s.data_dir, environ=wrong_clock(tmp_path, 2040)) as agent:
                await until_serving(agent)
                (worker,) = await serves(agent)
                assert await agent.metric("rkfleet_agent_session_open") == 0
                async with tcp_proxy(s.sessions.port, port):
                    await in_session(s, above=2)
                    assert await serves(agent) == [worker]
                    assert await agent.stop() == 0

    asyncio.run(body())


async def in_session(s: BoardScene, *, above: int) -> int:
    """Wait until the board is in a session with a number above this, and return it."""

    async def number() -> int:
        found = (await s.sessions.board(BOARD)).status.session.number
        return found if s.sessions.hub.presence(BOARD)[0] and found > above else 0

    found: int = await until(number, 20)
    return found


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


def test_an_agent_with_two_versions_of_the_npu_runtime_advertises_both_and_loads_on_demand(tmp_path: Path) -> None:
    """No privilege is needed; a file that is no runtime is left out with a sentence; an idle worker's process is gone."""
    bogus = tmp_path / "bogus.so"
    bogus.write_text("no library")
    model = ("RKLLMFAKE\n" + keys(ttft_ms=1, tokens_per_s=2000, memory_mb=100)).encode()
    file = AssignedFile(path="m.rkllm", digest=f"sha256:{hashlib.sha256(model).hexdigest()}", size_bytes=len(model))
    libraries = [str(runtime("1.2.3")), f"{runtime('1.3.0')}=G4", str(bogus)]

    async def body() -> None:
        async with board_scene(tmp_path) as s:
            whole = s.data_dir / "artifacts" / "sha256" / file.digest.removeprefix("sha256:")
            whole.parent.mkdir(parents=True)
            whole.write_bytes(model)
            async with running_agent(s.data_dir, *(word for one in libraries for word in ("--runtime-library", one))) as agent:
                serving = ServingParameters(context_tokens=512, load="OnDemand", idle_unload_seconds=1, runtime_version="<1.3")
                await s.assign("npu", runtime="rkllm", files=(file,), serving=serving)
                await s.until_condition("npu", "Ready", ("True", "OnDemand"))
                status = (await s.sessions.board(BOARD)).status
                found = [(one.version, one.backend) for one in status.runtimes if one.name == "rkllm"]
                assert found == [("1.3.0", "simulated"), ("1.2.3", "simulated")]
                assert status.simulated, "figures of a simulated library would pass for an NPU's"
                assert agent.worker_pids() == []
                answer = await agent.chat()
                assert "[simulated runtime 1.2.3 G3]" in answer.json()["choices"][0]["message"]["content"]
                assert answer.headers["x-rkfleet-simulated"] == "true"
                await until(lambda: agent.worker_pids() == [])
                await s.until_condition("npu", "Loaded", ("False", "Unloaded"))
                assert f"runtime library {bogus}" in agent.log.read_text()

    asyncio.run(body())
