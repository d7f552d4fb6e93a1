"""A fleet of one machine, used as its users use it: openai clients, kubectl, the command line, the documentation."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import httpx2
import openai
import pytest

from rkfleet.kinds import KINDS
from tests.support.up import Up, chat, eventually, up

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = "manifests/deployments/smollm2.yaml"


def test_a_fleet_from_start_to_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one long story of a user's first hour, over one fleet, because each start costs seconds."""
    monkeypatch.chdir(ROOT)

    async def story() -> None:
        async with up(tmp_path / ".rkfleet", "--samples", "--board-memory", "4Gi") as fleet:
            await asyncio.to_thread(_commands_work, fleet)
            await _openai_clients_work(fleet)
            await _a_client_that_leaves_frees_the_worker(fleet)
            await asyncio.to_thread(_the_quickstart_is_true, fleet, tmp_path)
            name = await asyncio.to_thread(_replica_name, fleet)
        async with up(tmp_path / ".rkfleet") as fleet:
            assert await asyncio.to_thread(_replica_name, fleet) == name, "a second start comes back to where it was"
            async with httpx2.AsyncClient() as http:
                await eventually(lambda: _answers(http, fleet), "the model answers after a restart")

    asyncio.run(story())


async def _answers(http: httpx2.AsyncClient, fleet: Up) -> bool:
    return (await chat(http, fleet, "hello")).status_code == 200


def _replica_name(fleet: Up) -> str:
    listed = json.loads(fleet.run("get", "replicas", "-o", "json").stdout)
    assert len(listed["items"]) == 1
    return str(listed["items"][0]["metadata"]["name"])


def _commands_work(fleet: Up) -> None:
    assert fleet.run("apply", "-f", MANIFEST).stdout == "modeldeployments/smollm2 created\n"
    assert "is rolled out" in fleet.run("rollout", "status", "smollm2", "--timeout", "60").stdout
    assert fleet.run("apply", "-f", MANIFEST).stdout == "modeldeployments/smollm2 unchanged\n"
    assert "cpu-1" in fleet.run("board", "list").stdout
    assert "smollm2-135m" in fleet.run("model", "list").stdout
    for kind in KINDS:
        assert fleet.run("get", kind.resource.plural).returncode == 0
    described = fleet.run("describe", "modeldeployment", "smollm2").stdout
    assert "Conditions:" in described
    assert "Events:" in described
    spoken = fleet.run("chat", "smollm2", "Say hello.", "--max-tokens", "8")
    assert spoken.stdout.strip()
    assert "tokens/s" in spoken.stderr
    assert fleet.run("join-token", "create").stdout.startswith("rkfleet agent run --controller https://")
    assert fleet.run("kubeconfig").stdout == fleet.kubeconfig.read_text()
    assert fleet.run("get", "model", "nope", check=False).returncode == 3
    assert fleet.run("get", "nonsense", check=False).returncode == 3
    assert fleet.run("delete", "modeldeployment", "nope", check=False).returncode == 3


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
    finally:
        await client.close()


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


def _the_quickstart_is_true(fleet: Up, folder: Path) -> None:
    """Every ```bash block of the quickstart runs, in a folder that looks like a clone with `make up` running in it."""
    text = (ROOT / "docs/guides/quickstart.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    if shutil.which("kubectl") is None:
        assert not os.environ.get("CI"), "CI has no kubectl"
        pytest.skip("no kubectl")
    clone = folder / "clone"
    clone.mkdir()
    for name in ("manifests", ".venv"):
        (clone / name).symlink_to(ROOT / name)
    (clone / ".rkfleet").symlink_to(fleet.data_dir)
    port = fleet.endpoints.gateway.rpartition(":")[2]
    script = "set -euo pipefail\n" + "\n".join(blocks).replace("127.0.0.1:7480", f"127.0.0.1:{port}")
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(["bash", "-c", script], cwd=clone, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert '"smollm2"' in done.stdout
