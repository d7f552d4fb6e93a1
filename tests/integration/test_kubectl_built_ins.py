"""What the real kubectl does with Kubernetes' own kinds here: Secrets, ConfigMaps, Leases, Events in both groups, services."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import RunningApi, running_api
from tests.support.kubectl import Kubectl
from tests.support.objects import deployment

pytestmark = pytest.mark.kubectl

SECRETS = "/api/v1/namespaces/default/secrets"


def with_kubectl(tmp_path: Path, test: Callable[[RunningApi, Kubectl], Awaitable[None]], minor: int = 32) -> None:
    async def run() -> None:
        async with running_api(tmp_path) as api:
            await test(api, Kubectl(api.kubeconfig, tmp_path / "home", minor))

    asyncio.run(run())


@pytest.mark.parametrize("minor", [27, 33])
def test_typed_creates_by_json_and_by_protobuf(tmp_path: Path, minor: int) -> None:
    """kubectl 1.32 and later send protobuf for the kinds that they know."""

    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        await kubectl.ok("create", "namespace", "lab")
        await kubectl.ok("create", "secret", "generic", "db", "--from-literal=password=hunter2", "--from-literal=user=ada", "-n", "lab")
        await kubectl.ok("create", "configmap", "settings", "--from-literal=a=1")
        secret = await kubectl.json("get", "secret", "db", "-n", "lab")
        assert secret["type"] == "Opaque"
        assert {key: base64.b64decode(value).decode() for key, value in secret["data"].items()} == {"password": "hunter2", "user": "ada"}
        assert secret["metadata"].keys() >= {"uid", "creationTimestamp", "resourceVersion"}
        assert "generateName" not in secret["metadata"]
        assert (await kubectl.json("get", "cm", "settings"))["data"] == {"a": "1"}
        table = (await kubectl.ok("get", "secrets", "-n", "lab")).split("\n")
        assert table[0].split() == ["NAME", "TYPE", "DATA", "AGE"]
        assert table[1].split()[:3] == ["db", "Opaque", "2"]
        described = await kubectl.ok("describe", "secret", "db", "-n", "lab")
        assert "password:  7 bytes" in described
        assert "hunter2" not in described
        assert "deleted" in await kubectl.ok("delete", "secret", "db", "-n", "lab")
        login = ("--docker-server=registry.test", "--docker-username=ada", "--docker-password=hunter2")
        await kubectl.ok("create", "secret", "docker-registry", "pull", *login)
        assert (await kubectl.json("get", "secret", "pull"))["type"] == "kubernetes.io/dockerconfigjson"
        info = await kubectl.ok("cluster-info")
        assert "is running at" in info

    with_kubectl(tmp_path, test, minor)


def test_secrets_and_configmaps_are_applied_and_kept_as_they_should_be(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        secret: dict[str, Any] = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"token": "abc"}}
        assert "created" in await kubectl.ok("apply", "-f", "-", stdin=secret)
        stored = await kubectl.json("get", "secret", "s")
        assert stored["data"] == {"token": base64.b64encode(b"abc").decode()}
        assert "stringData" not in stored
        secret["stringData"] = {"token": "def"}
        assert "configured" in await kubectl.ok("apply", "-f", "-", stdin=secret)
        assert (await kubectl.json("get", "secret", "s"))["data"]["token"] == base64.b64encode(b"def").decode()
        wrong = await kubectl.run("create", "-f", "-", stdin={**secret, "metadata": {"name": "w"}, "data": {"a b": "x", "c": "hunter2!"}})
        assert "data[a b]" in wrong.err
        assert "data[c]: is not base64; put plain text into stringData" in wrong.err
        assert "hunter2" not in wrong.err
        retyped = await kubectl.run("patch", "secret", "s", "-p", '{"type": "other"}')
        assert "type: field is immutable" in retyped.err

        fixed = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}, "immutable": True}
        await kubectl.ok("apply", "--server-side", "-f", "-", stdin=fixed)
        changed = await kubectl.run("apply", "--server-side", "-f", "-", stdin={**fixed, "data": {"a": "2"}})
        assert "field is immutable when `immutable` is set" in changed.err
        loosened = await kubectl.run("patch", "cm", "c", "--type=merge", "-p", '{"immutable": false}')
        assert loosened.code == 1
        await kubectl.ok("label", "cm", "c", "still=labelled")

    with_kubectl(tmp_path, test)


def test_events_are_the_same_in_both_groups(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        made = (await api.call("POST", "/apis/rkfleet.dev/v1alpha1/namespaces/default/modeldeployments", deployment())).json()
        about = {"apiVersion": "rkfleet.dev/v1alpha1", "kind": "ModelDeployment", "name": "qwen", "namespace": "default"}
        regarding = {**about, "uid": made["metadata"]["uid"]}
        event = {
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e1", "namespace": "default"}, "regarding": regarding,
            "note": "It was looked at.", "reason": "Seen", "type": "Normal", "eventTime": "2026-01-01T00:00:00.000000Z", "action": "Look",
            "reportingController": "example.com/eye", "reportingInstance": "eye-1",
        }  # fmt: skip
        path = "/apis/events.k8s.io/v1/namespaces/default/events"
        async with api.watch(path) as following:
            assert (await api.call("POST", path, event)).status_code == 201
            seen = await following()
            assert (seen["type"], seen["object"]["note"], seen["object"]["kind"]) == ("ADDED", "It was looked at.", "Event")
        core = (await api.call("GET", "/api/v1/namespaces/default/events/e1")).json()
        assert (core["message"], core["involvedObject"], core["reportingComponent"]) == ("It was looked at.", regarding, "example.com/eye")
        assert core["apiVersion"] == "v1"
        viewed = (await api.call("GET", f"{path}/e1")).json()
        assert viewed["metadata"]["resourceVersion"] == core["metadata"]["resourceVersion"]
        chosen = (await api.call("GET", f"{path}?fieldSelector=regarding.name=qwen,reason=Seen")).json()["items"]
        assert [one["metadata"]["name"] for one in chosen] == ["e1"]
        assert (await api.call("GET", f"{path}?fieldSelector=regarding.name=other")).json()["items"] == []
        described = await kubectl.ok("describe", "mdep", "qwen")
        assert "It was looked at." in described
        assert "It was looked at." in await kubectl.ok("events", "--for", "mdep/qwen")
        assert "It was looked at." in await kubectl.ok("get", "events.events.k8s.io")
        listed = await kubectl.run("get", "ev")
        assert "It was looked at." in listed.out
        assert "Warning" not in listed.err
        assert "modeldeployment/qwen" in listed.out
        patched = await api.call("PATCH", f"{path}/e1", {"note": "Again."}, headers={"content-type": "application/merge-patch+json"})
        assert patched.json()["note"] == "Again."
        core = (await api.call("GET", "/api/v1/namespaces/default/events/e1")).json()
        assert core["message"] == "Again."
        owned = [entry["fieldsV1"] for entry in core["metadata"]["managedFields"]]
        assert any("f:message" in fields for fields in owned)
        assert not any("f:note" in fields for fields in owned)
        viewed = (await api.call("GET", f"{path}/e1")).json()
        assert {entry["apiVersion"] for entry in viewed["metadata"]["managedFields"]} == {"events.k8s.io/v1"}
        assert any("f:note" in entry["fieldsV1"] for entry in viewed["metadata"]["managedFields"])
        applied = {**event, "metadata": {"name": "e1"}, "note": "Applied."}
        refused = await kubectl.run("apply", "--server-side", "-f", "-", stdin=applied)
        assert ".note" in refused.err
        await kubectl.ok("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=applied)
        assert "serverside-applied" in await kubectl.ok("apply", "--server-side", "-f", "-", stdin=applied)
        assert (await api.call("GET", "/api/v1/namespaces/default/events/e1")).json()["message"] == "Applied."
        missing = await kubectl.run("get", "events.events.k8s.io", "none")
        assert 'events.events.k8s.io "none" not found' in missing.err
        again = (await api.call("POST", path, event)).json()
        assert (again["reason"], again["message"]) == ("AlreadyExists", 'events.events.k8s.io "e1" already exists')
        stale = {**event, "metadata": {**event["metadata"], "resourceVersion": "1"}}
        conflict = (await api.call("PUT", f"{path}/e1", stale)).json()
        assert (conflict["reason"], conflict["details"]["group"]) == ("Conflict", "events.k8s.io")
        await kubectl.ok("delete", "events.events.k8s.io", "e1", "--cascade=foreground", "--timeout=10s")
        assert (await api.call("GET", "/api/v1/namespaces/default/events/e1")).status_code == 404

    with_kubectl(tmp_path, test)


def test_every_kind_is_explained_and_services_are_only_read(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        for kind in ("secret", "configmap", "lease", "event", "services", "boards"):
            assert "FIELDS:" in await kubectl.ok("explain", kind, "--recursive"), kind
        assert "regarding" in await kubectl.ok("explain", "event", "--api-version=events.k8s.io/v1")
        assert "No resources found" in (await kubectl.run("get", "services")).err
        assert (await api.call("POST", "/api/v1/namespaces/default/services", {})).status_code == 405
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": {"holderIdentity": "me"}}
        await kubectl.ok("create", "-f", "-", stdin=lease)
        assert (await kubectl.ok("get", "leases")).split("\n")[1].split()[:2] == ["l", "me"]
        spec = {"holderIdentity": "me", "renewTime": "2026-01-01T00:00:00.123456Z", "leaseDurationSeconds": 15}
        assert "configured" in await kubectl.ok("apply", "-f", "-", stdin={**lease, "spec": spec})
        assert "2026-01-01T00:00:00.123456Z" in await kubectl.ok("describe", "lease", "l")
        wrong = await kubectl.run("apply", "-f", "-", stdin={**lease, "spec": {"renewTime": "yesterday", "leaseDurationSeconds": 0}})
        assert "spec.renewTime" in wrong.err
        assert "spec.leaseDurationSeconds" in wrong.err
        assert "deleted" in await kubectl.ok("delete", "lease", "l")
        document = (await api.call("GET", "/openapi/v3/api/v1")).json()
        metadata = document["components"]["schemas"]["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"]["properties"]
        assert metadata["finalizers"]["x-kubernetes-list-type"] == "set"
        assert metadata["ownerReferences"]["x-kubernetes-list-map-keys"] == ["uid"]
        empty = await api.call("GET", "/openapi/v2")
        assert (empty.status_code, empty.content) == (200, b"")
        assert empty.headers["content-type"] == "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"

    with_kubectl(tmp_path, test)
