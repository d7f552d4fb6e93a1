"""Roles over real TLS: what kubectl and HTTP clients may do is what reviews say that they may, and streams end with their tokens."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.api.kubeconfig import kubeconfig, write_kubeconfig
from controller.audit import AuditLog
from rkfleet.clock import SystemClock
from rkfleet.kinds import KINDS
from rkfleet.metrics import Metrics
from tests.support.api import RunningApi, running_api
from tests.support.cli import Cli
from tests.support.disk import LimitedDisk
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
@pytest.mark.parametrize("minor", [28, 33])
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
            assert "(Forbidden)" in (await admin.run("get", "boards", "--as", "bob")).err
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


def test_tokens_are_made_listed_and_revoked_at_the_command_line(tmp_path: Path) -> None:
    """The kubeconfig that is written works until the token is revoked; only an admin of everything may do this."""

    async def run() -> None:
        async with running_api(tmp_path) as api, api.client:
            admin, file = Cli(api.kubeconfig), tmp_path / "bob.kubeconfig"
            words = ("token", "create", "bob@lab.example", "--role", "operator", "-n", "default", "--expires", "30d")
            assert await admin.ok(*words, "--kubeconfig-out", str(file)) == f"{file}\n"
            assert file.stat().st_mode & 0o777 == 0o600
            bob = Cli(file)
            assert "No resources found" in (await bob.run("get", "mdep")).err
            assert 'User "bob@lab.example" cannot list' in await bob.fails(5, "get", "boards")
            assert 'cannot get path "/access/v1alpha1/tokens"' in await bob.fails(5, "token", "list")
            assert "rkfleet token revoke bob@lab.example" in await admin.fails(4, *words)
            listed = (await admin.ok("token", "list")).splitlines()
            assert listed[0].split() == ["ID", "NAME", "ROLE", "NAMESPACES", "EXPIRES", "LAST", "USED"]
            (line,) = [line.split() for line in listed if "bob@" in line]
            assert line[1:4] == ["bob@lab.example", "operator", "default"]
            assert "never" not in line
            printed = (await admin.ok("token", "create", "eve", "--role", "viewer")).strip()
            assert (await api.call("GET", "/api", headers=bearer(printed))).status_code == 200
            assert "revoked" in await admin.ok("token", "revoke", "bob@lab.example")
            assert "revoked" in await admin.ok("token", "revoke", next(v.id for v in api.tokens.api_tokens() if v.name == "eve"))
            assert "Unauthorized" in await bob.fails(5, "get", "mdep")
            assert "rkfleet token list" in await admin.fails(3, "token", "revoke", "bob@lab.example")
            refused = await admin.fails(1, "token", "create", "bob.", "--role", "viewer", "-n", "Lab")
            assert "namespaces[0]" in refused
            assert await admin.fails(2, "token", "create", "bob", "--role", "viewer", "--expires", "soon")

    asyncio.run(run())


def test_guesses_are_slowed_down_and_a_good_token_from_the_same_address_is_not(tmp_path: Path) -> None:
    """Twenty a minute, at every route that takes tokens; what shows no token at all is no guess."""

    async def run() -> None:
        async with running_api(tmp_path) as api, api.client:
            api.client.headers.pop("authorization")
            for _ in range(30):
                assert (await api.call("GET", "/api")).status_code == 401
            paths = ["/api", "/access/v1alpha1/tokens"]
            codes = [(await api.call("GET", paths[n % 2], headers=bearer(f"rkt1.{n}"))).status_code for n in range(22)]
            assert codes == [401] * 20 + [429] * 2
            limited = await api.call("GET", "/api", headers=bearer("rkt1.x"))
            assert 1 <= int(limited.headers["retry-after"]) <= 60
            acting = await api.call("GET", "/api", headers={**bearer(api.token), "impersonate-user": "bob"})
            assert (acting.status_code, 'cannot impersonate resource "users"' in acting.json()["message"]) == (403, True)
            assert limited.json()["reason"] == "TooManyRequests"
            assert (await api.call("GET", "/api", headers=bearer(api.token))).status_code == 200
            text = api.metrics.text().decode()
            assert 'rkfleet_api_failed_logins_total{result="refused"} 20.0' in text
            assert 'rkfleet_api_failed_logins_total{result="limited"} 3.0' in text

    asyncio.run(run())


def test_every_write_and_every_refusal_is_in_the_audit_log(tmp_path: Path) -> None:
    """With who, what, when, how it ended, and neither bodies nor tokens."""

    async def run() -> None:
        audit = AuditLog(tmp_path / "audit", SystemClock(), Metrics("controller"))
        with audit:
            async with running_api(tmp_path, audit=audit) as api, api.client:
                namespaced = "/apis/rkfleet.dev/v1alpha1/namespaces/default/modeldeployments"
                made = await api.call("POST", f"{namespaced}?fieldManager=me&token=rkt1.secret", deployment(replicas=1))
                assert made.status_code == 201, made.text
                assert (await api.call("POST", namespaced, deployment(replicas=1))).status_code == 409
                assert (await api.call("GET", namespaced)).status_code == 200
                assert (await api.call("POST", REVIEW, {"spec": {"resourceAttributes": {"verb": "get"}}})).status_code == 201
                viewer = await api.call("POST", "/access/v1alpha1/tokens", {"name": "bob", "role": "viewer", "namespaces": ["default"]})
                token = viewer.json()["token"]
                assert (await api.call("GET", "/apis/rkfleet.dev/v1alpha1/boards", headers=bearer(token))).status_code == 403
                assert (await api.call("DELETE", f"{namespaced}/qwen", headers={"authorization": ""})).status_code == 401
                assert (await api.call("DELETE", f"{namespaced}/qwen", headers=bearer("rkt1.guess"))).status_code == 401
        text = (tmp_path / "audit" / "audit.jsonl").read_text()
        assert token not in text
        assert "rkt1." not in text
        records = [json.loads(line) for line in text.splitlines()]
        assert [(one["verb"], one["user"]["username"], one["responseStatus"]["code"]) for one in records] == [
            ("create", "ada", 201), ("create", "ada", 409), ("post", "ada", 201), ("list", "bob", 403), ("delete", "system:anonymous", 401),
        ]  # fmt: skip
        first = records[0]
        assert first["auditID"] == made.headers["audit-id"]
        assert first["objectRef"] == {
            "resource": "modeldeployments", "namespace": "default", "name": "qwen", "apiGroup": "rkfleet.dev", "apiVersion": "v1alpha1",
        }  # fmt: skip
        assert first["requestURI"] == f"{namespaced}?fieldManager=me&token=-"
        assert first["sourceIPs"] == ["127.0.0.1"]
        assert first["user"]["groups"] == ["rkfleet:admin", "system:authenticated"]
        assert first["annotations"] == {"authorization.k8s.io/decision": "allow"}
        assert first["stageTimestamp"] >= first["requestReceivedTimestamp"]
        assert records[2]["annotations"]["rkfleet.dev/token"].endswith(" bob viewer in default")
        assert 'User "bob" cannot list' in records[3]["annotations"]["authorization.k8s.io/reason"]
        assert records[4]["annotations"]["rkfleet.dev/count"] == "2"

    asyncio.run(run())


def test_nothing_is_changed_while_the_audit_log_is_full_and_reads_go_on(tmp_path: Path) -> None:
    """503 with a sentence; it passes by itself once there is room, and no line of a write is missing."""

    async def run() -> None:
        disk = LimitedDisk()
        with AuditLog(tmp_path / "audit", SystemClock(), Metrics("controller"), disk) as audit:
            async with running_api(tmp_path, audit=audit) as api, api.client:
                boards = "/apis/rkfleet.dev/v1alpha1/boards"
                disk.room = 0
                assert (await api.call("POST", boards, board("a"))).status_code == 201
                async with asyncio.timeout(5):
                    while not audit.why_not():
                        await SystemClock().sleep(0.01)
                refused = await api.call("POST", boards, board("b"))
                assert refused.status_code == 503
                assert "No space left on device" in refused.json()["message"]
                assert "retry-after" in refused.headers
                assert [one["metadata"]["name"] for one in (await api.call("GET", boards)).json()["items"]] == ["a"]
                disk.room = None
                async with asyncio.timeout(5):
                    while audit.why_not():
                        await SystemClock().sleep(0.01)
                assert (await api.call("POST", boards, board("b"))).status_code == 201
        records = [json.loads(line) for line in (tmp_path / "audit" / "audit.jsonl").read_text().splitlines()]
        codes = {(one["objectRef"]["name"] if "objectRef" in one else "", one["responseStatus"]["code"]) for one in records}
        assert codes == {("a", 201), ("b", 201), ("", 503)}

    asyncio.run(run())
