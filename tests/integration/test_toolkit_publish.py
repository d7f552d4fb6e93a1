"""`rkfleet toolkit publish` as a person runs it, against the real API and the real registry; pulled back by the real oras."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rkfleet.packaging import blob_of
from tests.integration.test_model_push import fleet
from tests.support.api import RunningApi
from toolkit.recipe import Recipe

TINY = Path(__file__).parents[1] / "data/toolkit/families/llama.gguf"
MODEL = "/apis/rkfleet.dev/v1alpha1/namespaces/default/models/chat"
RECIPE = Recipe(maker="rkllm-toolkit 1.2.3", sources=(), output="rkllm", dtype="w8a8", soc="rk3588", npu_cores=3, max_context=2048)


async def publish(api: RunningApi, *words: str) -> tuple[int, dict[str, Any], str]:
    """Run the command as a process; return exit status, the printed manifest and what was said."""
    environment = {**os.environ, "RKFLEET_KUBECONFIG": str(api.kubeconfig)}
    command = (sys.executable, "-m", "toolkit", "publish", "chat", *words)
    child = await asyncio.create_subprocess_exec(*command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = await child.communicate()
    return child.returncode or 0, yaml.safe_load(out) or {}, err.decode()


def artifact(tmp_path: Path) -> tuple[str, ...]:
    """Write what a conversion leaves behind, and return the words that publish it."""
    report = tmp_path / "report"
    report.mkdir()
    for name, body in (
        ("chat.rkllm", os.urandom(200_000)),
        ("LICENSE", b"Apache"),
        ("report/report.md", b"# ok"),
        ("recipe.json", RECIPE.encode()),
    ):
        (tmp_path / name).write_bytes(body)
    return (
        "--file", str(tmp_path / "chat.rkllm"), "--recipe", str(tmp_path / "recipe.json"), "--report", str(report),
        "--context", "320", "--license-file", str(tmp_path / "LICENSE"), "--license", "Apache-2.0", "--reference", "Qwen2-1.5B",
    )  # fmt: skip


def test_a_conversion_is_published_with_all_that_belongs_to_it_and_the_same_again_is_unchanged(tmp_path: Path) -> None:
    words = artifact(tmp_path)

    async def body() -> None:
        async with fleet(tmp_path / "fleet") as (world, api, _):
            status, manifest, said = await publish(api, *words)
            assert (status, said) == (0, "model.rkfleet.dev/chat created\n")
            (variant,) = manifest["spec"]["variants"]
            assert variant["requires"] == {"memory": "2530Mi", "npuCores": 3, "runtimeVersion": ">=1.2.3"}
            assert variant["reference"] == {"model": "Qwen2-1.5B", "sdkVersion": "1.1.0"}
            assert [(one.get("role", "weight"), one["path"]) for one in variant["artifact"]["files"]] == [
                ("weight", "chat.rkllm"), ("config", "recipe.json"), ("doc", "report.md"), ("doc", "LICENSE"),
            ]  # fmt: skip
            stored = (await api.call("GET", MODEL)).json()
            assert stored["spec"]["variants"][0]["artifact"]["manifestDigest"] == variant["artifact"]["manifestDigest"]
            assert stored["spec"]["license"] == manifest["spec"]["license"] == "Apache-2.0"
            async with world.registry_http() as http:
                http.headers["Authorization"] = f"Bearer {world.push_token('default/chat')}"
                packed = (await http.get(f"{world.url}/v2/default/chat/manifests/rk3588-w8a8")).json()
                kinds = [layer["mediaType"].removeprefix("application/vnd.cncf.model.") for layer in packed["layers"]]
                assert kinds == ["weight.v1.raw", "weight.config.v1.raw", "doc.v1.raw", "doc.v1.raw"]
                assert packed["annotations"]["dev.rkfleet.recipe"] == RECIPE.digest
            assert (await publish(api, *words))[2] == "model.rkfleet.dev/chat unchanged\n"

    asyncio.run(body())


def test_manifest_only_sends_the_bytes_and_leaves_the_model_to_whoever_applies_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with fleet(tmp_path / "fleet") as (_, api, _running):
            status, manifest, said = await publish(api, "--file", str(TINY), "--manifest-only")
            assert (status, said) == (0, "model.rkfleet.dev/chat sent\n")
            assert (await api.call("GET", MODEL)).status_code == 404
            (tmp_path / "model.yaml").write_text(yaml.safe_dump(manifest))
            applied = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "rkfleet.cli.main", "apply", "-f", str(tmp_path / "model.yaml"),
                env={**os.environ, "RKFLEET_KUBECONFIG": str(api.kubeconfig)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            _, err = await applied.communicate()
            assert applied.returncode == 0, err.decode()
            (variant,) = (await api.call("GET", MODEL)).json()["spec"]["variants"]
            assert variant["artifact"]["files"][0]["digest"] == blob_of(TINY.read_bytes()).digest
            assert (variant["name"], variant["soc"], variant["runtime"]) == ("any-f32", "any", "llamacpp")

    asyncio.run(body())


def test_the_real_oras_pulls_every_layer_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oras_client = pytest.importorskip("oras.client")
    words = artifact(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def pull(url: str, ca_file: Path, token: str) -> list[str]:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca_file))
        host = url.removeprefix("https://")
        client = oras_client.OrasClient(hostname=host, auth_backend="token")
        client.auth.set_basic_auth("ada", token)
        return list(client.pull(target=f"{host}/default/chat:rk3588-w8a8", outdir=str(tmp_path / "pulled")))

    async def body() -> None:
        async with fleet(tmp_path / "fleet") as (world, api, _):
            assert (await publish(api, *words))[0] == 0
            pulled = await asyncio.to_thread(pull, world.url, world.ca_file, api.token)
            assert sorted(Path(path).name for path in pulled) == ["LICENSE", "chat.rkllm", "recipe.json", "report.md"]
            assert (tmp_path / "pulled/chat.rkllm").read_bytes() == (tmp_path / "chat.rkllm").read_bytes()
            assert (tmp_path / "pulled/recipe.json").read_bytes() == RECIPE.encode()

    asyncio.run(body())
