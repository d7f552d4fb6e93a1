"""Rows of commands that create, change and delete."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.kubectl_rows.row import MERGE, Bench, Row, row
from tests.support.objects import BOARDS, board

ROWS: list[Row] = []


@row(ROWS, "create -f (also generateName)")
async def _(bench: Bench) -> None:
    assert await bench.ok("create", "-f", "-", stdin=bench.deployment(replicas=2)) == "modeldeployment.rkfleet.dev/qwen created\n"
    assert (await bench.qwen())["spec"]["replicas"] == 2
    again = await bench.run("create", "-f", "-", stdin=bench.deployment())
    assert (again.code, 'modeldeployments.rkfleet.dev "qwen" already exists' in again.err) == (1, True)
    generated = bench.deployment()
    generated["metadata"] = {"generateName": "made-", "namespace": bench.namespace}
    name = (await bench.ok("create", "-f", "-", "-o", "name", stdin=generated)).strip().rpartition("/")[2]
    assert (len(name), (await bench.stored(f"{bench.deployments}/{name}"))["metadata"]["generateName"]) == (10, "made-")


@row(ROWS, "create --validate=strict, warn, ignore")
async def _(bench: Bench) -> None:
    wrong = {"replicaz": 1, "otherz": 2}
    strict = await bench.run("create", "--validate=strict", "-f", "-", stdin=bench.deployment(**wrong))
    assert (strict.code, 'strict decoding error: unknown field "spec.' in strict.err) == (1, True)
    warned = await bench.run("create", "--validate=warn", "-f", "-", stdin=bench.deployment(**wrong))
    assert (warned.code, 'Warning: unknown field "spec.otherz"' in warned.err) == (0, True)
    assert 'Warning: unknown field "spec.replicaz"' in warned.err
    ignored = await bench.run("create", "--validate=ignore", "-f", "-", stdin=bench.deployment("quiet", **wrong))
    assert (ignored.code, ignored.err) == (0, "")
    assert "replicaz" not in (await bench.stored(f"{bench.deployments}/quiet"))["spec"]


@row(ROWS, "create (Invalid, with every cause)")
async def _(bench: Bench) -> None:
    wrong = await bench.run("create", "-f", "-", stdin=bench.deployment(replicas=-1, progressDeadlineSeconds=0))
    assert (wrong.code, wrong.err.startswith('The ModelDeployment "qwen" is invalid:')) == (1, True)
    assert "* spec.replicas: " in wrong.err
    assert "* spec.progressDeadlineSeconds: " in wrong.err
    assert await bench.qwen() == {}


@row(ROWS, "create, label, delete --dry-run=server")
async def _(bench: Bench) -> None:
    created = await bench.ok("create", "--dry-run=server", "-o", "yaml", "-f", "-", stdin=bench.deployment())
    assert "contextTokens: 1024" in created
    assert "resourceVersion" not in created
    assert await bench.qwen() == {}
    before = await bench.create(bench.deployments, bench.deployment())
    await bench.ok("label", "mdep", "qwen", "--dry-run=server", "a=b")
    await bench.ok("delete", "mdep", "qwen", "--dry-run=server")
    assert await bench.qwen() == before


@row(ROWS, "patch --type=merge, --type=json; a strategic patch of a custom kind is refused")
async def _(bench: Bench) -> None:
    await bench.create(bench.deployments, bench.deployment())
    await bench.ok("patch", "mdep", "qwen", "--type=merge", "-p", '{"spec":{"paused":true}}')
    operations = '[{"op":"test","path":"/spec/paused","value":true},{"op":"replace","path":"/spec/replicas","value":4}]'
    await bench.ok("patch", "mdep", "qwen", "--type=json", "-p", operations)
    stored = await bench.qwen()
    assert (stored["spec"]["paused"], stored["spec"]["replicas"], stored["metadata"]["generation"]) == (True, 4, 3)
    failed = await bench.run("patch", "mdep", "qwen", "--type=json", "-p", operations.replace("true", "false"))
    assert (failed.code, "test" in failed.err) == (1, True)
    strategic = await bench.run("patch", "mdep", "qwen", "-p", '{"spec":{"paused":false}}')
    assert (strategic.code, "application/merge-patch+json" in strategic.err) == (1, True)
    assert await bench.qwen() == stored


@row(ROWS, "patch --subresource=status")
async def _(bench: Bench) -> None:
    await bench.create(bench.deployments, bench.deployment(replicas=8))
    patch = '{"status":{"replicas":8},"spec":{"replicas":1}}'
    await bench.ok("patch", "mdep", "qwen", "--subresource=status", "--type=merge", "-p", patch)
    stored = await bench.qwen()
    assert (stored["spec"]["replicas"], stored["status"]["replicas"], stored["metadata"]["generation"]) == (8, 8, 1)


@row(ROWS, "label, annotate")
async def _(bench: Bench) -> None:
    await bench.create(bench.deployments, bench.deployment())
    await bench.ok("label", "mdep", "qwen", "tier=gold", "site=lab")
    await bench.ok("label", "mdep", "qwen", "site-")
    await bench.ok("annotate", "mdep", "qwen", "note=hello")
    metadata = (await bench.qwen())["metadata"]
    assert (metadata["labels"], metadata["annotations"], metadata["generation"]) == ({"tier": "gold"}, {"note": "hello"}, 1)


@row(ROWS, "edit")
async def _(bench: Bench) -> None:
    await bench.create(bench.deployments, bench.deployment(replicas=6))
    with TemporaryDirectory() as directory:
        editor = Path(directory) / "editor"
        editor.write_text('#!/bin/sh\nsed -i "s/replicas: 6/replicas: 7/" "$1"\n')
        editor.chmod(0o755)
        assert "edited" in await bench.ok("edit", "mdep", "qwen", env={"KUBE_EDITOR": str(editor)})
    assert (await bench.qwen())["spec"]["replicas"] == 7


@row(ROWS, "scale, scale --current-replicas")
async def _(bench: Bench) -> None:
    await bench.create(bench.deployments, bench.deployment(replicas=2))
    assert "scaled" in await bench.ok("scale", "mdep/qwen", "--replicas=5")
    assert (await bench.qwen())["spec"]["replicas"] == 5
    assert "scaled" in await bench.ok("scale", "mdep/qwen", "--replicas=6", "--current-replicas=5")
    assert (await bench.qwen())["spec"]["replicas"] == 6
    assert (await bench.run("scale", "mdep/qwen", "--replicas=9", "--current-replicas=5")).code == 1
    assert (await bench.qwen())["spec"]["replicas"] == 6


@row(ROWS, "replace -f")
async def _(bench: Bench) -> None:
    stored = await bench.create(bench.deployments, bench.deployment(replicas=2, paused=True))
    assert "replaced" in await bench.ok("replace", "-f", "-", stdin=bench.deployment(replicas=8))
    replaced = await bench.qwen()
    assert (replaced["spec"]["replicas"], replaced["spec"]["paused"]) == (8, False)
    assert replaced["metadata"]["uid"] == stored["metadata"]["uid"]


@row(ROWS, "delete KIND NAME (also while a finalizer holds it)")
async def _(bench: Bench) -> None:
    held = bench.deployment()
    held["metadata"]["finalizers"] = ["rkfleet.dev/drain"]
    await bench.create(bench.deployments, held)
    async with bench.started("delete", "mdep", "qwen") as deleting, asyncio.timeout(10):
        assert b'"qwen" deleted' in await deleting.stdout.readline()
        assert "deletionTimestamp" in (await bench.qwen())["metadata"]
        assert deleting.returncode is None
        await bench.api.call("PATCH", f"{bench.deployments}/qwen", {"metadata": {"finalizers": None}}, **MERGE)
        assert await deleting.wait() == 0
    assert await bench.qwen() == {}
    assert await bench.ok("delete", "mdep", "qwen", "--ignore-not-found") == ""


@row(ROWS, "delete -l, --all")
async def _(bench: Bench) -> None:
    for name, site in (("a", "lab"), ("b", "roof"), ("c", "roof")):
        body = bench.deployment(name)
        body["metadata"]["labels"] = {"site": site}
        await bench.create(bench.deployments, body)
    await bench.ok("delete", "mdep", "-l", "site=lab")
    assert [item["metadata"]["name"] for item in (await bench.stored(bench.deployments))["items"]] == ["b", "c"]
    await bench.ok("delete", "mdep", "--all")
    assert (await bench.stored(bench.deployments))["items"] == []


@row(ROWS, "delete --cascade=foreground, orphan")
async def _(bench: Bench) -> None:
    for how in ("foreground", "orphan"):
        owner = await bench.create(BOARDS, board(f"{bench.namespace}-{how}"))
        reference = {"apiVersion": "rkfleet.dev/v1alpha1", "kind": "Board", "blockOwnerDeletion": True}
        dependent = bench.deployment(how)
        dependent["metadata"]["ownerReferences"] = [{**reference, "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}]
        await bench.create(bench.deployments, dependent)
        assert "deleted" in await bench.ok("delete", "board", owner["metadata"]["name"], f"--cascade={how}", "--timeout=15s")
        assert await bench.stored(f"{BOARDS}/{owner['metadata']['name']}") == {}
    assert await bench.stored(f"{bench.deployments}/foreground") == {}
    assert "ownerReferences" not in (await bench.stored(f"{bench.deployments}/orphan"))["metadata"]


@row(ROWS, "create in a namespace that does not exist; delete of the namespace default (both refused)")
async def _(bench: Bench) -> None:
    nowhere = bench.deployment()
    nowhere["metadata"]["namespace"] = "nowhere"
    refused = await bench.kubectl.run("create", "-f", "-", stdin=nowhere)
    assert refused.err == 'Error from server (NotFound): error when creating "STDIN": namespaces "nowhere" not found\n'
    protected = await bench.run("delete", "namespace", "default")
    assert (protected.code, "this namespace may not be deleted" in protected.err) == (1, True)
    assert (await bench.stored("/api/v1/namespaces/default"))["status"] == {"phase": "Active"}
