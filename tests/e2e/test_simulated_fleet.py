"""A fleet of boards that do not exist, used as its users use it: variants by chip, speeds of the table, boards lost and found."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from rkfleet import simulated
from rkfleet.benchmarks import load_table
from rkfleet.cli.chat import Answer, ask
from rkfleet.clock import SystemClock
from rkfleet.simulated import HEADER
from tests.support.guides import run_guide
from tests.support.up import Up, eventually, up

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

CLOCK = SystemClock()
BOARDS = {"rk3588-1", "rk3588-2", "rk3576-1"}
VARIANTS = {"rk3588-1": "rk3588-w8a8", "rk3588-2": "rk3588-w8a8", "rk3576-1": "rk3576-w4a16"}
RATE_ERROR_MAX = 0.05
TOKENS = 24


def test_a_fleet_of_boards_that_do_not_exist(tmp_path: Path) -> None:
    """One story over one fleet, because each start costs seconds."""

    async def story() -> None:
        flags = ("--cpu-boards", "0", "--simulated", "rk3588=2,rk3576=1", "--load-speedup", "20")
        async with up(tmp_path / "fleet", *flags) as fleet, httpx2.AsyncClient(trust_env=False, timeout=30.0) as http:
            await asyncio.to_thread(_every_board_says_that_it_is_simulated, fleet)
            await asyncio.to_thread(_a_deployment_resolves_to_the_variant_of_each_chip, fleet, tmp_path)
            await _answers_come_at_the_speed_of_the_table(http, fleet)
            await asyncio.to_thread(_speeds_are_labelled_as_simulated, fleet)
            await _a_variant_without_a_row_says_so(fleet, tmp_path)
            await _a_board_is_lost_and_found(http, fleet)
            await _a_board_that_fails_leaves_the_others_alone(http, fleet)
            await _all_come_back_when_their_host_was_killed(http, fleet)
            said = await asyncio.to_thread(run_guide, "simulated-fleet.md", fleet, tmp_path)
            assert "[simulated rk35" in said
            said = await asyncio.to_thread(run_guide, "npu-without-a-board.md", fleet, tmp_path)
            assert "[simulated runtime 1.2.3 G3] [adapter polite]" in said
            assert "try: set spec.template.serving.iommuDomain to a domain that no other model uses" in said

    asyncio.run(story())


def _objects(fleet: Up, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(fleet.run("get", kind, "-o", "json").stdout)["items"]
    return found


def _every_board_says_that_it_is_simulated(fleet: Up) -> None:
    assert set(fleet.endpoints.boards) == BOARDS
    assert fleet.endpoints.simulated_boards is not None
    for board in _objects(fleet, "boards"):
        status, labels = board["status"], board["metadata"]["labels"]
        assert (status["simulated"], labels["rkfleet.dev/simulated"]) == (True, "true")
        assert labels["rkfleet.dev/soc"] == status["soc"] == board["metadata"]["name"].partition("-")[0]
        assert status["runtimes"] == [{"name": "rkllm", "version": "1.1.4", "backend": "simulated"}]
        assert (status["capacity"]["memory"], status["capacity"]["npuCores"]) == (
            ("16Gi", 3) if status["soc"] == "rk3588" else ("8Gi", 2)
        )  # fmt: skip


def _a_deployment_resolves_to_the_variant_of_each_chip(fleet: Up, folder: Path) -> None:
    assert fleet.run("model", "push", "--simulated", "qwen2-1.5b").stdout == "model.rkfleet.dev/qwen2-1.5b created\n"
    assert fleet.run("model", "push", "--simulated", "Qwen2-1.5B").stdout == "model.rkfleet.dev/qwen2-1.5b unchanged\n"
    _apply(fleet, folder, {"replicas": 3, "placement": {"boardLostSeconds": 300}, "template": {"model": "qwen2-1.5b"}}, "qwen2")
    fleet.run("rollout", "status", "qwen2", "--timeout", "60")
    placed = {one["spec"]["boardName"]: one["spec"]["variantName"] for one in _objects(fleet, "replicas")}
    assert placed == VARIANTS


def _apply(fleet: Up, folder: Path, spec: Mapping[str, Any], name: str) -> None:
    manifest = folder / f"{name}.json"
    about = {"apiVersion": "rkfleet.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": name}}
    manifest.write_text(json.dumps({**about, "spec": spec}))
    fleet.run("apply", "-f", str(manifest))


async def _ask(http: httpx2.AsyncClient, fleet: Up, tokens: int = TOKENS) -> Answer:
    body = {"model": "qwen2", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": tokens}
    return await ask(http, fleet.endpoints.gateway, body, CLOCK)


async def _answers_come_at_the_speed_of_the_table(http: httpx2.AsyncClient, fleet: Up) -> None:
    """As the client measures it, through the gateway; the best of three rounds, because others use these cores too."""
    errors: dict[str, list[float]] = {board: [] for board in BOARDS}
    for _ in range(3):
        for answer in await asyncio.gather(*(_ask(http, fleet) for _ in BOARDS)):
            board = answer.headers["x-rkfleet-board"]
            soc, _, dtype = VARIANTS[board].partition("-")
            assert answer.simulated
            assert answer.text.startswith(f"[simulated {soc} {dtype}] ")
            assert answer.output_tokens == TOKENS
            assert answer.decode_tokens_per_second is not None
            expected = load_table().get("Qwen2-1.5B", dtype, soc).tokens_per_second
            errors[board].append(abs(answer.decode_tokens_per_second / expected - 1))
        if all(found and min(found) < RATE_ERROR_MAX for found in errors.values()):
            break
    assert {board: min(found) < RATE_ERROR_MAX for board, found in errors.items()} == dict.fromkeys(BOARDS, True), errors
    listed = (await http.get(f"{fleet.endpoints.gateway}/v1/models")).json()["data"]
    assert [(one["id"], one["simulated"]) for one in listed] == [("qwen2", True)]
    at_board = await http.get(f"{fleet.endpoints.boards['rk3576-1']}/v1/models")
    assert at_board.headers[HEADER] == "true"
    assert at_board.json()["data"][0]["simulated"] is True


def _speeds_are_labelled_as_simulated(fleet: Up) -> None:
    assert {one["status"]["simulated"] for one in _objects(fleet, "replicas")} == {True}
    assert " SIMULATED " in fleet.run("get", "replicas").stdout
    assert "[simulated: TTFT " in fleet.run("chat", "qwen2", "Hi", "--max-tokens", "2").stderr


async def _a_variant_without_a_row_says_so(fleet: Up, folder: Path) -> None:
    """Condition and Event name the rows that there are; nothing is started again and again."""
    file = folder / "other.rkllm"
    file.write_bytes(simulated.MAGIC + b"a variant that the table does not know\n")
    variant = "name=odd,soc=rk3588,dtype=w4a16,runtime=rkllm,reference=Qwen2-1.5B,memory=1Gi"
    await asyncio.to_thread(fleet.run, "model", "push", str(file), "--name", "odd", "--variant", variant)
    await asyncio.to_thread(_apply, fleet, folder, {"template": {"model": "odd"}}, "odd")

    async def said() -> bool:
        (replica,) = [one for one in await asyncio.to_thread(_objects, fleet, "replicas") if one["spec"]["deploymentName"] == "odd"]
        loaded = next((one for one in replica.get("status", {}).get("conditions", ()) if one["type"] == "Loaded"), {})
        return loaded.get("reason") == "NoReferenceRow" and "of this model it has w4a16 on rk3576 (1.1.0)" in loaded["message"]

    await eventually(said, "the replica says NoReferenceRow")
    assert "NoReferenceRow" in (await asyncio.to_thread(fleet.run, "get", "events")).stdout
    await asyncio.to_thread(fleet.run, "delete", "modeldeployment", "odd")


async def _boards(http: httpx2.AsyncClient, fleet: Up) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in (await http.get(f"{fleet.endpoints.simulated_boards}/boards")).json()["boards"]}


async def _until_state(http: httpx2.AsyncClient, fleet: Up, states: Mapping[str, str]) -> None:
    async def reached() -> bool:
        try:
            boards = await _boards(http, fleet)
        except httpx2.HTTPError:
            return False
        return all(boards[name]["state"] == state for name, state in states.items())

    await eventually(reached, f"boards are {dict(states)}")


async def _serves_from(http: httpx2.AsyncClient, fleet: Up, board: str) -> None:
    async def answered() -> bool:
        answers = await asyncio.gather(*(_ask(http, fleet, 1) for _ in BOARDS), return_exceptions=True)
        return any(isinstance(one, Answer) and one.headers.get("x-rkfleet-board") == board for one in answers)

    await eventually(answered, f"{board} answers through the gateway")


async def _a_board_is_lost_and_found(http: httpx2.AsyncClient, fleet: Up) -> None:
    """Its addresses stay, no client sees an error while it is gone, and it serves again from what is on its disk."""
    host = fleet.endpoints.simulated_boards
    before = (await _boards(http, fleet))["rk3588-1"]
    assert (await http.post(f"{host}/boards/rk3588-1/stop")).json()["state"] in {"stopping", "off"}
    await _until_state(http, fleet, {"rk3588-1": "off", "rk3588-2": "in session", "rk3576-1": "in session"})
    with pytest.raises(httpx2.ConnectError):
        await http.get(f"{before['opsUrl']}/healthz")
    for answer in [await _ask(http, fleet, 1) for _ in range(4)]:
        assert answer.headers["x-rkfleet-board"] != "rk3588-1"
    assert (await http.get(f"{host}/readyz")).status_code == 200
    await http.post(f"{host}/boards/rk3588-1/start")
    await _until_state(http, fleet, {"rk3588-1": "in session"})
    after = (await _boards(http, fleet))["rk3588-1"]
    assert (after["opsUrl"], after["servingUrl"]) == (before["opsUrl"], before["servingUrl"])
    await _serves_from(http, fleet, "rk3588-1")


async def _a_board_that_fails_leaves_the_others_alone(http: httpx2.AsyncClient, fleet: Up) -> None:
    """It says why, and is back when the reason is gone."""
    host = fleet.endpoints.simulated_boards
    key = fleet.data_dir / "agents" / "rk3576-1" / "identity" / "cert.pem"
    await http.post(f"{host}/boards/rk3576-1/stop")
    await _until_state(http, fleet, {"rk3576-1": "off"})
    kept = key.read_bytes()
    key.unlink()
    await http.post(f"{host}/boards/rk3576-1/start")
    await _until_state(http, fleet, {"rk3576-1": "failed", "rk3588-1": "in session", "rk3588-2": "in session"})
    assert f"{key} is missing" in (await _boards(http, fleet))["rk3576-1"]["message"]
    assert (await http.get(f"{host}/readyz")).status_code == 503
    assert 'rkfleet_simulated_board_failures_total{board="rk3576-1"}' in (await http.get(f"{host}/metrics")).text
    key.write_bytes(kept)
    await _until_state(http, fleet, {"rk3576-1": "in session"})


async def _all_come_back_when_their_host_was_killed(http: httpx2.AsyncClient, fleet: Up) -> None:
    """With the same names, keys and addresses, and with what they served."""
    before = {name: (one["opsUrl"], one["servingUrl"]) for name, one in (await _boards(http, fleet)).items()}
    os.kill(fleet.pid("simulated-boards"), signal.SIGKILL)
    await _until_state(http, fleet, dict.fromkeys(BOARDS, "in session"))
    assert {name: (one["opsUrl"], one["servingUrl"]) for name, one in (await _boards(http, fleet)).items()} == before
    for board in sorted(BOARDS):
        await _serves_from(http, fleet, board)
    conflicts = [event for event in await asyncio.to_thread(_objects, fleet, "events") if event["reason"] == "IdentityConflict"]
    assert conflicts == []
