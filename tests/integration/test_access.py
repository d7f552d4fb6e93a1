"""Roles over real TLS: what kubectl and HTTP clients may do is what reviews say that they may, and streams end with their tokens."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.api.kubeconfig import kubeconfig, write_kubeconfig
from rkfleet.kinds import KINDS
from tests.support.api import RunningApi, running_api
from tests.support.kubectl import Kubectl
from tests.support.objects import board, deployment

REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
WHO = [("admin", ()), ("operator", ()), ("viewer", ()), ("admin", ("default",)), ("operator", ("default",)), ("viewer", ("default",))]


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def bearers(api: RunningApi) -> list[str]:
    """Make a token for each of `WHO`, and for a gateway."""
    made = [api.tokens.create_api_token(f"u{index}", role, namespaces)[0] for index, (role, namespaces) in enumerate(WHO)]  # type: ignore[arg-type]
    return [*made, api.gateway_token]


def kubectl_of(api: RunningApi, directory: Path, token: str, minor: int) -> Kubectl:
    ca = kubeconfig_ca(api.kubeconfig)
    path = directory / f"kubeconfig-{token[-6:]}"
    write_kubeconfig(path, kubeconfig(server=api.url, ca_pem=ca, token=token))
    return Kubectl(path, directory / f"home-{token[-6:]}-{minor}", minor)


def kubeconfig_ca(path: Path) -> bytes:
    from rkfleet.client import load_cluster

    return load_cluster(path).ca_pem.encode()


VERBS = {
    "get": ("GET", True, ""), "list": ("GET", False, ""), "watch": ("GET", False, "?watch=true&timeoutSeconds=1&resourceVersion=999999"),
    "create": ("POST", False, ""), "update": ("PUT", True, ""), "patch": ("PATCH", True, ""), "delete": ("DELETE", True, ""),
    "deletecollection": ("DELETE", False, ""),
}  # fmt: skip


def test_a_review_says_what_the_api_then_does(tmp_path: Path) -> None:
    """For any role, verb, kind, subresource and namespace; the objects do not exist."""

    async def test(api: RunningApi, ask: Any) -> None:
        index, verb, kind, subresource, namespace = ask
        resource = kind.resource
        method, named, query = VERBS[verb]
        if (not resource.namespaced and namespace) or (resource.namespaced and not namespace and (named or verb not in ("list", "watch"))):
            return
        if subresource and (not named or verb in ("delete", "create") or not getattr(resource, subresource)):
            return
        if subresource == "log" and verb != "get":
            return
        headers = bearer(api.all_bearers[index])  # type: ignore[attr-defined]
        root = f"/apis/{resource.api_version}" if resource.group else f"/api/{resource.version}"
        inside = f"/namespaces/{namespace}" if namespace else ""
        path = f"{root}{inside}/{resource.plural}" + ("/not-there" if named else "") + (f"/{subresource}" if subresource else "")
        attributes = {
            "verb": verb, "group": resource.group, "resource": resource.plural, "subresource": subresource,
            "namespace": namespace or ("default" if not resource.namespaced else ""), "name": "not-there" if named else "",
        }  # fmt: skip
        review = await api.call("POST", REVIEW, {"spec": {"resourceAttributes": attributes}}, headers=headers)
        assert review.status_code == 201, review.text
        body = {} if method in ("POST", "PUT", "PATCH") else None
        types = {"content-type": "application/merge-patch+json"} if method == "PATCH" else {}
        answer = await api.call(method, path + query, body, headers={**headers, **types})
        if answer.status_code == 405:
            return
        assert review.json()["status"]["allowed"] == (answer.status_code != 403), (answer.text, attributes)

    kinds = st.sampled_from([kind for kind in KINDS if kind.resource.name != "namespaces"])
    asks = st.tuples(
        st.integers(0, len(WHO)), st.sampled_from(sorted(VERBS)), kinds, st.sampled_from(["", "", "status", "scale", "log"]),
        st.sampled_from(["", "default", "kube-system"]),
    )  # fmt: skip
    runner = asyncio.Runner()
    stack = running_api(tmp_path)
    api = runner.run(stack.__aenter__())
    try:
        api.all_bearers = bearers(api)  # type: ignore[attr-defined]

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(asks)
        def holds(ask: Any) -> None:
            runner.run(test(api, ask))

        holds()
    finally:
        runner.run(api.client.aclose())
        runner.run(stack.__aexit__(None, None, None))
        runner.close()


@pytest.mark.kubectl
@pytest.mark.parametrize("minor", [28, 31])
def test_kubectl_can_ask_who_it_is_and_what_it_may(tmp_path: Path, minor: int) -> None:
    """`auth whoami`, `auth can-i` and `can-i --list`, and the refusal of what it may not."""

    async def run() -> None:
        async with running_api(tmp_path) as api:
            viewer = kubectl_of(api, tmp_path, api.tokens.create_api_token("bob", "viewer")[0], minor)
            said = await viewer.ok("auth", "whoami")
            assert "bob" in said
            assert "rkfleet:viewer" in said
            for arguments, answer in [
                (("get", "boards"), "yes"), (("delete", "boards"), "no"), (("get", "secrets"), "no"), (("*", "*"), "no"),
                (("list", "modeldeployments.rkfleet.dev", "-A"), "yes"), (("get", "/apis"), "yes"),
                (("get", "/access/v1alpha1/tokens"), "no"),
            ]:  # fmt: skip
                assert (await viewer.run("auth", "can-i", *arguments)).out.strip() == answer, arguments
            listed = await viewer.ok("auth", "can-i", "--list")
            assert "boards.rkfleet.dev" in listed
            assert "secrets" not in listed
            refused = await viewer.run("apply", "-f", "-", stdin=deployment(replicas=1))
            assert "is forbidden" in refused.err
            assert 'User "bob" cannot' in refused.err
            admin = kubectl_of(api, tmp_path, api.token, minor)
            assert (await admin.run("auth", "can-i", "*", "*", "-A")).out.strip() == "yes"
            local = kubectl_of(api, tmp_path, api.tokens.create_api_token("eve", "operator", ("default",))[0], minor)
            assert "created" in await local.ok("apply", "-f", "-", stdin=deployment(replicas=1))
            assert "qwen" in await local.ok("get", "mdep")
            assert "default" in await local.ok("get", "ns", "default")
            assert "cannot list" in (await local.run("get", "mdep", "-A")).err
            assert "cannot list" in (await local.run("get", "boards")).err
            assert (await local.run("auth", "can-i", "get", "ns/default")).out.strip() == "yes"

    asyncio.run(run())


def test_a_watch_ends_when_its_token_is_revoked_or_expires(tmp_path: Path) -> None:
    """Within five seconds, and cleanly; the next request is refused."""

    async def run() -> None:
        async with running_api(tmp_path) as api, api.client:
            revoked, _ = api.tokens.create_api_token("bob", "viewer")
            expiring, _ = api.tokens.create_api_token("eve", "viewer", lifetime_seconds=2)

            async def ends(token: str) -> None:
                path = "/apis/rkfleet.dev/v1alpha1/boards?watch=true"
                async with api.client.stream("GET", path, headers=bearer(token)) as answer:
                    assert answer.status_code == 200
                    if token == revoked:
                        await asyncio.to_thread(api.tokens.revoke_api_token, "bob")
                    assert [line async for line in answer.aiter_lines()] == []
                assert (await api.call("GET", "/api", headers=bearer(token))).status_code == 401

            async with asyncio.timeout(5):
                await asyncio.gather(ends(revoked), ends(expiring))

    asyncio.run(run())


def test_an_operator_changes_boards_but_neither_makes_them_nor_says_whose_they_are(tmp_path: Path) -> None:
    """By no kind of write; an apply that makes something needs the verb create, as in Kubernetes."""

    async def run() -> None:
        async with running_api(tmp_path) as api, api.client:
            operator = bearer(api.tokens.create_api_token("op", "operator")[0])
            boards = "/apis/rkfleet.dev/v1alpha1/boards"
            bound = {**board("a"), "metadata": {"name": "a", "annotations": {"rkfleet.dev/key-sha256": "k"}}}
            assert (await api.call("POST", boards, bound)).status_code == 201

            async def code(method: str, name: str, body: Any, kind: str = "", query: str = "") -> int:
                headers = {**operator, **({"content-type": f"application/{kind}"} if kind else {})}
                return (await api.call(method, f"{boards}/{name}{query}", body, headers=headers)).status_code

            merge, apply = "merge-patch+json", "apply-patch+yaml"
            assert await code("PATCH", "a", {"metadata": {"labels": {"site": "lab"}}}, merge) == 200
            assert await code("PATCH", "a", {"spec": {"taints": [{"key": "x", "effect": "NoSchedule"}]}}, merge) == 200
            for value in ("mine", None):
                assert await code("PATCH", "a", {"metadata": {"annotations": {"rkfleet.dev/key-sha256": value}}}, merge) == 403
            mine = {**board("a"), "metadata": {"name": "a", "annotations": {"rkfleet.dev/key-sha256": "mine"}}}
            assert await code("PATCH", "a", mine, apply, "?fieldManager=op&force=true") == 403
            assert await code("PUT", "a", mine) == 403
            assert await code("PATCH", "b", board("b"), apply, "?fieldManager=op") == 403
            assert await code("PATCH", "b", board("b"), apply, "?fieldManager=op&dryRun=All") == 403
            assert (await api.call("GET", f"{boards}/b")).status_code == 404
            kept = (await api.call("GET", f"{boards}/a")).json()["metadata"]
            assert (kept["annotations"], kept["labels"]) == ({"rkfleet.dev/key-sha256": "k"}, {"site": "lab"})

    asyncio.run(run())
