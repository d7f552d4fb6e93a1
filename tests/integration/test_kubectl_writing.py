"""What the real kubectl writes through the API: create, apply, patch, edit, scale, delete, and how refusals read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.api import RunningApi, running_api
from tests.support.kubectl import Kubectl
from tests.support.objects import BOARDS, DEPLOYMENTS, board, deployment, namespace

pytestmark = pytest.mark.kubectl


def with_kubectl(tmp_path: Path, test: Callable[[RunningApi, Kubectl], Awaitable[None]]) -> None:
    """Run a test against an API of its own."""

    async def run() -> None:
        async with running_api(tmp_path) as api:
            await test(api, Kubectl(api.kubeconfig, tmp_path / "home"))

    asyncio.run(run())


def test_apply_creates_changes_and_leaves_alone(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        async def version() -> str:
            return str((await api.call("GET", f"{DEPLOYMENTS}/qwen")).json()["metadata"]["resourceVersion"])

        first = deployment(replicas=2, paused=True)
        assert await kubectl.ok("apply", "-f", "-", stdin=first) == "modeldeployment.rkfleet.dev/qwen created\n"
        created = await version()
        assert "unchanged" in await kubectl.ok("apply", "-f", "-", stdin=first)
        assert await version() == created

        differs = await kubectl.run("diff", "-f", "-", stdin=deployment(replicas=4, paused=True))
        assert differs.code == 1
        assert "+  replicas: 4" in differs.out
        assert "+  generation: 2" in differs.out
        assert "resourceVersion:" not in "".join(line for line in differs.out.splitlines() if line[:1] in "+-")
        assert (await kubectl.run("diff", "-f", "-", stdin=first)).code == 0
        assert await version() == created

        assert "configured" in await kubectl.ok("apply", "-f", "-", stdin=deployment(replicas=4))
        stored = await kubectl.json("get", "mdep", "qwen")
        assert (stored["spec"]["replicas"], stored["spec"]["paused"], stored["metadata"]["generation"]) == (4, False, 2)

        assert "namespace/lab created" in await kubectl.ok("apply", "-f", "-", stdin=namespace("lab"))
        labelled = {**namespace("lab"), "metadata": {"name": "lab", "labels": {"site": "a"}}}
        assert "namespace/lab configured" in await kubectl.ok("apply", "-f", "-", stdin=labelled)  # a strategic merge patch
        assert (await kubectl.json("get", "ns", "lab"))["metadata"]["labels"] == {"site": "a"}

    with_kubectl(tmp_path, test)


def test_every_way_to_change_an_object(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        assert "created" in await kubectl.ok("create", "-f", "-", stdin=deployment(replicas=2))
        assert "labeled" in await kubectl.ok("label", "mdep", "qwen", "tier=gold")
        assert "annotated" in await kubectl.ok("annotate", "mdep", "qwen", "note=hello")
        patch = '{"spec":{"paused":true,"minReadySeconds":5,"strategy":{"maxUnavailable":"25%","maxSurge":"50%"}}}'
        assert "patched" in await kubectl.ok("patch", "mdep", "qwen", "--type=merge", "-p", patch)
        operations = '[{"op":"test","path":"/spec/paused","value":true},{"op":"replace","path":"/spec/paused","value":false}]'
        assert "patched" in await kubectl.ok("patch", "mdep", "qwen", "--type=json", "-p", operations)
        failed = await kubectl.run("patch", "mdep", "qwen", "--type=json", "-p", operations)
        assert failed.code == 1
        assert "test failed" in failed.err
        strategic = await kubectl.run("patch", "mdep", "qwen", "-p", '{"spec":{"paused":true}}')
        assert strategic.code == 1
        assert "application/merge-patch+json" in strategic.err

        assert "scaled" in await kubectl.ok("scale", "mdep/qwen", "--replicas=5")
        assert "scaled" in await kubectl.ok("scale", "mdep/qwen", "--replicas=6", "--current-replicas=5")
        editor = tmp_path / "editor"
        editor.write_text('#!/bin/sh\nsed -i "s/replicas: 6/replicas: 7/" "$1"\n')
        editor.chmod(0o755)
        assert "edited" in await kubectl.ok("edit", "mdep", "qwen", env={"KUBE_EDITOR": str(editor)})
        stored = await kubectl.json("get", "mdep", "qwen")
        assert stored["spec"]["replicas"] == 7
        assert (stored["spec"]["minReadySeconds"], stored["spec"]["strategy"]) == (5, {"maxUnavailable": "25%", "maxSurge": "50%"})
        assert stored["metadata"]["labels"] == {"tier": "gold"}
        assert stored["metadata"]["annotations"]["note"] == "hello"

        stored["spec"]["replicas"] = 8
        assert "replaced" in await kubectl.ok("replace", "-f", "-", stdin=stored)
        assert "patched" in await kubectl.ok(
            "patch", "mdep", "qwen", "--subresource=status", "--type=merge", "-p", '{"status":{"replicas":8},"spec":{"replicas":1}}'
        )
        stored = await kubectl.json("get", "mdep", "qwen")
        assert (stored["spec"]["replicas"], stored["status"]["replicas"]) == (8, 8)

    with_kubectl(tmp_path, test)


def test_refusals_name_every_cause(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        wrong = await kubectl.run("create", "-f", "-", stdin=deployment(replicas=-1, progressDeadlineSeconds=0))
        assert wrong.code == 1
        assert wrong.err.startswith('The ModelDeployment "qwen" is invalid:')
        assert "* spec.replicas: " in wrong.err
        assert "* spec.progressDeadlineSeconds: " in wrong.err

        unknown = await kubectl.run("apply", "-f", "-", stdin=deployment(replicaz=1))
        assert unknown.code == 1
        assert 'strict decoding error: unknown field "spec.replicaz"' in unknown.err
        warned = await kubectl.run("create", "--validate=warn", "-f", "-", stdin=deployment("warned", replicaz=1))
        assert warned.code == 0
        assert 'Warning: unknown field "spec.replicaz"' in warned.err

        nowhere = await kubectl.run("create", "-f", "-", stdin=deployment(namespace="nowhere"))
        assert nowhere.err == 'Error from server (NotFound): error when creating "STDIN": namespaces "nowhere" not found\n'
        again = await kubectl.run("create", "-f", "-", stdin=deployment("warned"))
        assert 'modeldeployments.rkfleet.dev "warned" already exists' in again.err
        typed = await kubectl.run("create", "namespace", "lab")
        assert typed.code == 1
        assert "unsupported format" in typed.err
        protected = await kubectl.run("delete", "namespace", "default")
        assert "this namespace may not be deleted" in protected.err

    with_kubectl(tmp_path, test)


def test_dry_runs_change_nothing(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        created = await kubectl.ok("create", "--dry-run=server", "-o", "yaml", "-f", "-", stdin=deployment())
        assert "contextTokens: 1024" in created
        assert "resourceVersion" not in created
        assert (await api.call("GET", f"{DEPLOYMENTS}/qwen")).status_code == 404
        await kubectl.ok("create", "-f", "-", stdin=deployment())
        await kubectl.ok("label", "mdep", "qwen", "--dry-run=server", "a=b")
        await kubectl.ok("delete", "mdep", "qwen", "--dry-run=server")
        stored = (await api.call("GET", f"{DEPLOYMENTS}/qwen")).json()
        assert "labels" not in stored["metadata"]

    with_kubectl(tmp_path, test)


def test_delete_waits_for_finalizers_and_forgets_namesakes(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        held = board("rk3588-1")
        held["metadata"]["finalizers"] = ["rkfleet.dev/drain"]
        await api.call("POST", BOARDS, held)
        for number in (2, 3):
            await api.call("POST", BOARDS, board(f"rk3588-{number}", {"site": "lab"}))

        assert "deleted" in await kubectl.ok("delete", "boards", "-l", "site=lab")
        async with kubectl.started("delete", "board", "rk3588-1") as deleting:
            assert deleting.stdout is not None
            async with asyncio.timeout(10):
                assert b'"rk3588-1" deleted' in await deleting.stdout.readline()
            marked = (await api.call("GET", f"{BOARDS}/rk3588-1")).json()
            assert "deletionTimestamp" in marked["metadata"]
            assert deleting.returncode is None
            merge = {"headers": {"content-type": "application/merge-patch+json"}}
            await api.call("PATCH", f"{BOARDS}/rk3588-1", {"metadata": {"finalizers": None}}, **merge)
            async with asyncio.timeout(10):
                assert await deleting.wait() == 0
        assert await kubectl.ok("get", "boards", "--ignore-not-found", "-o", "name") == ""
        assert await kubectl.ok("delete", "board", "rk3588-1", "--ignore-not-found") == ""

    with_kubectl(tmp_path, test)


def test_wait_ends_with_the_condition(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        await api.call("POST", DEPLOYMENTS, deployment())
        async with (
            kubectl.started("wait", "--for=condition=Available", "mdep/qwen", "--timeout=15s") as condition,
            kubectl.started("wait", "--for=jsonpath={.status.replicas}=2", "mdep/qwen", "--timeout=15s") as path,
        ):
            available = {"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable"}
            merge = {"headers": {"content-type": "application/merge-patch+json"}}
            status = {"status": {"replicas": 2, "conditions": [available]}}
            answer = await api.call("PATCH", f"{DEPLOYMENTS}/qwen/status", status, **merge)
            assert answer.status_code == 200, answer.text
            async with asyncio.timeout(15):
                assert [await condition.wait(), await path.wait()] == [0, 0]
        await kubectl.ok("delete", "mdep", "qwen")
        assert (await kubectl.run("wait", "--for=delete", "mdep/qwen", "--timeout=5s")).code == 0

    with_kubectl(tmp_path, test)
