"""Rows about kinds that kubectl itself knows: from version 1.32 on it sends those it makes from arguments as protobuf."""

from __future__ import annotations

import base64

from tests.support.kubectl_rows.row import Bench, Row, row

ROWS: list[Row] = []


@row(ROWS, "create namespace")
async def _(bench: Bench) -> None:
    assert "created" in await bench.ok("create", "namespace", f"{bench.namespace}-made")
    stored = await bench.stored(f"/api/v1/namespaces/{bench.namespace}-made")
    assert (stored["status"], "generateName" in stored["metadata"]) == ({"phase": "Active"}, False)


@row(ROWS, "create secret generic, get secret")
async def _(bench: Bench) -> None:
    await bench.ok("create", "secret", "generic", "keys", "--from-literal=password=geheim")
    stored = await bench.stored(f"/api/v1/namespaces/{bench.namespace}/secrets/keys")
    assert (stored["type"], base64.b64decode(stored["data"]["password"])) == ("Opaque", b"geheim")
    assert "keys" in await bench.ok("get", "secrets")
    assert "geheim" not in await bench.ok("describe", "secret", "keys")


@row(ROWS, "create configmap, apply of a ConfigMap")
async def _(bench: Bench) -> None:
    path = f"/api/v1/namespaces/{bench.namespace}/configmaps"
    await bench.ok("create", "configmap", "made", "--from-literal=a=b")
    assert (await bench.stored(f"{path}/made"))["data"] == {"a": "b"}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied", "namespace": bench.namespace}}
    await bench.ok("apply", "-f", "-", stdin={**config, "data": {"a": "1", "b": "2"}})
    assert "configured" in await bench.ok("apply", "-f", "-", stdin={**config, "data": {"a": "1"}})
    assert (await bench.stored(f"{path}/applied"))["data"] == {"a": "1"}


@row(ROWS, "apply of a Lease, get lease")
async def _(bench: Bench) -> None:
    spec = {"holderIdentity": "a", "leaseDurationSeconds": 15, "renewTime": "2026-01-02T03:04:05.000000Z"}
    metadata = {"name": "lead", "namespace": bench.namespace}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
    assert "created" in await bench.ok("apply", "-f", "-", stdin=lease)
    assert "configured" in await bench.ok("apply", "-f", "-", stdin={**lease, "spec": {**spec, "holderIdentity": "b"}})
    stored = await bench.stored(f"/apis/coordination.k8s.io/v1/namespaces/{bench.namespace}/leases/lead")
    assert (stored["spec"]["holderIdentity"], stored["spec"]["renewTime"]) == ("b", spec["renewTime"])
    assert "lead" in await bench.ok("get", "lease")


@row(ROWS, "cluster-info")
async def _(bench: Bench) -> None:
    assert bench.api.url in await bench.ok("cluster-info")
