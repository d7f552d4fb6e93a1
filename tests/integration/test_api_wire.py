"""What is on the wire: versions of lists, selectors, forms, headers, the ends of requests; as clients of Kubernetes expect each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import RunningApi, running_api
from tests.support.kubectl import Kubectl
from tests.support.objects import BOARDS, DEPLOYMENTS, GROUP_PATH, board, deployment, event

Json = dict[str, Any]

MERGE = {"headers": {"content-type": "application/merge-patch+json"}}
QWEN = f"{DEPLOYMENTS}/qwen"
AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


def with_api(tmp_path: Path, test: Callable[[RunningApi], Awaitable[None]], **options: Any) -> None:
    """Run a test against an API of its own."""

    async def run() -> None:
        async with running_api(tmp_path, **options) as api:
            await test(api)

    asyncio.run(run())


# ---- discovery and schemas -----------------------------------------------------------------------------------------------------


def test_both_forms_of_discovery_say_the_same(tmp_path: Path) -> None:
    """A client that takes one form and a client that takes the other find the same resources, verbs and names."""

    async def test(api: RunningApi) -> None:
        found: dict[str, Any] = {}
        for root in ("/api", "/apis"):
            answer = await api.call("GET", root, headers={"accept": f"{AGGREGATED},application/json"}, params={"timeout": "32s"})
            assert answer.headers["content-type"] == AGGREGATED
            for group in answer.json()["items"]:
                name = group["metadata"].get("name", "")
                for version in group["versions"]:
                    path = f"/apis/{name}/{version['version']}" if name else f"/api/{version['version']}"
                    found[path] = {entry["resource"]: entry for entry in version["resources"]}
        assert {"/api/v1", GROUP_PATH} <= set(found)
        for path, aggregated in found.items():
            legacy = (await api.call("GET", path)).json()
            assert legacy["groupVersion"] == path.removeprefix("/apis/").removeprefix("/api/")
            plain = {entry["name"]: entry for entry in legacy["resources"] if "/" not in entry["name"]}
            assert list(plain) == list(aggregated)
            for name, entry in plain.items():
                assert entry["verbs"] == aggregated[name]["verbs"]
                assert entry.get("shortNames") == aggregated[name].get("shortNames")
                assert entry["namespaced"] == (aggregated[name]["scope"] == "Namespaced")
        index = (await api.call("GET", "/openapi/v3")).json()["paths"]
        assert {f"/{path}" for path in index} == set(found), "every group and version has a schema"

    with_api(tmp_path, test)


def test_every_kind_turns_on_validation_by_the_server(tmp_path: Path) -> None:
    """kubectl looks for a patch operation that takes fieldValidation and dryRun; without it, it demands a schema of its own."""

    async def test(api: RunningApi) -> None:
        for link in (await api.call("GET", "/openapi/v3")).json()["paths"].values():
            schema = await api.call("GET", link["serverRelativeURL"], params={"timeout": "32s"})
            assert schema.headers["etag"].strip('"').upper() in link["serverRelativeURL"]
            patched = {}
            for path in schema.json()["paths"].values():
                if "patch" in path:
                    names = {parameter["name"] for parameter in path["patch"]["parameters"]}
                    patched[path["patch"]["x-kubernetes-group-version-kind"]["kind"]] = names
            described = [one for one in schema.json()["components"]["schemas"].values() if "x-kubernetes-group-version-kind" in one]
            assert all({"fieldValidation", "dryRun", "fieldManager"} <= names for names in patched.values())
            assert all(one["description"] for one in described)

    with_api(tmp_path, test)


# ---- lists ---------------------------------------------------------------------------------------------------------------------


VERSIONS: list[tuple[Json, int, str]] = [
    ({}, 200, ""),
    ({"resourceVersion": "0"}, 200, ""),
    ({"resourceVersion": "1"}, 200, ""),
    ({"resourceVersion": "1", "limit": "500"}, 200, ""),
    ({"resourceVersion": "0", "resourceVersionMatch": "NotOlderThan"}, 200, ""),
    ({"resourceVersion": "1", "resourceVersionMatch": "NotOlderThan"}, 200, ""),
    ({"resourceVersion": "1", "resourceVersionMatch": "Exact"}, 410, "Expired"),
    ({"resourceVersion": "99999"}, 504, "Timeout"),
    ({"resourceVersion": "99999", "resourceVersionMatch": "NotOlderThan"}, 504, "Timeout"),
    ({"resourceVersion": "99999", "resourceVersionMatch": "Exact"}, 504, "Timeout"),
    ({"resourceVersion": "new"}, 400, "BadRequest"),
    ({"resourceVersion": "-1"}, 400, "BadRequest"),
    ({"resourceVersionMatch": "Exact"}, 422, "Invalid"),
    ({"resourceVersion": "0", "resourceVersionMatch": "Exact"}, 422, "Invalid"),
    ({"resourceVersion": "1", "resourceVersionMatch": "Newest"}, 422, "Invalid"),
    ({"resourceVersion": "1", "continue": "x"}, 400, "BadRequest"),
    ({"resourceVersionMatch": "Exact", "continue": "x"}, 422, "Invalid"),
]


def test_the_version_of_a_list_means_what_it_means_to_kubernetes(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        await api.call("POST", BOARDS, board("a"))
        for params, code, reason in VERSIONS:
            answer = (await api.call("GET", BOARDS, params=params)).json()
            assert (answer.get("code", 200), answer.get("reason", "")) == (code, reason), (params, answer)
            if code == 200:
                assert [item["metadata"]["name"] for item in answer["items"]] == ["a"]
            if code == 504:
                assert answer["message"].startswith("Timeout: Too large resource version: 99999, current: ")
                assert answer["details"]["causes"] == [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
                assert answer["details"]["retryAfterSeconds"] == 1

    with_api(tmp_path, test)


SELECTORS = [
    ("", "abcd"), ("site=lab", "a"), ("site==lab", "a"), ("site!=lab", "bcd"), ("site in (lab,roof)", "ab"), ("site in (lab)", "a"),
    ("site notin (lab,roof)", "cd"), ("site", "ab"), ("!site", "cd"), ("site,soc", "a"), ("site in (lab, roof),soc=rk3588", "a"),
    ("x.dev/tier=gold", "c"), ("site=", ""), ("soc in (rk3588),site notin (roof)", "a"),
]  # fmt: skip


def test_every_form_of_label_selector_chooses(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        for name, labels in (("a", {"site": "lab", "soc": "rk3588"}), ("b", {"site": "roof"}), ("c", {"x.dev/tier": "gold"}), ("d", None)):
            await api.call("POST", BOARDS, board(name, labels))
        for selector, chosen in SELECTORS:
            listed = (await api.call("GET", BOARDS, params={"labelSelector": selector})).json()
            assert "".join(item["metadata"]["name"] for item in listed["items"]) == chosen, selector

    with_api(tmp_path, test)


def test_events_are_chosen_by_what_they_are_about(tmp_path: Path) -> None:
    """An absent field equals the empty string: describe of a cluster-scoped object asks for `involvedObject.namespace=`."""

    async def test(api: RunningApi) -> None:
        rock = (await api.call("POST", BOARDS, board("rock"))).json()
        qwen = (await api.call("POST", DEPLOYMENTS, deployment())).json()
        for about, name in ((rock, "of-rock"), (qwen, "of-qwen")):
            assert (await api.call("POST", "/api/v1/namespaces/default/events", event(about, name, "x"))).status_code == 201

        async def names(selector: str) -> list[str]:
            answer = (await api.call("GET", "/api/v1/events", params={"fieldSelector": selector})).json()
            return [item["metadata"]["name"] for item in answer["items"]]

        uid = rock["metadata"]["uid"]
        about_rock = ["involvedObject.kind=Board", "involvedObject.namespace=", f"involvedObject.uid={uid}", "involvedObject.name=rock"]
        assert await names(",".join(about_rock)) == ["of-rock"]
        assert await names(",".join(reversed(about_rock))) == ["of-rock"]
        assert await names("involvedObject.apiVersion=rkfleet.dev/v1alpha1,involvedObject.name!=rock") == ["of-qwen"]

    with_api(tmp_path, test)


@pytest.mark.parametrize("include", ["None", "Metadata", "Object"])
def test_rows_of_tables_carry_what_was_asked(tmp_path: Path, include: str) -> None:
    async def test(api: RunningApi) -> None:
        await api.call("POST", DEPLOYMENTS, deployment())
        accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"
        table = (await api.call("GET", DEPLOYMENTS, headers={"accept": accept}, params={"includeObject": include})).json()
        (row,) = table["rows"]
        kinds = {"None": None, "Metadata": "PartialObjectMetadata", "Object": "ModelDeployment"}
        assert ((row.get("object") or {}).get("kind"), table["columnDefinitions"][0]["format"]) == (kinds[include], "name")
        assert table["metadata"]["resourceVersion"]
        assert {column["type"] for column in table["columnDefinitions"]} <= {"string", "integer", "boolean", "number"}

    with_api(tmp_path, test)


# ---- writes --------------------------------------------------------------------------------------------------------------------


def test_keys_that_a_body_has_twice_are_refused_by_their_paths(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        body = b'{"metadata":{"name":"qwen"},"spec":{"template":{"model":"m"},"replicas":1,"replicas":2}}'
        refused = await api.call("POST", DEPLOYMENTS, body)
        assert (refused.status_code, refused.json()["message"]) == (400, 'strict decoding error: duplicate field "spec.replicas"')
        await api.call("POST", DEPLOYMENTS, deployment())
        patch = await api.call("PATCH", QWEN, b'{"spec":{"paused":true},"spec":{"paused":false}}', **MERGE)
        assert patch.json()["message"] == 'strict decoding error: duplicate field "spec"'
        operations = b'[{"op":"test","path":"/spec/paused","path":"/spec/paused","value":false}]'
        json_patch = await api.call("PATCH", QWEN, operations, headers={"content-type": "application/json-patch+json"})
        assert json_patch.json()["message"] == 'strict decoding error: duplicate field "[0].path"'
        colons = {"metadata": {"annotations": {"a": ":", "b": '":":', "c": '\\":', "d": '"d":"d"'}}}
        assert (await api.call("PATCH", QWEN, colons, **MERGE)).status_code == 200
        large = b'{"metadata":{"annotations":{"n":"' + b"x" * (300 << 10) + b'","n":"y"}}}'
        assert "duplicate field" in (await api.call("PATCH", QWEN, large, **MERGE)).json()["message"]

    with_api(tmp_path, test)


def test_preconditions_of_a_deletion_hold_uid_and_version(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        stored = (await api.call("POST", BOARDS, board("a"))).json()["metadata"]
        for wrong in ({"uid": "other"}, {"resourceVersion": "1"}, {"uid": stored["uid"], "resourceVersion": "1"}):
            refused = await api.call("DELETE", f"{BOARDS}/a", {"preconditions": wrong})
            assert (refused.status_code, refused.json()["reason"]) == (409, "Conflict")
        right = {"uid": stored["uid"], "resourceVersion": stored["resourceVersion"]}
        gone = (await api.call("DELETE", f"{BOARDS}/a", {"preconditions": right, "propagationPolicy": "Background"})).json()
        assert (gone["status"], gone["details"]["uid"]) == ("Success", stored["uid"])

    with_api(tmp_path, test)


def test_a_page_of_a_collection_can_be_deleted(tmp_path: Path) -> None:
    """A limit is kept: who asks for one object to go does not lose all."""

    async def test(api: RunningApi) -> None:
        for name in "abc":
            await api.call("POST", BOARDS, board(name))
        first = (await api.call("DELETE", BOARDS, params={"limit": "2", "dryRun": "All"})).json()
        assert [item["metadata"]["name"] for item in first["items"]] == ["a", "b"]
        await api.call("DELETE", BOARDS, params={"limit": "2"})
        assert [item["metadata"]["name"] for item in (await api.call("GET", BOARDS)).json()["items"]] == ["c"]

    with_api(tmp_path, test)


# ---- heads, methods, ends ------------------------------------------------------------------------------------------------------


def test_answers_carry_the_headers_of_a_real_server(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        answers = [await api.call("GET", BOARDS), await api.call("GET", f"{BOARDS}/none"), await api.call("GET", "/apis")]
        assert len({answer.headers["audit-id"] for answer in answers}) == 3
        assert {answer.headers["cache-control"] for answer in answers} == {"no-cache, private"}
        assert {answer.headers["content-type"] for answer in answers} == {"application/json"}

    with_api(tmp_path, test)


def test_heads_have_no_body_and_never_watch(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        await api.call("POST", BOARDS, board("a"))
        for path in (BOARDS, f"{BOARDS}/a", "/apis", "/openapi/v3", "/version"):
            async with asyncio.timeout(5):
                head = await api.call("HEAD", path, params={"watch": "true"})
            assert (head.status_code, head.content) == (200, b""), path

    with_api(tmp_path, test)


def test_people_may_ask_for_indented_answers(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        await api.call("POST", BOARDS, board("a"))
        plain, pretty = await api.call("GET", f"{BOARDS}/a"), await api.call("GET", f"{BOARDS}/a", params={"pretty": "true"})
        assert (plain.text.count("\n"), plain.json()) == (0, pretty.json())
        assert '\n  "kind": "Board",\n' in pretty.text

    with_api(tmp_path, test)


def test_a_slash_at_the_end_names_the_same(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        for start in ("/version", "/apis", "/api", GROUP_PATH, BOARDS):
            assert (await api.call("GET", start)).content == (await api.call("GET", f"{start}/")).content

    with_api(tmp_path, test)


def test_the_timeout_of_a_request_is_a_duration(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        for timeout, code in (
            *((right, 200) for right in ("32s", "1m0s", "500ms", "1h", "0")),
            *((wrong, 400) for wrong in ("x", "-1s", "1 s", "s")),
        ):
            assert (await api.call("GET", BOARDS, params={"timeout": timeout})).status_code == code, timeout

    with_api(tmp_path, test)


class _Gate:
    """The real store, whose lists wait until they are let through."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.open, self.reached = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def list(self, *arguments: Any, **keywords: Any) -> Any:
        self.reached.set()
        await self.open.wait()
        return await self._store.list(*arguments, **keywords)


def test_a_request_ends_when_its_time_is_over(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        late = await api.call("GET", BOARDS, params={"timeout": "50ms"})
        assert (late.status_code, late.json()["reason"]) == (504, "Timeout")
        assert "within 0.05 s" in late.json()["message"]

        reader, writer = await asyncio.open_connection("127.0.0.1", api.client.base_url.port, ssl=api.context)
        head = f"POST {BOARDS}?timeout=50ms HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {api.token}\r\ncontent-length: 90\r\n\r\n"
        writer.write(head.encode() + b'{"metadata":')
        async with asyncio.timeout(5):
            assert await reader.readline() == b"HTTP/1.1 504 Gateway Timeout\r\n", "a body that does not come holds no place"
        writer.close()
        await writer.wait_closed()
        store: Any = api.store
        store.open.set()
        assert (await api.call("GET", BOARDS)).status_code == 200

    with_api(tmp_path, test, wrap=_Gate)


@pytest.mark.kubectl
def test_kubectl_waits_by_itself_while_the_server_is_busy(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        store: Any = api.store
        holding = asyncio.ensure_future(api.call("GET", BOARDS))
        await store.reached.wait()
        kubectl = Kubectl(api.kubeconfig, tmp_path / "home")
        async with kubectl.started("get", "--raw", BOARDS) as getting, asyncio.timeout(15):
            while b'rkfleet_api_requests_total{code="429"' not in api.metrics.text():
                await asyncio.sleep(0.02)  # noqa: TID251 (a program outside this loop is waited for)
            store.open.set()
            assert await getting.wait() == 0
        assert (await holding).status_code == 200

    with_api(tmp_path, test, wrap=_Gate, requests_max=1)


def test_a_selector_that_is_broken_chooses_nothing(tmp_path: Path) -> None:
    """Least of all may it choose everything, because a deletion takes one too."""

    async def test(api: RunningApi) -> None:
        await api.call("POST", BOARDS, board("a"))
        for selector in ("(", "((", ")", "site in (lab", "site in lab)", "a=b=c", "site notin", "a,(b)", "=b", "!"):
            for method in ("GET", "DELETE"):
                refused = await api.call(method, BOARDS, params={"labelSelector": selector})
                assert (refused.status_code, refused.json()["reason"]) == (400, "BadRequest"), selector
        assert (await api.call("GET", f"{BOARDS}/a")).status_code == 200

    with_api(tmp_path, test)


@pytest.mark.parametrize("exists", [False, True])
def test_a_dry_run_of_apply_answers_what_the_real_one_does(tmp_path: Path, exists: bool) -> None:
    """GitOps tools apply dry to see a drift; an answer that differs from the real one would be a drift for ever."""

    def comparable(answer: Any) -> Json:
        document: Json = answer.json()
        for field in ("uid", "resourceVersion", "creationTimestamp"):
            document["metadata"].pop(field, None)
        for entry in document["metadata"]["managedFields"]:
            entry.pop("time")
        return {"code": answer.status_code, **document}

    async def test(api: RunningApi) -> None:
        if exists:
            await api.call("POST", DEPLOYMENTS, deployment(replicas=2))
        before = (await api.call("GET", DEPLOYMENTS)).json()
        apply = {"headers": {"content-type": "application/apply-patch+yaml"}}
        asked = {"fieldManager": "flux", "force": "true"}
        dry = await api.call("PATCH", QWEN, deployment(replicas=3, paused=True), params={**asked, "dryRun": "All"}, **apply)
        assert (await api.call("GET", DEPLOYMENTS)).json() == before
        real = await api.call("PATCH", QWEN, deployment(replicas=3, paused=True), params=asked, **apply)
        assert comparable(dry) == comparable(real)
        drift = await api.call("PATCH", QWEN, deployment(replicas=3, paused=True), params={**asked, "dryRun": "All"}, **apply)
        assert drift.json() == real.json(), "without a drift the dry answer is the stored object, to the byte of its version"

    with_api(tmp_path, test)


def test_watches_of_metadata_and_of_one_kind_carry_marks_of_their_form(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        await api.call("POST", BOARDS, board("a"))
        forms = {
            "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1": "PartialObjectMetadata",
            "application/json;as=Table;v=v1;g=meta.k8s.io": "Table",
            "application/vnd.kubernetes.protobuf,application/json": "Board",
        }
        for accept, kind in forms.items():
            api.client.headers["accept"] = accept
            async with api.watch(BOARDS, timeoutSeconds="1", allowWatchBookmarks="true") as following:
                events = [await following(), await following()]
                assert [(event["type"], event["object"]["kind"]) for event in events] == [("ADDED", kind), ("BOOKMARK", kind)]
                assert await following() is None

    with_api(tmp_path, test)
