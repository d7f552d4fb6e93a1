"""The OpenAPI v3 documents, as kubectl reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from controller.api.openapi import OpenApi
from controller.api.reviews import REVIEWS
from rkfleet.kinds import KINDS
from rkfleet.kinds.base import Registry
from tests.support.widget import Widget

OPENAPI = OpenApi(KINDS)
PATHS = ("apis/rkfleet.dev/v1alpha1", "api/v1", "apis/coordination.k8s.io/v1", "apis/events.k8s.io/v1")


def document(path: str) -> dict[str, Any]:
    found = OPENAPI.find(path)
    assert found is not None
    return msgspec.json.decode(found.body)  # type: ignore[no-any-return]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (below for key, below in value.items() if key == "$ref")
        value = list(value.values())
    if isinstance(value, list):
        for member in value:
            yield from references(member)


def test_the_index_links_to_every_document_by_its_hash() -> None:
    index = msgspec.json.decode(OPENAPI.index.body)["paths"]
    assert set(index) == {*PATHS, *(f"apis/{review.group}/{review.version}" for review in REVIEWS)}
    for path, link in index.items():
        found = OPENAPI.find(path)
        assert found is not None
        assert link["serverRelativeURL"] == f"/openapi/v3/{path}?hash={found.etag.upper()}"
        assert found.etag == hashlib.sha256(found.body).hexdigest()


def test_another_schema_has_another_hash_and_the_same_schema_the_same() -> None:
    assert OpenApi(KINDS).index == OPENAPI.index
    assert OpenApi(Registry((*KINDS, Widget))).index != OPENAPI.index
    assert OPENAPI.find("apis/apps/v1") is None


@pytest.mark.parametrize("path", PATHS)
def test_no_reference_dangles(path: str) -> None:
    """One that does makes the whole document unusable to some clients."""
    described = document(path)
    known = {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}
    assert set(references(described)) <= known


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.resource.read_only], ids=lambda kind: kind.resource.name)
def test_a_patch_operation_turns_server_side_validation_and_dry_run_on(kind: Any) -> None:
    resource = kind.resource
    gvk = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    described = document(f"apis/{resource.api_version}" if resource.group else "api/v1")
    patches = [
        item["patch"] for item in described["paths"].values() if "patch" in item and item["patch"]["x-kubernetes-group-version-kind"] == gvk
    ]
    assert patches
    for patch in patches:
        assert {"fieldValidation", "dryRun"} <= {parameter["name"] for parameter in patch["parameters"] if parameter["in"] == "query"}


@pytest.mark.parametrize("path", PATHS)
def test_operations_have_ids_of_their_own_and_declare_their_path_parameters(path: str) -> None:
    described = document(path)
    ids = []
    for url, item in described["paths"].items():
        declared = {parameter["name"] for parameter in item.get("parameters", ())}
        assert declared == {part.strip("{}") for part in url.split("/") if part.startswith("{")}, url
        ids += [operation["operationId"] for method, operation in item.items() if method != "parameters"]
    assert len(ids) == len(set(ids))
