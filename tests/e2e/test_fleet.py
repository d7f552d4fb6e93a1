"""A fleet of one machine, used as its users use it: openai clients, kubectl, the command line, the documentation."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import ollama
import openai
import pytest

from rkfleet import metric_names
from rkfleet.kinds import KINDS
from rkfleet.sample import SMOLLM2
from tests.support.guides import run_guide
from tests.support.up import Up, chat, eventually, samples, up

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = "manifests/deployments/smollm2.yaml"
AGENT = "agent-cpu-1"
# These have labels and count what goes wrong, so that a fleet without accidents has no sample of them.
OF_ACCIDENTS = (
    metric_names.WORKER_EXITS, metric_names.GATEWAY_RETRIES, metric_names.GATEWAY_BROKEN_STREAMS, metric_names.CACHE_RELISTS,
    metric_names.SESSION_ENDS, metric_names.RENEWALS, metric_names.API_FAILED_LOGINS,
)  # fmt: skip

# What a machine without an NPU, a thermal zone or cpufreq does not know; tests/integration/test_watch.py has samples.
OF_HARDWARE = (
    metric_names.NPU_UTILIZATION, metric_names.CPU_FREQUENCY, metric_names.TEMPERATURE,
    *(entry for entry in metric_names.ALL if entry.optional),
)  # fmt: skip


def test_a_fleet_from_start_to_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one long story of a user's first hour, over one fleet, because each start costs seconds."""
    monkeypatch.chdir(ROOT)

    async def story() -> None:
        async with up(tmp_path / ".rkfleet", "--samples", "--board-memory", "4Gi") as fleet:
            await asyncio.to_thread(_commands_work, fleet)
            await _openai_clients_work(fleet)
            await _ollama_clients_work(fleet)
            await _a_client_that_leaves_frees_the_worker(fleet)
            assert '"smollm2"' in await asyncio.to_thread(run_guide, "quickstart.md", fleet, tmp_path)
            day_two = await asyncio.to_thread(run_guide, "day-two.md", fleet, tmp_path)
            assert "does not exist (there is smollm2-135m)" in day_two
            assert "serving.maxOutputTokens: 512 -> 256" in day_two
            assert "try: rkfleet board uncordon cpu-1" in day_two
            await _metrics_equal_what_was_sent(fleet)
            name = await asyncio.to_thread(_replica_name, fleet)
        await _it_serves_without_a_controller(fleet)
        async with up(tmp_path / ".rkfleet", ends_with=-signal.SIGKILL) as fleet:
            assert await asyncio.to_thread(_replica_name, fleet) == name, "a second start comes back to where it was"
            async with httpx2.AsyncClient(trust_env=False) as http:
                await eventually(lambda: _answers(http, fleet), "the model answers after a restart")
            fleet.process.kill()  # every child ends when it does, see `up`

    asyncio.run(story())


async def _answers(http: httpx2.AsyncClient, fleet: Up) -> bool:
    try:
        return (await chat(http, fleet, "hello")).status_code == 200
    except httpx2.ConnectError:
        return False


def _replica_name(fleet: Up) -> str:
    listed = json.loads(fleet.run("get", "replicas", "-o", "json").stdout)
    assert len(listed["items"]) == 1
    return str(listed["items"][0]["metadata"]["name"])


def _commands_work(fleet: Up) -> None:
    assert fleet.run("apply", "-f", MANIFEST).stdout == "modeldeployments/smollm2 created\n"
    assert "is rolled out" in fleet.run("rollout", "status", "smollm2", "--timeout", "60").stdout
    spoken = fleet.run("chat", "smollm2", "Say hello.", "--max-tokens", "8")
    assert spoken.stdout.strip()
    assert "tokens/s" in spoken.stderr
    said = fleet.run("logs", _replica_name(fleet), "--timestamps").stdout
    assert re.search(r"^\S+Z rkfleet: run 1 starts: llamacpp \S+, \d+ threads?, /", said, re.MULTILINE), said
    assert re.search(r"^\S+Z rkfleet: the model is loaded, after \d+\.\d s$", said, re.MULTILINE), said
    kinds = [("get", kind.resource.plural) for kind in KINDS]
    absent = [("get", "model", "nope"), ("get", "nonsense"), ("delete", "modeldeployment", "nope")]
    others = [
        ("apply", "-f", MANIFEST), ("board", "list"), ("model", "list"), ("describe", "modeldeployment", "smollm2"),
        ("join-token", "create"), ("kubeconfig",), ("logs", "board/cpu-1"), ("logs", "deployment/smollm2", "--tail", "1"),
    ]  # fmt: skip
    commands = [*kinds, *absent, *others]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ended = pool.map(lambda words: fleet.run(*words, check=False), commands)
        done = dict(zip(commands, ended, strict=True))
    assert [done[words].returncode for words in kinds] == [0] * len(kinds)
    assert [done[words].returncode for words in absent] == [3] * len(absent)
    applied, boards, models, described, token, kubeconfig, agent_log, tail = (done[words].stdout for words in others)
    assert applied == "modeldeployments/smollm2 unchanged\n"
    assert "cpu-1" in boards
    assert "smollm2-135m" in models
    assert "Conditions:" in described
    assert "Events:" in described
    assert token.startswith("rkfleet agent run --controller https://")
    assert kubeconfig == fleet.kubeconfig.read_text()
    assert "info agent.session.runner: session taken number=1" in agent_log
    assert re.fullmatch(r"\[smollm2-\S+\] rkfleet: the model is loaded, .*\n", tail)


async def _openai_clients_work(fleet: Up) -> None:
    client = openai.AsyncOpenAI(base_url=f"{fleet.endpoints.gateway}/v1", api_key="none")
    messages = [{"role": "user", "content": "Name a colour."}]
    try:
        assert [model.id async for model in client.models.list()] == ["smollm2"]
        whole = await client.chat.completions.create(model="smollm2", messages=messages, max_tokens=8)  # type: ignore[arg-type]
        assert whole.choices[0].message.content
        assert whole.model == "smollm2"
        assert whole.usage is not None
        assert whole.usage.completion_tokens <= 8
        stream = await client.chat.completions.create(
            model="smollm2", messages=messages, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )  # type: ignore[call-overload]
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert chunks[-1].usage is not None
        with pytest.raises(openai.NotFoundError, match="model 'nope' is not served here"):
            await client.chat.completions.create(model="nope", messages=messages)  # type: ignore[arg-type]
        assert len((await client.embeddings.create(model="smollm2", input=["red", "blue"])).data) == 2
    finally:
        await client.close()


async def _ollama_clients_work(fleet: Up) -> None:
    async with ollama.AsyncClient(host=fleet.endpoints.gateway) as client:
        assert [model.model for model in (await client.list()).models] == ["smollm2:latest"]
        options = {"num_predict": 8, "num_ctx": 64}  # the second has no effect, and a metric says so
        ask = {"model": "smollm2:latest", "messages": [{"role": "user", "content": "Name a colour."}], "options": options}
        parts = [part async for part in await client.chat(**ask, stream=True)]  # type: ignore[call-overload]
        assert parts[-1].done
        assert parts[-1].eval_count <= 8


async def _a_client_that_leaves_frees_the_worker(fleet: Up) -> None:
    """A long answer is given up; the next client is served at once, not after it."""
    async with httpx2.AsyncClient(timeout=60.0) as http:
        body = {"model": "smollm2", "messages": [{"role": "user", "content": "Count to a thousand."}], "max_tokens": 500, "stream": True}
        async with http.stream("POST", f"{fleet.endpoints.gateway}/v1/chat/completions", json=body) as answer:
            await anext(answer.aiter_lines())
        running = fleet.endpoints.metrics["agent-cpu-1"]

        async def idle() -> bool:
            text = (await http.get(running)).text
            return re.search(r"^rkfleet_num_requests_running\{[^}]*\} 0\.0$", text, re.MULTILINE) is not None

        await eventually(idle, "no request runs after its client left", 2.0)


async def _metrics_equal_what_was_sent(fleet: Up) -> None:
    """Every documented metric has a sample, and what is counted is what this test sends."""
    async with httpx2.AsyncClient(trust_env=False) as http:
        before = {program: await samples(http, url) for program, url in fleet.endpoints.metrics.items()}
        answers = [(await chat(http, fleet, f"{number}: name a colour", max_tokens=6)).json()["usage"] for number in range(4)]
        assert (await chat(http, fleet, "hello", model="nope")).status_code == 404
        after = {program: await samples(http, url) for program, url in fleet.endpoints.metrics.items()}
    for entry in metric_names.ALL:
        if entry.program == "simulated-boards":
            continue  # tests/e2e/test_simulated_fleet.py has one
        for program in after if entry.program == "every" else (AGENT if entry.program == "agent" else entry.program,):
            wanted = f"{entry.name}_count" if entry.type == "histogram" else entry.name
            known = entry in (*OF_ACCIDENTS, *OF_HARDWARE) or any(name == wanted for name, _ in after[program])
            assert known, f"{program} has no sample of {wanted}"

    def more(program: str, name: str, **labels: str) -> float:
        return sum(
            value - before[program].get((found, about), 0.0)
            for (found, about), value in after[program].items()
            if found == name and labels.items() <= dict(about).items()
        )

    assert more("gateway", "rkfleet_gateway_requests_total", code="200", model_name="smollm2") == len(answers)
    assert more("gateway", "rkfleet_gateway_requests_total", code="404", model_name="") == 1
    assert more("gateway", "rkfleet_gateway_request_duration_seconds_count", model_name="smollm2") == len(answers)
    assert more(AGENT, "rkfleet_requests_total") == len(answers)
    assert more(AGENT, "rkfleet_prompt_tokens_total") == sum(usage["prompt_tokens"] for usage in answers)
    assert more(AGENT, "rkfleet_generation_tokens_total") == sum(usage["completion_tokens"] for usage in answers)
    gaps = sum(usage["completion_tokens"] - 1 for usage in answers)
    assert 0 < more(AGENT, "rkfleet_inter_token_latency_seconds_count") <= gaps  # a token may end without a whole character
    for once in ("time_to_first_token", "time_per_output_token", "e2e_request_latency"):
        assert more(AGENT, f"rkfleet_{once}_seconds_count") == len(answers), once
    for once in ("queue", "prefill", "decode"):
        assert more(AGENT, f"rkfleet_request_{once}_time_seconds_count") == len(answers), once
    assert after["gateway"]["rkfleet_gateway_ready_replicas", (("model_name", "smollm2"),)] == 1
    assert after[AGENT]["rkfleet_artifact_fetched_bytes_total", ()] == SMOLLM2.size_bytes
    assert after["registry"]["rkfleet_registry_blob_sent_bytes_total", ()] >= SMOLLM2.size_bytes
    assert after["controller"]["rkfleet_sessions", ()] == 1


async def _it_serves_without_a_controller(fleet: Up) -> None:
    """Board and gateway start from what they have on disk: ledger, cache and routing table. There is nothing else."""
    ports = json.loads((fleet.data_dir / "ports.json").read_bytes())
    agent = ("--name", "cpu-1", "--serving-port", str(ports["agent-cpu-1"]), "--memory", "4Gi")
    programs = {
        "agent": (fleet.data_dir / "agents/cpu-1", "agent-cpu-1", *agent),
        "gateway": (fleet.data_dir / "gateway", "gateway", "--port", str(ports["gateway"])),
    }
    running = []
    for program, (data_dir, name, *flags) in programs.items():
        words = ("--data-dir", str(data_dir), "--controller", fleet.endpoints.api, "--ops-port", str(ports[f"{name}-ops"]), *flags)
        log = (fleet.data_dir / "log" / f"{name}.alone").open("wb")
        with log:
            running.append(await asyncio.create_subprocess_exec(*fleet.command(program, "run", *words), stdout=log, stderr=log))
    try:
        async with httpx2.AsyncClient(trust_env=False) as http:
            await eventually(lambda: _answers(http, fleet), "a board and a gateway that start without a controller answer")
            local = await http.get(f"{fleet.endpoints.boards['cpu-1']}/v1/models")
            assert [model["id"] for model in local.json()["data"]] == ["smollm2"]
    finally:
        for process in running:
            process.terminate()
        assert [await process.wait() for process in running] == [0, 0]
