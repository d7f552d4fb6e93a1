"""Rows of commands that read."""

from __future__ import annotations

import asyncio
import re

from tests.support.kubectl_rows.row import MERGE, Bench, Row, row
from tests.support.objects import BOARDS, GROUP_PATH, board, event

ROWS: list[Row] = []


@row(ROWS, "version")
async def _(bench: Bench) -> None:
    printed = await bench.ok("version", "-o", "json")
    assert '"gitVersion": "v1.32.' in printed
    assert f'"minor": "{bench.minor}' in printed


@row(ROWS, "api-resources")
async def _(bench: Bench) -> None:
    printed = await bench.ok("api-resources", "--verbs=list,watch")
    assert re.search(r"modeldeployments +mdep +rkfleet.dev/v1alpha1 +true +ModelDeployment", printed)
    assert re.search(r"boards +bd +rkfleet.dev/v1alpha1 +false +Board", printed)
    assert re.search(r"namespaces +ns +v1 +false +Namespace", printed)


@row(ROWS, "api-versions")
async def _(bench: Bench) -> None:
    assert {"v1", "rkfleet.dev/v1alpha1", "coordination.k8s.io/v1"} <= set((await bench.ok("api-versions")).split())


@row(ROWS, "get all")
async def _(bench: Bench) -> None:
    await bench.create(bench.deployments, bench.deployment())
    assert (await bench.ok("get", "all", "-o", "name")).split() == ["modeldeployment.rkfleet.dev/qwen"]


@row(ROWS, "get KIND (tables, -o wide, --sort-by, -l, -L, --field-selector)")
async def _(bench: Bench) -> None:
    for name, replicas in (("beta", 3), ("alpha", 9)):
        body = bench.deployment(name, replicas=replicas)
        body["metadata"]["labels"] = {"app": name[0]}
        await bench.create(bench.deployments, body)
    head, *lines = (await bench.ok("get", "mdep", "-L", "app")).splitlines()
    assert head.split() == ["NAME", "STATUS", "MODEL", "DESIRED", "UPDATED", "AVAILABLE", "AGE", "APP"]
    assert [(line.split()[0], line.split()[-1]) for line in lines] == [("alpha", "a"), ("beta", "b")]
    by_replicas = await bench.ok("get", "mdep", "--sort-by=.spec.replicas", "-o", "wide", "--no-headers")
    assert [line.split()[0] for line in by_replicas.splitlines()] == ["beta", "alpha"]
    assert await bench.ok("get", "mdep", "-l", "app in (b,c)", "-o", "name") == "modeldeployment.rkfleet.dev/beta\n"
    assert await bench.ok("get", "mdep", "--field-selector=metadata.name!=beta", "-o", "name") == "modeldeployment.rkfleet.dev/alpha\n"


@row(ROWS, "get KIND NAME (-o yaml, json, jsonpath; NotFound)")
async def _(bench: Bench) -> None:
    await bench.create(bench.deployments, bench.deployment(replicas=3))
    assert await bench.ok("get", "mdep", "qwen", "-o", "jsonpath={.spec.replicas}") == "3"
    assert "kind: ModelDeployment" in await bench.ok("get", "mdep/qwen", "-o", "yaml")
    missing = await bench.run("get", "mdep", "nope")
    assert (missing.code, missing.err) == (1, 'Error from server (NotFound): modeldeployments.rkfleet.dev "nope" not found\n')
    assert await bench.ok("get", "mdep", "nope", "--ignore-not-found") == ""


@row(ROWS, "get KIND -A")
async def _(bench: Bench) -> None:
    await bench.create(bench.deployments, bench.deployment("everywhere"))
    listed = await bench.ok("get", "modeldeployments.rkfleet.dev", "-A", "--no-headers")
    assert [bench.namespace, "everywhere"] in [line.split()[:2] for line in listed.splitlines()]


@row(ROWS, "get KIND --chunk-size")
async def _(bench: Bench) -> None:
    names = [f"m-{number}" for number in range(5)]
    await asyncio.gather(*(bench.create(bench.deployments, bench.deployment(name)) for name in names))
    listed = await bench.ok("get", "mdep", "--chunk-size=2", "-o", "name")
    assert listed.split() == [f"modeldeployment.rkfleet.dev/{name}" for name in names]


@row(ROWS, "get KIND -w")
async def _(bench: Bench) -> None:
    await bench.create(bench.deployments, bench.deployment("alpha"))
    async with bench.started("get", "mdep", "-w", "--output-watch-events", "--no-headers") as watching, asyncio.timeout(10):

        async def line() -> list[str]:
            return (await watching.stdout.readline()).decode().split()[:2]

        assert await line() == ["ADDED", "alpha"]
        await bench.create(bench.deployments, bench.deployment("beta"))
        assert await line() == ["ADDED", "beta"]
        await bench.api.call("DELETE", f"{bench.deployments}/alpha")
        assert await line() == ["DELETED", "alpha"]


@row(ROWS, "get KIND NAME -w")
async def _(bench: Bench) -> None:
    for name in ("other", "qwen"):
        await bench.create(bench.deployments, bench.deployment(name))
    async with bench.started("get", "mdep", "qwen", "-w", "-o", "jsonpath={.spec.replicas};") as watching, asyncio.timeout(10):
        assert await watching.stdout.readuntil(b";") == b"1;"
        for name, replicas in (("other", 5), ("qwen", 7)):
            await bench.api.call("PATCH", f"{bench.deployments}/{name}", {"spec": {"replicas": replicas}}, **MERGE)
        assert await watching.stdout.readuntil(b";") == b"7;"


@row(ROWS, "get --raw")
async def _(bench: Bench) -> None:
    assert await bench.ok("get", "--raw", "/readyz") == "ok"
    assert '"kind":"APIResourceList"' in await bench.ok("get", "--raw", GROUP_PATH)


@row(ROWS, "get KIND NAME --subresource=status")
async def _(bench: Bench) -> None:
    await bench.create(bench.deployments, bench.deployment())
    assert await bench.ok("get", "mdep", "qwen", "--subresource=status", "-o", "name") == "modeldeployment.rkfleet.dev/qwen\n"


@row(ROWS, "describe KIND NAME")
async def _(bench: Bench) -> None:
    qwen = await bench.create(bench.deployments, bench.deployment())
    rock = await bench.create(BOARDS, board(f"{bench.namespace}-rock"))
    await bench.create(f"/api/v1/namespaces/{bench.namespace}/events", event(qwen, "qwen.1", "made 2 replicas", reason="ScaledUp"))
    await bench.create("/api/v1/namespaces/default/events", event(rock, f"{bench.namespace}.1", "lost", type="Warning", reason="BoardLost"))
    described = await bench.ok("describe", "mdep", "qwen")
    assert re.search(r"Normal +ScaledUp +\S+ +deployment +made 2 replicas", described)
    assert "BoardLost" not in described
    assert re.search(r"Warning +BoardLost +\S+ +deployment +lost", await bench.ok("describe", "board", f"{bench.namespace}-rock"))


@row(ROWS, "describe namespace")
async def _(bench: Bench) -> None:
    described = await bench.ok("describe", "namespace", bench.namespace)
    assert re.search(rf"Name: +{bench.namespace}\n", described)
    assert "Active" in described


@row(ROWS, "events, events --for")
async def _(bench: Bench) -> None:
    qwen = await bench.create(bench.deployments, bench.deployment())
    await bench.create(f"/api/v1/namespaces/{bench.namespace}/events", event(qwen, "qwen.1", "made 2 replicas", reason="ScaledUp"))
    assert "made 2 replicas" in await bench.ok("events")
    assert "ScaledUp" in await bench.ok("events", "--for", "modeldeployment/qwen")
    assert "ScaledUp" not in await bench.ok("events", "--for", "modeldeployment/other")
    assert "ScaledUp" in await bench.ok("get", "events")


@row(ROWS, "explain, explain --recursive")
async def _(bench: Bench) -> None:
    field = await bench.ok("explain", "mdep.spec.template.serving.contextTokens")
    assert "Context window in tokens, prompt and answer together." in field
    recursive = await bench.ok("explain", "modeldeployment", "--recursive")
    assert re.search(r"template\s+<Object> -required-", recursive)
    assert "ownerReferences" in recursive


@row(ROWS, "wait --for=condition, --for=jsonpath, --for=delete")
async def _(bench: Bench) -> None:
    await bench.create(bench.deployments, bench.deployment())
    async with (
        bench.started("wait", "--for=condition=Available", "mdep/qwen", "--timeout=15s") as condition,
        bench.started("wait", "--for=jsonpath={.status.replicas}=2", "mdep/qwen", "--timeout=15s") as path,
    ):
        available = {"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable"}
        status = {"status": {"replicas": 2, "conditions": [available]}}
        answer = await bench.api.call("PATCH", f"{bench.deployments}/qwen/status", status, **MERGE)
        assert answer.status_code == 200, answer.text
        async with asyncio.timeout(15):
            assert [await condition.wait(), await path.wait()] == [0, 0]
    async with bench.started("wait", "--for=delete", "mdep/qwen", "--timeout=15s") as gone:
        await bench.api.call("DELETE", f"{bench.deployments}/qwen")
        async with asyncio.timeout(15):
            assert await gone.wait() == 0
