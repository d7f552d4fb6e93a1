"""Server-side apply by the real kubectl: owners, conflicts, what goes, and the way there from client-side apply."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import RunningApi, running_api
from tests.support.kubectl import Kubectl
from tests.support.objects import DEPLOYMENTS, deployment, namespace

pytestmark = pytest.mark.kubectl

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
MINORS = (27, 30, 33)


def with_kubectl(tmp_path: Path, test: Callable[[RunningApi, Kubectl], Awaitable[None]], minor: int = 32) -> None:
    async def run() -> None:
        async with running_api(tmp_path) as api:
            await test(api, Kubectl(api.kubeconfig, tmp_path / "home", minor))

    asyncio.run(run())


async def stored(api: RunningApi, name: str = "qwen") -> dict[str, Any]:
    found: dict[str, Any] = (await api.call("GET", f"{DEPLOYMENTS}/{name}")).json()
    return found


def managers(obj: dict[str, Any]) -> dict[str, str]:
    return {entry["manager"]: entry["operation"] for entry in obj["metadata"]["managedFields"]}


def labelled(**labels: str) -> dict[str, Any]:
    made = deployment(replicas=2)
    return {**made, "metadata": {**made["metadata"], "labels": labels}}


def test_apply_makes_changes_and_takes_away(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        applied = ("apply", "--server-side", "-f", "-")
        assert await kubectl.ok(*applied, stdin=labelled(a="1", b="2")) == "modeldeployment.rkfleet.dev/qwen serverside-applied\n"
        first = await stored(api)
        assert managers(first) == {"kubectl": "Apply"}
        assert first["metadata"]["managedFields"][0]["fieldsV1"]["f:metadata"] == {"f:labels": {"f:a": {}, "f:b": {}}}
        await kubectl.ok(*applied, stdin=labelled(a="1", b="2"))
        assert await stored(api) == first, "the same again is no write"
        await kubectl.ok(*applied, stdin=labelled(a="3"))
        changed = await stored(api)
        assert changed["metadata"]["labels"] == {"a": "3"}
        assert changed["metadata"]["generation"] == 1
        differs = await kubectl.run("diff", "--server-side", "-f", "-", stdin=labelled(a="4"))
        assert differs.code == 1
        assert '+    a: "4"' in differs.out
        dry = await kubectl.ok(*applied, "--dry-run=server", "-o", "jsonpath={.metadata.labels.a}", stdin=labelled(a="5"))
        assert dry == "5"
        assert await stored(api) == changed

    with_kubectl(tmp_path, test)


def test_two_managers_conflict_share_and_take_over(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        async def apply(manager: str, *flags: str, **spec: Any) -> Any:
            return await kubectl.run("apply", "--server-side", f"--field-manager={manager}", *flags, "-f", "-", stdin=deployment(**spec))

        assert (await apply("flux", replicas=2)).code == 0
        assert (await apply("kim", replicas=2)).code == 0, "the same value is no conflict"
        refused = await apply("kim", replicas=3)
        assert refused.code == 1
        assert 'Apply failed with 1 conflict: conflict with "flux": .spec.replicas' in refused.err
        assert "Please review the fields above" in refused.err
        assert (await stored(api))["spec"]["replicas"] == 2
        assert (await apply("kim", "--force-conflicts", replicas=3)).code == 0
        assert (await stored(api))["spec"]["replicas"] == 3
        assert (await apply("flux", replicas=2)).code == 1

        await kubectl.ok("scale", "mdep/qwen", "--replicas=5")
        entries = {entry["manager"]: entry for entry in (await stored(api))["metadata"]["managedFields"]}
        scaler = next(name for name in entries if name.startswith("kubectl"))  # By its User-Agent, which is its file's name.
        assert entries[scaler]["subresource"] == "scale"
        assert entries[scaler]["fieldsV1"] == {"f:spec": {"f:replicas": {}}}
        refused = await apply("kim", replicas=3)
        assert f'conflict with "{scaler}" with subresource "scale" using rkfleet.dev/v1alpha1: .spec.replicas' in refused.err
        assert (await apply("kim")).code == 0, "who applies it no more has nothing against it"
        assert (await stored(api))["spec"]["replicas"] == 5

    with_kubectl(tmp_path, test)


@pytest.mark.parametrize("minor", MINORS)
def test_the_way_from_client_side_apply(tmp_path: Path, minor: int) -> None:
    """The first server-side apply takes over what client-side apply owned, also with a changed value, and removes what it does not name."""

    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        await kubectl.ok("apply", "-f", "-", stdin=labelled(a="1", b="2"))
        assert managers(await stored(api)) == {"kubectl-client-side-apply": "Update"}
        changed = labelled(a="9")
        changed["spec"]["replicas"] = 7
        await kubectl.ok("apply", "--server-side", "-f", "-", stdin=changed)
        after = await stored(api)
        assert after["spec"]["replicas"] == 7
        assert after["metadata"]["labels"] == {"a": "9"}
        assert managers(after) == {"kubectl": "Apply", "kubectl-last-applied": "Apply"}
        assert '"replicas":7' in after["metadata"]["annotations"][LAST_APPLIED]
        back = await kubectl.ok("apply", "-f", "-", stdin=labelled(a="9", c="3"))
        assert "configured" in back
        final = await stored(api)
        assert (final["metadata"]["labels"], final["spec"]["replicas"]) == ({"a": "9", "c": "3"}, 2)

    with_kubectl(tmp_path, test, minor)


def test_kubectl_overrules_what_it_applied_itself_but_nobody_else(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        await kubectl.ok("apply", "-f", "-", stdin=deployment(replicas=2))
        await kubectl.ok("scale", "mdep/qwen", "--replicas=4")
        changed = deployment(replicas=6)
        refused = await kubectl.run("apply", "--server-side", "-f", "-", stdin=changed)
        assert refused.code == 1
        assert ".spec.replicas" in refused.err
        assert (await stored(api))["spec"]["replicas"] == 4

    with_kubectl(tmp_path, test)


def test_built_in_kinds_are_applied_too(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        lab = {**namespace("lab"), "metadata": {"name": "lab", "labels": {"site": "a", "room": "1"}}}
        await kubectl.ok("apply", "--server-side", "-f", "-", stdin=lab)
        lab["metadata"] = {"name": "lab", "labels": {"site": "b"}}
        await kubectl.ok("apply", "--server-side", "-f", "-", stdin=lab)
        found = await kubectl.json("get", "ns", "lab")
        assert found["metadata"]["labels"] == {"site": "b"}
        assert found["status"]["phase"] == "Active"

    with_kubectl(tmp_path, test)


def test_values_are_applied_key_by_key(tmp_path: Path) -> None:
    """Who applies the text of a Secret owns the value that it becomes, and takes it away by not naming it."""

    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        applied = ("apply", "--server-side", "-f", "-")
        settings: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": "1", "b": "2"}}
        await kubectl.ok(*applied, stdin=settings)
        await kubectl.ok(*applied, "--field-manager=other", stdin={**settings, "data": {"c": "3"}})
        await kubectl.ok(*applied, stdin={**settings, "data": {"a": "1"}})
        assert (await kubectl.json("get", "cm", "settings"))["data"] == {"a": "1", "c": "3"}
        refused = await kubectl.run(*applied, "--field-manager=other", stdin={**settings, "data": {"a": "9", "c": "3"}})
        assert 'conflict with "kubectl": .data.a' in refused.err

        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"user": "ada", "word": "x"}}
        await kubectl.ok(*applied, stdin=secret)
        first = await kubectl.json("get", "secret", "keys")
        assert first["data"] == {"user": "YWRh", "word": "eA=="}
        await kubectl.ok(*applied, stdin=secret)
        assert (await kubectl.json("get", "secret", "keys"))["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
        await kubectl.ok(*applied, stdin={**secret, "stringData": {"user": "ada"}})
        assert (await kubectl.json("get", "secret", "keys"))["data"] == {"user": "YWRh"}

    with_kubectl(tmp_path, test)


def test_who_edits_owns_what_was_edited(tmp_path: Path) -> None:
    async def test(api: RunningApi, kubectl: Kubectl) -> None:
        applied = ("apply", "--server-side", "-f", "-")
        await kubectl.ok(*applied, stdin=labelled(a="1"))
        editor = tmp_path / "editor"
        editor.write_text('#!/bin/sh\nsed -i "s/replicas: 2/replicas: 7/" "$1"\n')
        editor.chmod(0o755)
        await kubectl.ok("edit", "mdep", "qwen", env={"KUBE_EDITOR": str(editor)})
        entries = {entry["manager"]: entry for entry in (await stored(api))["metadata"]["managedFields"]}
        assert entries["kubectl-edit"]["fieldsV1"] == {"f:spec": {"f:replicas": {}}}
        assert "f:replicas" not in entries["kubectl"]["fieldsV1"]["f:spec"]
        refused = await kubectl.run(*applied, stdin=labelled(a="1"))
        assert 'conflict with "kubectl-edit" using rkfleet.dev/v1alpha1: .spec.replicas' in refused.err
        await kubectl.ok(*applied, "--force-conflicts", stdin=labelled(a="1"))
        assert managers(await stored(api)) == {"kubectl": "Apply"}

    with_kubectl(tmp_path, test)


def test_replicas_are_applied_through_scale(tmp_path: Path) -> None:
    async def run() -> None:
        async with running_api(tmp_path) as api:
            headers = {"content-type": "application/apply-patch+json"}

            async def apply(replicas: int, query: str = "fieldManager=scaler", **metadata: str) -> tuple[int, dict[str, Any]]:
                body = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata, "spec": {"replicas": replicas}}
                answer = await api.call("PATCH", f"{DEPLOYMENTS}/qwen/scale?{query}", body, headers=headers)
                return answer.status_code, answer.json()

            assert (await apply(3))[0] == 404, "a part of nothing makes nothing"
            await api.call("POST", f"{DEPLOYMENTS}?fieldManager=maker", deployment(replicas=2))
            code, status = await apply(3)
            assert (code, status["details"]["causes"][0]["field"]) == (409, ".spec.replicas")
            code, scale = await apply(3, "fieldManager=scaler&force=true")
            assert (code, scale["kind"], scale["spec"]) == (200, "Scale", {"replicas": 3})
            entry = next(one for one in (await stored(api))["metadata"]["managedFields"] if one["manager"] == "scaler")
            assert (entry["operation"], entry["subresource"], entry["fieldsV1"]) == ("Apply", "scale", {"f:spec": {"f:replicas": {}}})
            version = (await stored(api))["metadata"]["resourceVersion"]
            assert (await apply(3))[1]["metadata"]["resourceVersion"] == version
            assert (await apply(4, resourceVersion="1"))[0] == 409
            assert (await apply(4, ""))[0] == 422
            assert (await apply(-1))[0] == 422
            assert (await apply(4, "fieldManager=scaler&dryRun=All"))[1]["spec"] == {"replicas": 4}
            assert (await stored(api))["metadata"]["resourceVersion"] == version

    asyncio.run(run())


def test_what_cannot_be_applied_is_refused_in_kubernetes_words(tmp_path: Path) -> None:
    async def run() -> None:
        async with running_api(tmp_path) as api:
            path = f"{DEPLOYMENTS}/qwen"

            async def apply(body: Any, query: str = "fieldManager=kim") -> tuple[int, dict[str, Any]]:
                answer = await api.call("PATCH", f"{path}?{query}", body, headers={"content-type": "application/apply-patch+yaml"})
                return answer.status_code, answer.json()

            code, status = await apply(deployment(), query="")
            assert (code, status["message"]) == (422, "fieldManager: Required value: is required for apply patch")
            owned = {**deployment(), "metadata": {"name": "qwen", "managedFields": []}}
            assert (await apply(owned))[1]["message"] == "metadata.managedFields must be nil"
            code, status = await apply({"metadata": {"name": "qwen"}})
            assert (code, status["message"]) == (400, "apiVersion must be set in what is applied; here it is rkfleet.dev/v1alpha1")
            absent = {**deployment(), "metadata": {"name": "qwen", "resourceVersion": "5"}}
            assert (await apply(absent))[0] == 409
            yaml = b"apiVersion: rkfleet.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {name: qwen}\n"
            code, made = await apply(yaml + b"spec: {template: {model: qwen2}, replicas: 2}\n")
            assert (code, made["spec"]["replicas"]) == (201, 2)
            bare = b"{apiVersion: rkfleet.dev/v1alpha1, kind: ModelDeployment, spec: {template: {model: qwen2}, replicas: 2}}"
            assert (await apply(bare))[0] == 200, "YAML in braces, and the same as before"
            for body, told in (
                (b"a: &x [1]\nb: *x\n", "aliases are not allowed"),
                (b"a: 1\na: 2\n", "the same key is already on line 1"),
                (b"a: 1\n---\nb: 1\n", "one document is allowed"),
                (b'{"a": ', "not valid JSON"),
                (b"- 1\n", "must stand"),
            ):
                code, status = await apply(body)
                assert (code, told in status["message"]) == (400, True), status
            assert (await apply(b"a: " + b"x" * (128 << 10)))[0] == 413
            code, status = await apply({**deployment(), "metadata": {"name": "qwen", "annotations": "x"}}, query="fieldManager=kubectl")
            assert code == 422
            stale = {**deployment(replicas=3), "metadata": {"name": "qwen", "resourceVersion": "1"}}
            code, status = await apply(stale)
            assert (code, status["reason"]) == (409, "Conflict")
            code, status = await apply(deployment(replicas=3), query="fieldManager=lou")
            cause = {"reason": "FieldManagerConflict", "message": 'conflict with "kim"', "field": ".spec.replicas"}
            assert status["details"]["causes"] == [cause]
            forced = await api.call("PATCH", f"{path}?force=true", {}, headers={"content-type": "application/merge-patch+json"})
            assert forced.status_code == 422

            async def merge(patch: Any) -> dict[str, Any]:
                answer = await api.call("PATCH", path, patch, headers={"content-type": "application/merge-patch+json"})
                return {**answer.json(), "code": answer.status_code}

            assert managers(await merge({"metadata": {"managedFields": []}})) == {"kim": "Apply"}, "an empty list says nothing"
            assert (await merge({"metadata": {"managedFields": [{"operation": "Own"}]}}))["code"] == 422
            odd = {"manager": "odd", "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": {"k:{": {}}}
            assert (await merge({"metadata": {"managedFields": [odd]}}))["code"] == 422
            assert "managedFields" not in (await merge({"metadata": {"managedFields": [{}]}}))["metadata"], "one empty entry forgets all"
            code, status = await apply(deployment(replicas=9))
            assert 'conflict with "before-first-apply" using rkfleet.dev/v1alpha1: .spec.replicas' in status["message"]

    asyncio.run(run())


def test_status_is_applied_apart(tmp_path: Path) -> None:
    async def run() -> None:
        async with running_api(tmp_path) as api:
            await api.call("POST", DEPLOYMENTS, deployment(replicas=2))
            headers = {"content-type": "application/apply-patch+yaml"}

            async def apply(manager: str, *conditions: dict[str, str]) -> dict[str, Any]:
                body = {**deployment(replicas=9), "status": {"conditions": list(conditions)}}
                answer = await api.call("PATCH", f"{DEPLOYMENTS}/qwen/status?fieldManager={manager}", body, headers=headers)
                assert answer.status_code == 200, answer.text
                found: dict[str, Any] = answer.json()
                return found

            ready = {"type": "Ready", "status": "True", "reason": "A", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
            degraded = {**ready, "type": "Degraded"}
            await apply("one", ready)
            both = await apply("other", degraded)
            assert both["spec"]["replicas"] == 2
            assert [one["type"] for one in both["status"]["conditions"]] == ["Ready", "Degraded"]
            assert [entry["subresource"] for entry in both["metadata"]["managedFields"] if entry["operation"] == "Apply"] == [
                "status",
                "status",
            ]
            left = await apply("one")
            assert [one["type"] for one in left["status"]["conditions"]] == ["Degraded"]

    asyncio.run(run())
