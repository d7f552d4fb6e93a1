"""`rkfleet model push` as a person runs it, against the real API and the real registry; and the real oras beside it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controller.api.registry_tokens import registry_routes
from controller.registry.app import Running
from controller.trust.tokens import Tokens
from rkfleet.cli.push import Order, push
from rkfleet.cli.variants import parse_variant
from rkfleet.client import ApiClient, load_cluster
from rkfleet.errors import Conflict, NotFound
from rkfleet.packaging import ARTIFACT_TYPE, CONFIG_MEDIA_TYPE, blob_of
from tests.support.api import RunningApi, running_api
from tests.support.registry import RegistryWorld, received_bytes

MODEL = "/apis/rkfleet.dev/v1alpha1/namespaces/default/models/tiny"
VARIANT = "name=any-q4,soc=any,dtype=q4_1,runtime=llamacpp,context=2048"


@contextlib.asynccontextmanager
async def fleet(root: Path) -> AsyncIterator[tuple[RegistryWorld, RunningApi, Running]]:
    world = RegistryWorld(root)

    def identify(bearer: str) -> object:
        return Tokens(root / "tokens.json", world.clock, os.urandom).identify(bearer)

    routes = registry_routes(identify, world.signer, world.url, world.clock)  # type: ignore[arg-type]
    async with running_api(root, extra_routes=routes) as api, world.registry(f"{api.url}/registry/v1alpha1/token") as running:
        yield world, api, running


async def rkfleet(api: RunningApi, *words: str) -> tuple[int, str, str]:
    """Run the command line as a process; return exit status and what it printed."""
    environment = {**os.environ, "RKFLEET_KUBECONFIG": str(api.kubeconfig)}
    command = (sys.executable, "-m", "rkfleet.cli.main", *words)
    child = await asyncio.create_subprocess_exec(*command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = await child.communicate()
    return child.returncode or 0, out.decode(), err.decode()


def test_a_push_creates_the_model_and_the_same_again_is_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(os.urandom(300_000))
    push = ("model", "push", str(file), "--name", "tiny", "--variant", VARIANT, "--family", "llama", "--license", "Apache-2.0")

    async def body() -> None:
        async with fleet(tmp_path / "fleet") as (world, api, running):
            assert await rkfleet(api, *push) == (0, "model.rkfleet.dev/tiny created\n", "")
            sent = received_bytes(running)
            assert sent > 300_000
            assert await rkfleet(api, *push) == (0, "model.rkfleet.dev/tiny unchanged\n", "")
            assert received_bytes(running) == sent
            model = (await api.call("GET", MODEL)).json()
            (variant,) = model["spec"]["variants"]
            stored = variant["artifact"]["files"]
            digest = blob_of(file.read_bytes()).digest
            assert stored == [{"path": "tiny.gguf", "digest": digest, "sizeBytes": 300_000, "role": "weight", "scalePercent": 100}]
            assert variant["requires"]["memory"] == "321Mi"  # 0.3 MB of weights, 2048 tokens of 32 KiB, 256 MiB for the runtime
            assert (model["spec"]["family"], model["spec"]["license"]) == ("llama", "Apache-2.0")
            async with world.registry_http() as http:
                http.headers["Authorization"] = f"Bearer {world.push_token('default/tiny')}"
                manifest = await http.get(f"{world.url}/v2/default/tiny/manifests/any-q4")
                assert manifest.headers["docker-content-digest"] == variant["artifact"]["manifestDigest"]
                assert manifest.json()["artifactType"] == ARTIFACT_TYPE
                assert [layer["mediaType"] for layer in manifest.json()["layers"]] == ["application/vnd.cncf.model.weight.v1.raw"]
                config = await http.get(f"{world.url}/v2/default/tiny/blobs/{manifest.json()['config']['digest']}")
                assert manifest.json()["config"]["mediaType"] == CONFIG_MEDIA_TYPE
                assert config.json()["modelfs"] == {"type": "layers", "diffIds": [blob_of(file.read_bytes()).digest]}
            listed = await rkfleet(api, "model", "list")
            assert listed[0] == 0
            assert "any-q4" in listed[1]

    asyncio.run(body())


def test_variants_are_added_and_never_changed(tmp_path: Path) -> None:
    one, two = tmp_path / "one.rkllm", tmp_path / "two.rkllm"
    one.write_bytes(b"one" * 1000)
    two.write_bytes(b"two" * 1000)
    first = "name=rk3588-w8a8,soc=rk3588,dtype=w8a8,runtime=rkllm,memory=2530Mi,npuCores=3,runtimeVersion=>=1.1.0,<1.4"
    again = "name=rk3588-w8a8,soc=rk3588,dtype=w8a8,runtime=rkllm"
    second = "name=rk3576-w4a16,soc=rk3576,dtype=w4a16,runtime=rkllm"

    async def body() -> None:
        async with fleet(tmp_path / "fleet") as (world, api, _), ApiClient(load_cluster(api.kubeconfig), world.clock) as client:

            async def pushed(*variants: tuple[Path, str]) -> str:
                words = tuple(parse_variant(text) for _, text in variants)
                order = Order(name="tiny", namespace="default", files=tuple(file for file, _ in variants), variants=words)
                return await push(order, client, world.clock, lambda *_progress: None)

            assert await pushed((one, first)) == "created"
            assert await pushed((one, again), (two, second)) == "updated"
            assert await pushed((one, again), (two, second)) == "unchanged"
            variants = (await api.call("GET", MODEL)).json()["spec"]["variants"]
            assert [variant["name"] for variant in variants] == ["rk3588-w8a8", "rk3576-w4a16"]
            assert variants[0]["requires"] == {"memory": "2530Mi", "npuCores": 3, "runtimeVersion": ">=1.1.0,<1.4"}
            with pytest.raises(Conflict, match=r"'rk3588-w8a8' with file one.rkllm .* push it under another variant name"):
                await pushed((two, again))
            with pytest.raises(NotFound, match="cannot be read: No such file"):
                await pushed((tmp_path / "absent", again))

    asyncio.run(body())


def test_a_mistake_is_named_before_a_cluster_is_looked_for(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"weights")
    command = (sys.executable, "-m", "rkfleet.cli.main", "model", "push", str(file), "--name", "tiny", "--variant", "name=a,soc=any")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "RKFLEET_KUBECONFIG": "/nowhere"})
    assert (done.returncode, done.stderr) == (1, "error: --variant 'name=a,soc=any': dtype, runtime is missing\n")


def test_the_real_oras_logs_in_pushes_and_pulls_also_what_rkfleet_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oras_client = pytest.importorskip("oras.client")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("model.gguf").write_bytes(os.urandom(200_000))

    def push_and_pull(world: RegistryWorld, token: str) -> list[str]:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(world.ca_file))
        host = world.url.removeprefix("https://")
        client = oras_client.OrasClient(hostname=host, auth_backend="token")
        client.login(username="ada", password=token, hostname=host, config_path=str(tmp_path / "docker.json"))
        pushed = client.push(target=f"{host}/default/from-oras:v1", files=["model.gguf"], do_chunked=True, chunk_size=64 << 10, quiet=True)
        assert pushed.status_code == 201
        assert client.get_tags(f"{host}/default/from-oras") == ["v1"]
        ours = oras_client.OrasClient(hostname=host, auth_backend="token")
        ours.auth.set_basic_auth("ada", token)
        assert len([key for key in ours.get_manifest(f"{host}/default/tiny:any-q4")["annotations"] if key.startswith("dev.rkfleet.")]) == 5
        pulled = client.pull(target=f"{host}/default/from-oras:v1", outdir=str(tmp_path / "theirs"))
        return [*pulled, *ours.pull(target=f"{host}/default/tiny:any-q4", outdir=str(tmp_path / "ours"))]

    async def body() -> None:
        async with fleet(tmp_path / "fleet") as (world, api, _):
            assert (await rkfleet(api, "model", "push", "model.gguf", "--name", "tiny", "--variant", VARIANT))[0] == 0
            pulled = await asyncio.to_thread(push_and_pull, world, api.token)
            assert [Path(path).name for path in pulled] == ["model.gguf", "model.gguf"]
            assert {Path(path).read_bytes() for path in pulled} == {Path("model.gguf").read_bytes()}

    asyncio.run(body())


def test_further_files_of_a_variant_are_pushed_with_it(tmp_path: Path) -> None:
    """Each is a layer of its own; the Model says what it is for."""
    files = {name: os.urandom(1000 + number) for number, name in enumerate(("tiny.rkllm", "polite.rkllm", "config.json"))}
    for name, body_of in files.items():
        (tmp_path / name).write_bytes(body_of)
    words = f"name=npu,soc=rk3588,dtype=w8a8,runtime=rkllm,adapter={tmp_path}/polite.rkllm@80,config={tmp_path}/config.json"
    push = ("model", "push", str(tmp_path / "tiny.rkllm"), "--name", "tiny", "--variant", words)

    async def body() -> None:
        async with fleet(tmp_path / "fleet") as (world, api, _):
            assert await rkfleet(api, *push) == (0, "model.rkfleet.dev/tiny created\n", "")
            (variant,) = (await api.call("GET", MODEL)).json()["spec"]["variants"]
            found = [(one["path"], one["role"], one["scalePercent"]) for one in variant["artifact"]["files"]]
            assert found == [("tiny.rkllm", "weight", 100), ("polite.rkllm", "adapter", 80), ("config.json", "config", 100)]
            async with world.registry_http() as http:
                http.headers["Authorization"] = f"Bearer {world.push_token('default/tiny')}"
                for one in variant["artifact"]["files"]:
                    got = await http.get(f"{world.url}/v2/default/tiny/blobs/{one['digest']}")
                    assert got.content == files[one["path"]]

    asyncio.run(body())
