"""Resources over HTTPS: lists, writes, dry runs, deletion, and every refusal."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rkfleet.errors import FailedPrecondition, Unavailable
from tests.support.api import RunningApi, running_api
from tests.support.objects import BOARDS, DEPLOYMENTS, GROUP_PATH, board, deployment, namespace

Json = dict[str, Any]

MERGE = {"headers": {"content-type": "application/merge-patch+json"}}
JSON_PATCH = {"headers": {"content-type": "application/json-patch+json"}}
QWEN = f"{DEPLOYMENTS}/qwen"


def with_api(tmp_path: Path, test: Callable[[RunningApi], Awaitable[None]], **options: Any) -> None:
    """Run a test against an API of its own."""

    async def run() -> None:
        async with running_api(tmp_path, **options) as api:
            await test(api)

    asyncio.run(run())


# ---- reading -------------------------------------------------------------------------------------------------------------------


def test_pages_show_one_moment(tmp_path: Path) -> None:
    """What is written between two pages is on neither of them; the rest is on exactly one."""

    async def test(api: RunningApi) -> None:
        for number in range(5):
            await api.call("POST", BOARDS, board(f"b-{number}"))
        first = (await api.call("GET", BOARDS, params={"limit": "2"})).json()
        assert first["metadata"]["remainingItemCount"] == 3
        await api.call("POST", BOARDS, board("b-9"))
        await api.call("DELETE", f"{BOARDS}/b-4")
        rest = (await api.call("GET", BOARDS, params={"limit": "9", "continue": first["metadata"]["continue"]})).json()
        assert [item["metadata"]["name"] for item in first["items"] + rest["items"]] == [f"b-{number}" for number in range(5)]
        assert "continue" not in rest["metadata"]
        assert (first["kind"], first["items"][0]["kind"]) == ("BoardList", "Board")

    with_api(tmp_path, test)


def test_selectors_choose_by_labels_and_fields(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        await api.call("POST", BOARDS, board("a", {"site": "lab", "soc": "rk3588"}))
        await api.call("POST", BOARDS, board("b", {"site": "roof"}))
        await api.call("POST", BOARDS, board("c"))

        async def names(**params: str) -> str:
            listed = (await api.call("GET", BOARDS, params=params)).json()
            return "".join(item["metadata"]["name"] for item in listed["items"])

        assert await names(labelSelector="site in (lab,roof),soc") == "a"
        assert await names(labelSelector="site notin (lab)") == "bc"
        assert await names(labelSelector="!site") == "c"
        assert await names(labelSelector="site!=lab,site") == "b"
        assert await names(fieldSelector="metadata.name=b") == "b"
        assert await names(fieldSelector="metadata.namespace=,metadata.name!=b") == "ac"
        version = (await api.call("GET", BOARDS)).json()["metadata"]["resourceVersion"]
        assert await names(resourceVersion=version, resourceVersionMatch="Exact") == "abc"
        assert await names(resourceVersion="1", resourceVersionMatch="NotOlderThan") == "abc"
        old = await api.call("GET", BOARDS, params={"resourceVersion": "1", "resourceVersionMatch": "Exact"})
        assert (old.status_code, old.json()["reason"]) == (410, "Expired")
        for params in ({"labelSelector": "a=b=c"}, {"fieldSelector": "name"}, {"limit": "many"}, {"continue": "x"}):
            assert (await api.call("GET", BOARDS, params=params)).status_code == 400

    with_api(tmp_path, test)


def test_metadata_alone_can_be_asked_for(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        await api.call("POST", BOARDS, board("a"))
        one = {"accept": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"}
        many = {"accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"}
        partial = (await api.call("GET", f"{BOARDS}/a", headers=one)).json()
        assert (partial["kind"], partial["metadata"]["name"], "spec" in partial) == ("PartialObjectMetadata", "a", False)
        listed = (await api.call("GET", BOARDS, headers=many)).json()
        assert (listed["kind"], listed["items"]) == ("PartialObjectMetadataList", [partial])

    with_api(tmp_path, test)


def test_long_lists_are_compressed_and_tables_made_in_slices(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        for number in range(60):
            heavy = board(f"b-{number:02}")
            heavy["metadata"]["annotations"] = {"note": "x" * 3000}
            await api.call("POST", BOARDS, heavy)
        small = await api.call("GET", f"{BOARDS}/b-00")
        assert "content-encoding" not in small.headers
        async with api.client.stream("GET", BOARDS) as response:
            assert response.headers["content-encoding"] == "gzip"
            raw = b"".join([piece async for piece in response.aiter_raw()])
        assert len(raw) < 20_000 < 60 * 3000 < len(gzip.decompress(raw))
        plain = await api.call("GET", BOARDS, headers={"accept-encoding": "identity"})
        assert plain.content == gzip.decompress(raw)
        table = (await api.call("GET", BOARDS, headers={"accept": "application/json;as=Table;v=v1;g=meta.k8s.io"})).json()
        assert [row["cells"][0] for row in table["rows"]] == [f"b-{number:02}" for number in range(60)]

    with_api(tmp_path, test)


def test_documents_are_served_in_every_form(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
        aggregated = await api.call("GET", "/apis", headers={"accept": accept})
        assert aggregated.headers["content-type"] == "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        assert (await api.call("GET", "/apis")).json()["kind"] == "APIGroupList"
        assert (await api.call("GET", "/apis/rkfleet.dev")).json()["kind"] == "APIGroup"
        index = (await api.call("GET", "/openapi/v3")).json()
        url = index["paths"]["apis/rkfleet.dev/v1alpha1"]["serverRelativeURL"]
        schema = await api.call("GET", url)
        again = await api.call("GET", url, headers={"if-none-match": schema.headers["etag"]})
        assert (schema.status_code, again.status_code, again.content) == (200, 304, b"")
        assert (await api.call("GET", "/openapi/v2")).content == b""
        for path in ("/version", "/version/", "/healthz", "/livez", "/readyz"):
            assert (await api.call("GET", path, headers={"authorization": ""})).status_code == 200
        for path in ("/", "/apis/apps/v1", "/api/v1/pods", f"{GROUP_PATH}/boards/a/scale", "/openapi/v3/apis/apps/v1"):
            missing = await api.call("GET", path)
            assert (missing.status_code, missing.json()["reason"]) == (404, "NotFound"), path

    with_api(tmp_path, test)


# ---- writing -------------------------------------------------------------------------------------------------------------------


def test_what_the_server_owns_cannot_be_sent(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        body = deployment(replicas=2)
        body["metadata"] |= {"uid": "mine", "generation": 9, "creationTimestamp": None, "deletionTimestamp": "2020-01-01T00:00:00Z"}
        body["status"] = {"replicas": 7}
        created = (await api.call("POST", DEPLOYMENTS, body)).json()
        assert created["metadata"]["generation"] == 1
        assert created["metadata"]["uid"] != "mine"
        assert "deletionTimestamp" not in created["metadata"]
        assert "status" not in created
        sent = {**created, "status": {"replicas": 9}, "metadata": {**created["metadata"], "generation": 5}}
        unchanged = (await api.call("PUT", QWEN, sent)).json()
        assert unchanged == created
        versioned = await api.call("POST", DEPLOYMENTS, {**body, "metadata": {"name": "b", "resourceVersion": "1"}})
        assert versioned.status_code == 400

    with_api(tmp_path, test)


def test_a_body_may_leave_out_what_the_url_says_but_not_contradict_it(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        bare = {"metadata": {"name": "qwen"}, "spec": {"template": {"model": "m"}}}
        created = await api.call("POST", DEPLOYMENTS, bare)
        assert (created.status_code, created.json()["kind"]) == (201, "ModelDeployment")
        for wrong in (
            {**bare, "kind": "Model"},
            {**bare, "apiVersion": "v1"},
            {**bare, "metadata": {"name": "x", "namespace": "lab"}},
            {**bare, "metadata": []},
            [],
            b"{",
            b"",
            b"[" * 5000 + b"]" * 5000,
            b'{"metadata": {"name": "a"}, "spec": ' + b'{"x":' * 80 + b"1" + b"}" * 81,
        ):
            refused = await api.call("POST", DEPLOYMENTS, wrong)
            assert (refused.status_code, refused.json()["reason"]) == (400, "BadRequest"), wrong
        renamed = await api.call("PUT", QWEN, {**bare, "metadata": {"name": "other"}})
        assert renamed.status_code == 400

    with_api(tmp_path, test)


def test_generated_names_are_completed_and_differ(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        body = {"metadata": {"generateName": "qwen-"}, "spec": {"template": {"model": "m"}}}
        names = {(await api.call("POST", DEPLOYMENTS, body)).json()["metadata"]["name"] for _ in range(5)}
        assert len(names) == 5
        assert all(name.startswith("qwen-") and len(name) == 10 for name in names)
        long = {"metadata": {"generateName": "q" * 60}, "spec": {"template": {"model": "m"}}}
        assert len((await api.call("POST", DEPLOYMENTS, long)).json()["metadata"]["name"]) == 40

    with_api(tmp_path, test)


def test_writers_that_race_all_win_unless_they_name_a_version(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        stale = (await api.call("POST", BOARDS, board("a"))).json()
        patches = [api.call("PATCH", f"{BOARDS}/a", {"metadata": {"labels": {f"k{n}": "v"}}}, **MERGE) for n in range(5)]
        assert {answer.status_code for answer in await asyncio.gather(*patches)} == {200}
        stored = (await api.call("GET", f"{BOARDS}/a")).json()
        assert len(stored["metadata"]["labels"]) == 5

        put = await api.call("PUT", f"{BOARDS}/a", stale)
        assert (put.status_code, put.json()["reason"], put.json()["details"]["name"]) == (409, "Conflict", "a")
        pinned = {"metadata": {"resourceVersion": stale["metadata"]["resourceVersion"], "labels": {"x": "y"}}}
        assert (await api.call("PATCH", f"{BOARDS}/a", pinned, **MERGE)).status_code == 409
        lock = [{"op": "test", "path": "/metadata/resourceVersion", "value": stored["metadata"]["resourceVersion"]}]
        assert (await api.call("PATCH", f"{BOARDS}/a", lock, **JSON_PATCH)).status_code == 200
        del stale["metadata"]["resourceVersion"]
        assert (await api.call("PUT", f"{BOARDS}/a", stale)).status_code == 200  # without a version: whatever is stored
        stale["metadata"]["uid"] = "another"
        assert (await api.call("PUT", f"{BOARDS}/a", stale)).status_code == 409

    with_api(tmp_path, test)


def test_a_write_that_changes_nothing_bumps_nothing(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        created = (await api.call("POST", DEPLOYMENTS, deployment())).json()
        for answer in (
            await api.call("PUT", QWEN, created),
            await api.call("PUT", QWEN, deployment()),
            await api.call("PATCH", QWEN, {}, **MERGE),
            await api.call("PATCH", QWEN, {"spec": {"replicas": 1}}, **MERGE),
            await api.call("PATCH", QWEN, [], **JSON_PATCH),
            await api.call("PATCH", f"{QWEN}/scale", {"spec": {"replicas": 1}}, **MERGE),
            await api.call("GET", QWEN),
        ):
            assert answer.status_code == 200, answer.text
            assert answer.json()["metadata"]["resourceVersion"] == created["metadata"]["resourceVersion"]

    with_api(tmp_path, test)


def test_status_and_spec_are_written_apart(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        await api.call("POST", DEPLOYMENTS, deployment(replicas=2))
        both = {"spec": {"replicas": 5}, "status": {"readyReplicas": 1}, "metadata": {"labels": {"a": "b"}}}
        status = (await api.call("PATCH", f"{QWEN}/status", both, **MERGE)).json()
        assert (status["spec"]["replicas"], status["status"]["readyReplicas"], status["metadata"]["generation"]) == (2, 1, 1)
        assert "labels" not in status["metadata"]
        spec = (await api.call("PATCH", QWEN, {**both, "status": {"readyReplicas": 9}}, **MERGE)).json()
        assert (spec["spec"]["replicas"], spec["status"]["readyReplicas"], spec["metadata"]["generation"]) == (5, 1, 2)
        assert (await api.call("GET", f"{QWEN}/status")).json() == spec
        wrong = await api.call("PATCH", f"{QWEN}/status", {"status": {"readyReplicas": "many"}}, **MERGE)
        assert (wrong.status_code, wrong.json()["details"]["causes"][0]["field"]) == (422, "status.readyReplicas")

    with_api(tmp_path, test)


def test_the_scale_subresource_changes_replicas_only(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        await api.call("POST", DEPLOYMENTS, deployment(replicas=2))
        scale = (await api.call("GET", f"{QWEN}/scale")).json()
        assert (scale["kind"], scale["spec"], scale["status"]) == ("Scale", {"replicas": 2}, {"replicas": 0, "selector": ""})
        scaled = await api.call("PUT", f"{QWEN}/scale", {**scale, "spec": {"replicas": 4}})
        assert (scaled.status_code, scaled.json()["spec"]["replicas"]) == (200, 4)
        stored = (await api.call("GET", QWEN)).json()
        assert (stored["spec"]["replicas"], stored["metadata"]["generation"]) == (4, 2)

        async def put(**changes: Any) -> int:
            return (await api.call("PUT", f"{QWEN}/scale", {**scaled.json(), **changes})).status_code

        assert (await api.call("PUT", f"{QWEN}/scale", scale)).status_code == 409  # it was read before the change
        assert await put(spec={"replicas": -1}) == 422
        assert await put(spec={"replicas": 5000}) == 422
        assert await put(spec={"replicas": "four"}) == 400
        assert await put(kind="ModelDeployment") == 400
        assert await put(metadata={"name": "other"}) == 400

    with_api(tmp_path, test)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", DEPLOYMENTS, deployment("new", replicas=3, strategy={"maxSurge": "50%"})),
        ("POST", DEPLOYMENTS, deployment("qwen")),
        ("POST", DEPLOYMENTS, deployment("bad", replicas=-1)),
        ("PUT", QWEN, deployment(replicas=8)),
        ("PATCH", QWEN, {"spec": {"replicas": 6}, "status": {"replicas": 1}}),
        ("PATCH", QWEN, {"metadata": {"labels": {"a": "b"}}}),
        ("PATCH", QWEN, {"spec": {"template": None}}),
        ("PATCH", f"{QWEN}/status", {"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "X"}]}}),
        ("PATCH", f"{QWEN}/scale", {"spec": {"replicas": 9}}),
        ("PATCH", f"{DEPLOYMENTS}/nope", {"spec": {"replicas": 9}}),
        ("DELETE", QWEN, None),
        ("DELETE", QWEN, {"propagationPolicy": "Foreground"}),
        ("DELETE", QWEN, {"preconditions": {"uid": "another"}}),
    ],
)
def test_a_dry_run_answers_what_the_real_run_does(tmp_path: Path, method: str, path: str, body: Any) -> None:
    def comparable(answer: Any) -> Json:
        document: Json = answer.json()
        for field in ("uid", "resourceVersion", "creationTimestamp", "deletionTimestamp"):
            document["metadata"].pop(field, None)
        for condition in document.get("status", {}).get("conditions", []) if isinstance(document.get("status"), dict) else []:
            condition.pop("lastTransitionTime")
        for entry in document["metadata"].get("managedFields", []):
            entry.pop("time")  # The second in which it was written, which may have passed between the two runs.
        return {"code": answer.status_code, **document}

    async def test(api: RunningApi) -> None:
        before = (await api.call("POST", DEPLOYMENTS, deployment(replicas=2))).json()
        headers = MERGE if method == "PATCH" else {}
        dry = await api.call(method, path, body, params={"dryRun": "All"}, **headers)
        assert (await api.call("GET", DEPLOYMENTS)).json()["items"] == [before]
        real = await api.call(method, path, body, **headers)
        assert comparable(dry) == comparable(real)

    with_api(tmp_path, test)


def test_field_validation_says_what_happens_to_unknown_fields(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        body = deployment(replicaz=1, other=2)
        strict = await api.call("POST", DEPLOYMENTS, body, params={"fieldValidation": "Strict"})
        assert (strict.status_code, strict.json()["reason"]) == (400, "BadRequest")
        assert 'unknown field "spec.replicaz"' in strict.json()["message"]
        warned = await api.call("POST", DEPLOYMENTS, body)
        assert sorted(warned.headers.get_list("warning")) == [
            '299 - "unknown field \\"spec.other\\""',
            '299 - "unknown field \\"spec.replicaz\\""',
        ]
        assert "replicaz" not in warned.json()["spec"]
        ignored = await api.call("PUT", QWEN, body, params={"fieldValidation": "Ignore"})
        assert (ignored.status_code, "warning" in ignored.headers) == (200, False)
        for params in ({"fieldValidation": "Loose"}, {"dryRun": "Some"}, {"fieldManager": "x" * 200}):
            assert (await api.call("PUT", QWEN, body, params=params)).status_code == 422

    with_api(tmp_path, test)


# ---- deleting ------------------------------------------------------------------------------------------------------------------


def test_deletion_keeps_what_finalizers_hold(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        held = board("a")
        held["metadata"]["finalizers"] = ["rkfleet.dev/drain"]
        uid = (await api.call("POST", BOARDS, held)).json()["metadata"]["uid"]
        marked = (await api.call("DELETE", f"{BOARDS}/a")).json()
        assert (marked["kind"], marked["metadata"]["deletionGracePeriodSeconds"]) == ("Board", 0)
        assert "deletionTimestamp" in marked["metadata"]
        again = (await api.call("DELETE", f"{BOARDS}/a")).json()
        assert again == marked
        more = await api.call("PATCH", f"{BOARDS}/a", {"metadata": {"finalizers": ["rkfleet.dev/drain", "x.dev/y"]}}, **MERGE)
        assert (more.status_code, more.json()["details"]["causes"][0]["field"]) == (422, "metadata.finalizers")
        async with api.watch(BOARDS) as following:
            assert (await following())["type"] == "ADDED"
            assert (await api.call("PATCH", f"{BOARDS}/a", {"metadata": {"finalizers": []}}, **MERGE)).status_code == 200
            assert (await following())["type"] == "DELETED"
        assert (await api.call("GET", f"{BOARDS}/a")).status_code == 404

        uid = (await api.call("POST", BOARDS, board("a"))).json()["metadata"]["uid"]
        wrong = await api.call("DELETE", f"{BOARDS}/a", {"preconditions": {"uid": "other"}})
        assert (wrong.status_code, wrong.json()["reason"]) == (409, "Conflict")
        gone = (await api.call("DELETE", f"{BOARDS}/a", {"preconditions": {"uid": uid}, "gracePeriodSeconds": 0})).json()
        assert (gone["status"], gone["details"]) == ("Success", {"name": "a", "group": "rkfleet.dev", "kind": "boards", "uid": uid})

    with_api(tmp_path, test)


def test_propagation_is_left_to_garbage_collection_as_a_finalizer(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        for name, how in (("a", {"propagationPolicy": "Foreground"}), ("b", {"orphanDependents": True})):
            await api.call("POST", BOARDS, board(name))
            await api.call("DELETE", f"{BOARDS}/{name}", how)
        finalizers = [item["metadata"]["finalizers"] for item in (await api.call("GET", BOARDS)).json()["items"]]
        assert finalizers == [["foregroundDeletion"], ["orphan"]]
        for wrong in ({"propagationPolicy": "Sideways"}, {"dryRun": "All"}, [], b"{"):
            assert (await api.call("DELETE", f"{BOARDS}/a", wrong)).status_code == 400

    with_api(tmp_path, test)


def test_a_collection_is_deleted_by_its_selection(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        for name in "abc":
            await api.call("POST", DEPLOYMENTS, deployment(name, labels={"keep": "yes"} if name == "b" else None))
        deleted = (await api.call("DELETE", DEPLOYMENTS, params={"labelSelector": "!keep"})).json()
        assert [item["metadata"]["name"] for item in deleted["items"]] == ["a", "c"]
        assert [item["metadata"]["name"] for item in (await api.call("GET", DEPLOYMENTS)).json()["items"]] == ["b"]
        assert (await api.call("DELETE", f"{GROUP_PATH}/modeldeployments")).status_code == 405

    with_api(tmp_path, test)


# ---- refusals ------------------------------------------------------------------------------------------------------------------


def test_roles_may_do_what_is_theirs(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        nobody = await api.call("GET", BOARDS, headers={"authorization": "Bearer guess"})
        assert (nobody.status_code, nobody.json()["reason"], nobody.headers["www-authenticate"]) == (401, "Unauthorized", "Bearer")
        assert (await api.call("GET", "/apis", headers={"authorization": ""})).status_code == 401

        gateway = {"headers": {"authorization": f"Bearer {api.gateway_token}"}}
        for plural in ("replicas", "boards", "modeldeployments", "models"):
            assert (await api.call("GET", f"{GROUP_PATH}/{plural}", **gateway)).status_code == 200
        refused = await api.call("POST", BOARDS, board("a"), **gateway)
        assert (refused.status_code, refused.json()["message"]) == (
            403,
            'boards.rkfleet.dev is forbidden: User "gw-1" cannot create resource "boards" in API group "rkfleet.dev" at the cluster scope',
        )
        assert (await api.call("GET", "/api/v1/namespaces", **gateway)).status_code == 403
        assert (await api.call("DELETE", QWEN, **gateway)).status_code == 403

    with_api(tmp_path, test)


def test_what_cannot_be_read_or_made_is_refused_by_its_own_code(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        async def code(method: str, path: str, body: Any = None, **headers: str) -> int:
            answer = await api.call(method, path, body, headers={key.replace("_", "-"): value for key, value in headers.items()})
            assert answer.json()["kind"] == "Status"
            assert answer.json()["code"] == answer.status_code
            return answer.status_code

        assert await code("POST", QWEN, deployment()) == 405
        assert await code("POST", f"{GROUP_PATH}/modeldeployments", deployment()) == 405
        assert await code("DELETE", f"{QWEN}/status") == 405
        assert await code("POST", "/apis") == 405
        assert await code("GET", BOARDS, accept="application/vnd.kubernetes.protobuf") == 406
        assert await code("GET", BOARDS, accept="application/json;as=Table;v=v1beta1;g=meta.k8s.io") == 406
        assert await code("POST", DEPLOYMENTS, b"k8s\0", content_type="application/vnd.kubernetes.protobuf") == 415
        assert await code("PATCH", f"{QWEN}?fieldManager=a", b"{}", content_type="application/apply-patch+yaml") == 400
        assert await code("PATCH", QWEN, b"{}", content_type="application/strategic-merge-patch+json") == 415
        assert await code("PATCH", QWEN, b"{}") == 415
        assert await code("DELETE", QWEN, b"k8s\0", content_type="application/vnd.kubernetes.protobuf") == 415
        assert await code("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", b"k8s\0") == 400
        assert await code("POST", DEPLOYMENTS, b" " * (3 << 20) + b"{}") == 413
        fat = board("a")
        fat["metadata"]["annotations"] = {"note": "x" * (1 << 20)}
        assert await code("POST", BOARDS, fat) == 422
        assert await code("POST", f"{GROUP_PATH}/namespaces/nowhere/modeldeployments", deployment(namespace="nowhere")) == 404
        assert await code("PATCH", QWEN, b"{}", content_type="application/merge-patch+json") == 404
        assert await code("DELETE", "/api/v1/namespaces/default") == 403

    with_api(tmp_path, test)


def test_a_chunked_body_cannot_pass_the_size_limit(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        async def endless() -> Any:
            for _ in range(80):
                yield b" " * 65536

        answer = await api.client.post(DEPLOYMENTS, content=endless())
        assert answer.status_code == 413

    with_api(tmp_path, test)


class _Broken:
    """The real store, whose writes or reads fail as told."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.fault: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        if self.fault is not None and name in ("create", "update", "delete"):
            raise self.fault
        return getattr(self._store, name)


def test_a_full_disk_is_told_with_its_reason_and_recovers(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        store: Any = api.store
        store.fault = Unavailable("the disk of store.db is full", retry_after_seconds=5)
        full = await api.call("POST", BOARDS, board("a"))
        assert (full.status_code, full.json()["reason"], full.headers["retry-after"]) == (503, "ServiceUnavailable", "5")
        assert "disk of store.db is full" in full.json()["message"]
        assert full.json()["details"]["retryAfterSeconds"] == 5
        assert (await api.call("GET", BOARDS)).status_code == 200
        store.fault = None
        assert (await api.call("POST", BOARDS, board("a"))).status_code == 201

    with_api(tmp_path, test, wrap=_Broken)


def test_our_own_mistake_shows_as_an_id_that_the_log_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(api: RunningApi) -> None:
        store: Any = api.store
        store.fault = RuntimeError("secret detail")
        answer = await api.call("POST", BOARDS, board("a"))
        assert (answer.status_code, answer.json()["reason"]) == (500, "InternalError")
        assert "secret" not in answer.text
        (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert answer.headers["audit-id"] == record.auditId  # type: ignore[attr-defined]
        assert record.auditId in answer.json()["message"]  # type: ignore[attr-defined]

    with_api(tmp_path, test, wrap=_Broken)


def test_too_many_requests_at_once_are_told_to_come_back(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        refused = await api.call("GET", BOARDS)
        assert (refused.status_code, refused.json()["reason"], refused.headers["retry-after"]) == (429, "TooManyRequests", "1")
        assert (await api.call("GET", "/readyz")).status_code == 200

    with_api(tmp_path, test, requests_max=0)


def test_routes_of_other_parts_share_the_edge(tmp_path: Path) -> None:
    async def refuse(_request: Request) -> Response:
        raise FailedPrecondition("join token is used")

    async def test(api: RunningApi) -> None:
        answer = await api.call("POST", "/enrollment/x", {}, headers={"authorization": ""})
        assert (answer.status_code, answer.json()["message"]) == (409, "join token is used")
        assert (await api.call("GET", "/enrollment/x")).json()["reason"] == "MethodNotAllowed"

    with_api(tmp_path, test, extra_routes=[Route("/enrollment/x", refuse, methods=["POST"])])


def test_namespaces_are_labelled_by_strategic_merge_and_guard_what_is_made_in_them(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        await api.call("POST", "/api/v1/namespaces", namespace("lab"))
        strategic = {"headers": {"content-type": "application/strategic-merge-patch+json"}}
        held = {"metadata": {"finalizers": ["x.dev/hold"], "labels": {"a": "b"}}}
        assert (await api.call("PATCH", "/api/v1/namespaces/lab", held, **strategic)).status_code == 200
        await api.call("DELETE", "/api/v1/namespaces/lab")
        refused = await api.call("POST", f"{GROUP_PATH}/namespaces/lab/modeldeployments", deployment(namespace="lab"))
        assert (refused.status_code, refused.json()["message"]) == (
            403,
            'unable to create new content in namespace "lab" because it is being terminated',
        )

    with_api(tmp_path, test)
