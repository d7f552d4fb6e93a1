"""What the real kubectl reads from the API: discovery, tables, watches, descriptions, explanations."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.api import RunningApi, running_api
from tests.support.kubectl import Kubectl
from tests.support.objects import BOARDS, DEPLOYMENTS, GROUP_PATH, board, deployment, event, namespace

pytestmark = pytest.mark.kubectl


def with_kubectl(tmp_path: Path, test: Callable[[RunningApi, Kubectl], Awaitable[None]]) -> None:
    """Run a test against an API of its own."""

    async def run() -> None:
        async with running_api(tmp_path) as api:
            await test(api, Kubectl(api.kubeconfig, tmp_path / "home"))

    asyncio.run(run())


def test_version_and_discovery_name_every_kind(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        assert "Server Version: v1.32" in await kubectl.ok("version")
        resources = await kubectl.ok("api-resources")
        assert re.search(r"modeldeployments +mdep +rkfleet.dev/v1alpha1 +true +ModelDeployment", resources)
        assert re.search(r"boards +bd +rkfleet.dev/v1alpha1 +false +Board", resources)
        assert re.search(r"namespaces +ns +v1 +false +Namespace", resources)
        assert "rkfleet.dev/v1alpha1" in await kubectl.ok("api-versions")
        assert await kubectl.ok("get", "--raw", "/readyz") == "ok"

    with_kubectl(tmp_path, test)


def test_get_prints_tables_in_every_form(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        await api.call("POST", "/api/v1/namespaces", namespace("lab"))
        await api.call("POST", DEPLOYMENTS, deployment("beta", replicas=3, labels={"app": "b"}))
        await api.call("POST", DEPLOYMENTS, deployment("alpha", labels={"app": "a"}))
        await api.call("POST", f"{GROUP_PATH}/namespaces/lab/modeldeployments", deployment("gamma", namespace="lab"))

        table = (await kubectl.ok("get", "mdep")).splitlines()
        assert re.fullmatch(r"NAME +STATUS +MODEL +DESIRED +UPDATED +AVAILABLE +AGE", table[0])
        assert re.fullmatch(r"alpha +\S* *qwen2 +1 +0 +0 +\d+s", table[1])
        assert re.fullmatch(r"beta +\S* *qwen2 +3 +0 +0 +\d+s", table[2])
        assert "REVISION" in await kubectl.ok("get", "mdep", "-o", "wide")
        everywhere = await kubectl.ok("get", "modeldeployments.rkfleet.dev", "-A", "--no-headers")
        assert [line.split()[:2] for line in everywhere.splitlines()] == [["default", "alpha"], ["default", "beta"], ["lab", "gamma"]]
        sorted_names = await kubectl.ok("get", "mdep", "--sort-by=.spec.replicas", "--no-headers")
        assert [line.split()[0] for line in sorted_names.splitlines()] == ["alpha", "beta"]
        assert re.search(r"beta .* b +app=b", await kubectl.ok("get", "mdep", "-l", "app in (b,c)", "-L", "app", "--show-labels"))
        assert await kubectl.ok("get", "mdep", "--field-selector", "metadata.name!=alpha", "-o", "name") == (
            "modeldeployment.rkfleet.dev/beta\n"
        )
        assert await kubectl.ok("get", "mdep", "beta", "-o", "jsonpath={.spec.replicas}") == "3"
        assert "kind: ModelDeployment" in await kubectl.ok("get", "mdep", "beta", "-o", "yaml")
        assert "modeldeployment.rkfleet.dev/alpha" in await kubectl.ok("get", "all")
        missing = await kubectl.run("get", "mdep", "nope")
        assert (missing.code, missing.err) == (1, 'Error from server (NotFound): modeldeployments.rkfleet.dev "nope" not found\n')

    with_kubectl(tmp_path, test)


def test_a_long_list_is_read_in_pages(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        await asyncio.gather(*(api.call("POST", BOARDS, board(f"rk3588-{number:03}")) for number in range(120)))
        listed = await kubectl.ok("get", "boards", "--chunk-size=50", "-o", "name")
        assert listed.splitlines() == [f"board.rkfleet.dev/rk3588-{number:03}" for number in range(120)]

    with_kubectl(tmp_path, test)


def test_get_watch_prints_what_happens(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        await api.call("POST", DEPLOYMENTS, deployment("alpha"))
        async with kubectl.started("get", "mdep", "-w", "--output-watch-events", "--no-headers") as watching:
            assert watching.stdout is not None

            async def line() -> list[str]:
                assert watching.stdout is not None
                async with asyncio.timeout(10):
                    return (await watching.stdout.readline()).decode().split()[:2]

            assert await line() == ["ADDED", "alpha"]
            await api.call("POST", DEPLOYMENTS, deployment("beta"))
            assert await line() == ["ADDED", "beta"]
            await api.call("DELETE", f"{DEPLOYMENTS}/alpha")
            assert await line() == ["DELETED", "alpha"]

    with_kubectl(tmp_path, test)


def test_describe_and_events_show_what_happened_to_an_object(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        qwen = (await api.call("POST", DEPLOYMENTS, deployment("qwen"))).json()
        rk = (await api.call("POST", BOARDS, board("rk3588-1"))).json()
        events = "/api/v1/namespaces/default/events"
        await api.call("POST", events, event(qwen, "qwen.1", "made 2 replicas", reason="ScaledUp"))
        await api.call("POST", events, event(rk, "rk.1", "session lost", type="Warning", reason="BoardLost"))

        described = await kubectl.ok("describe", "mdep", "qwen")
        assert re.search(r"Normal +ScaledUp +\S+ +deployment +made 2 replicas", described)
        assert "BoardLost" not in described
        assert re.search(r"Warning +BoardLost +\S+ +deployment +session lost", await kubectl.ok("describe", "board", "rk3588-1"))
        assert "ScaledUp" in await kubectl.ok("events", "--for", "modeldeployment.rkfleet.dev/qwen")
        assert re.search(r"ScaledUp .*\n.*BoardLost|BoardLost .*\n.*ScaledUp", await kubectl.ok("get", "events"))
        assert "Name:         default" in await kubectl.ok("describe", "namespace", "default")

    with_kubectl(tmp_path, test)


def test_explain_prints_the_descriptions_of_the_fields(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        field = await kubectl.ok("explain", "mdep.spec.template.serving.contextTokens")
        assert "Context window in tokens, prompt and answer together." in field
        recursive = await kubectl.ok("explain", "modeldeployment", "--recursive")
        assert re.search(r"template\s+<Object> -required-", recursive)
        assert "ownerReferences" in recursive

    with_kubectl(tmp_path, test)
