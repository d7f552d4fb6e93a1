"""Rows of `apply` and `diff`, on the client's side and on the server's."""

from __future__ import annotations

from typing import Any

from tests.support.kubectl_rows.row import Bench, Row, row

ROWS: list[Row] = []


def _managers(obj: Any) -> dict[str, str]:
    return {entry["manager"]: entry["operation"] for entry in obj["metadata"].get("managedFields", [])}


@row(ROWS, "apply -f (new, changed, same)")
async def _(bench: Bench) -> None:
    first = bench.deployment(replicas=2, paused=True)
    assert await bench.ok("apply", "-f", "-", stdin=first) == "modeldeployment.rkfleet.dev/qwen created\n"
    created = await bench.qwen()
    assert "unchanged" in await bench.ok("apply", "-f", "-", stdin=first)
    assert await bench.qwen() == created
    assert "configured" in await bench.ok("apply", "-f", "-", stdin=bench.deployment(replicas=4))
    stored = await bench.qwen()
    assert (stored["spec"]["replicas"], stored["spec"]["paused"], stored["metadata"]["generation"]) == (4, False, 2)


@row(ROWS, "apply -f of a built-in kind (strategic merge patch)")
async def _(bench: Bench) -> None:
    lab: Any = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"{bench.namespace}-lab"}}
    assert "created" in await bench.ok("apply", "-f", "-", stdin=lab)
    lab["metadata"]["labels"] = {"site": "a"}
    assert "configured" in await bench.ok("apply", "-f", "-", stdin=lab)
    assert "unchanged" in await bench.ok("apply", "-f", "-", stdin=lab)
    stored = await bench.stored(f"/api/v1/namespaces/{bench.namespace}-lab")
    assert stored["metadata"]["labels"]["site"] == "a"


@row(ROWS, "apply --prune")
async def _(bench: Bench) -> None:
    kept, pruned = bench.deployment("kept"), bench.deployment("pruned")
    for body in (kept, pruned):
        body["metadata"]["labels"] = {"set": "one"}
    await bench.ok("apply", "-f", "-", stdin={"apiVersion": "v1", "kind": "List", "items": [kept, pruned]})
    options = ("--prune", "-l", "set=one", "--prune-allowlist=rkfleet.dev/v1alpha1/ModelDeployment")
    assert "pruned" in await bench.ok("apply", *options, "-f", "-", stdin=kept)
    assert [item["metadata"]["name"] for item in (await bench.stored(bench.deployments))["items"]] == ["kept"]


@row(ROWS, "diff")
async def _(bench: Bench) -> None:
    first = bench.deployment(replicas=2)
    await bench.ok("apply", "-f", "-", stdin=first)
    before = await bench.qwen()
    differs = await bench.run("diff", "-f", "-", stdin=bench.deployment(replicas=4))
    assert (differs.code, "+  replicas: 4" in differs.out, "+  generation: 2" in differs.out) == (1, True, True)
    assert (await bench.run("diff", "-f", "-", stdin=first)).code == 0
    assert (await bench.run("diff", "-f", "-", stdin=bench.deployment("new"))).code == 1
    assert await bench.qwen() == before


@row(ROWS, "apply --server-side (new, changed, same, a field left out)")
async def _(bench: Bench) -> None:
    first = bench.deployment(replicas=2, paused=True)
    assert "serverside-applied" in await bench.ok("apply", "--server-side", "-f", "-", stdin=first)
    created = await bench.qwen()
    assert _managers(created) == {"kubectl": "Apply"}
    assert "serverside-applied" in await bench.ok("apply", "--server-side", "-f", "-", stdin=first)
    assert await bench.qwen() == created
    assert "serverside-applied" in await bench.ok("apply", "--server-side", "-f", "-", stdin=bench.deployment(replicas=3))
    stored = await bench.qwen()
    assert (stored["spec"]["replicas"], stored["spec"]["paused"]) == (3, False)


@row(ROWS, "apply --server-side (conflict, --force-conflicts)")
async def _(bench: Bench) -> None:
    await bench.ok("apply", "--server-side", "--field-manager=gitops", "-f", "-", stdin=bench.deployment(replicas=2))
    conflict = await bench.run("apply", "--server-side", "-f", "-", stdin=bench.deployment(replicas=3))
    assert (conflict.code, 'conflict with "gitops"' in conflict.err, ".spec.replicas" in conflict.err) == (1, True, True)
    assert (await bench.qwen())["spec"]["replicas"] == 2
    await bench.ok("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=bench.deployment(replicas=3))
    assert (await bench.qwen())["spec"]["replicas"] == 3


@row(ROWS, "apply, then apply --server-side (migration)")
async def _(bench: Bench) -> None:
    await bench.ok("apply", "-f", "-", stdin=bench.deployment(replicas=2, paused=True))
    assert "serverside-applied" in await bench.ok("apply", "--server-side", "-f", "-", stdin=bench.deployment(replicas=5))
    stored = await bench.qwen()
    assert (stored["spec"]["replicas"], stored["spec"]["paused"]) == (5, False)
    assert "kubectl-client-side-apply" not in _managers(stored)


@row(ROWS, "diff --server-side")
async def _(bench: Bench) -> None:
    await bench.ok("apply", "--server-side", "-f", "-", stdin=bench.deployment(replicas=2))
    before = await bench.qwen()
    differs = await bench.run("diff", "--server-side", "-f", "-", stdin=bench.deployment(replicas=4))
    assert (differs.code, "+  replicas: 4" in differs.out) == (1, True)
    assert (await bench.run("diff", "--server-side", "-f", "-", stdin=bench.deployment(replicas=2))).code == 0
    assert await bench.qwen() == before
