"""OpenAPI v3 documents: what `kubectl create, apply, edit, explain` read before they do anything.

In: the registry of kinds. Out: encoded documents with their hashes. `app.py` makes one `OpenApi` and serves it:

- `GET /openapi/v3`: `index`, plain JSON;
- `GET /openapi/v3/<path>` (`apis/rkfleet.dev/v1alpha1`, `api/v1`): `find(path)`, a `Document` whose `etag` answers If-None-Match; the
  index links to it with the same hash, so a changed schema is a new URL and no client cache lies.

Schemas are those of `rkfleet/schema.py`. kubectl turns server-side validation on when a kind's patch operation takes `fieldValidation`,
and server-side dry run when it takes `dryRun`; `explain` prints the descriptions.

Source: Kubernetes enhancement KEP-2896 (OpenAPI v3), `kubectl/pkg/util/openapi` and `cli-runtime/pkg/resource/query_param_verifier_v3.go`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from controller.api.review_schemas import review_documents
from rkfleet.kinds.base import Object, Registry, Resource
from rkfleet.schema import Schema, component_name, metadata_schema, schema_of

__all__ = ["Document", "OpenApi"]

Json = dict[str, Any]

_META: Final = "io.k8s.apimachinery.pkg.apis.meta.v1"
_SCALE: Final = "io.k8s.api.autoscaling.v1.Scale"
_PATCH_TYPES: Final = (
    "application/apply-patch+json",
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
)


class Document(msgspec.Struct, frozen=True):
    """One encoded document and the hash of its bytes, which is its `ETag` (in quotes) and part of its URL."""

    body: bytes
    etag: str


class OpenApi:
    """The documents of every group and version of a registry, encoded once."""

    def __init__(self, registry: Registry) -> None:
        kinds: dict[str, list[type[Object]]] = {}
        for kind in registry:
            kinds.setdefault(_path(kind.resource), []).append(kind)
        documents = {**{path: _document(group) for path, group in kinds.items()}, **review_documents()}
        self._documents: Final[Mapping[str, Document]] = {path: _encoded(document) for path, document in documents.items()}
        links = {
            path: {"serverRelativeURL": f"/openapi/v3/{path}?hash={document.etag.upper()}"} for path, document in self._documents.items()
        }
        self.index: Final = _encoded({"paths": links})

    def find(self, path: str) -> Document | None:
        """Return the document of `apis/<group>/<version>` or `api/v1`, or None."""
        return self._documents.get(path.strip("/"))


def _encoded(value: Json) -> Document:
    body = msgspec.json.encode(value)
    return Document(body=body, etag=hashlib.sha256(body).hexdigest())


def _path(resource: Resource) -> str:
    return f"apis/{resource.api_version}" if resource.group else f"api/{resource.version}"


def _document(kinds: list[type[Object]]) -> Json:
    paths: Json = {}
    schemas: Json = _shared_schemas()
    for kind in kinds:
        schemas[component_name(kind)] = _kind_schema(kind)
        schemas[f"{component_name(kind)}List"] = _list_schema(kind)
        paths.update(_paths(kind))
    return {
        "openapi": "3.0.0",
        "info": {"title": "rkfleet", "version": kinds[0].resource.version},
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"BearerToken": {"type": "http", "scheme": "bearer", "description": "Token of a kubeconfig."}},
        },
        "security": [{"BearerToken": []}],
    }


# ---- schemas


def _kind_schema(kind: type[Object]) -> Schema:
    schema = schema_of(kind)
    schema["properties"]["metadata"] = {"description": "Standard object metadata.", "allOf": [_ref(f"{_META}.ObjectMeta")]}
    return {**schema, "x-kubernetes-group-version-kind": [_gvk(kind.resource)]}


def _list_schema(kind: type[Object]) -> Schema:
    resource = kind.resource
    return {
        "description": f"List of {resource.plural}.",
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"description": "Group and version of the list.", "type": "string"},
            "kind": {"description": "Kind of the list.", "type": "string"},
            "metadata": {"description": "Version of the list, and where it goes on.", "allOf": [_ref(f"{_META}.ListMeta")]},
            "items": {"description": "The objects.", "type": "array", "items": _ref(component_name(kind))},
        },
        "x-kubernetes-group-version-kind": [{**_gvk(resource), "kind": f"{resource.kind}List"}],
    }


def _shared_schemas() -> Json:
    def text(description: str) -> Schema:
        return {"description": description, "type": "string"}

    def number(description: str) -> Schema:
        return {"description": description, "type": "integer", "format": "int64"}

    return {
        f"{_META}.ObjectMeta": metadata_schema(),
        f"{_META}.ListMeta": {
            "description": "Metadata of a list.",
            "type": "object",
            "properties": {
                "resourceVersion": text("Watch from here to see everything that comes after."),
                "continue": text("Opaque; asks for the next page."),
                "remainingItemCount": number("Objects after this page."),
            },
        },
        f"{_META}.Patch": {"description": "A patch: a merge patch, a list of JSON patch operations, or what to apply.", "type": "object"},
        f"{_META}.DeleteOptions": {
            "description": "How to delete.",
            "type": "object",
            "properties": {
                "apiVersion": text("v1"),
                "kind": text("DeleteOptions"),
                "propagationPolicy": text("Background, Foreground or Orphan."),
                "preconditions": {
                    "description": "What must hold, or the answer is 409.",
                    "type": "object",
                    "properties": {"uid": text("Expected uid."), "resourceVersion": text("Expected version.")},
                },
            },
        },
        f"{_META}.Status": {
            "description": "The result of a call that returns no object.",
            "type": "object",
            "properties": {
                "apiVersion": text("v1"),
                "kind": text("Status"),
                "status": text("Success or Failure."),
                "message": text("Sentence for people."),
                "reason": text("CamelCase constant for programs."),
                "code": number("HTTP status."),
                "details": {"description": "What it is about, with every cause.", "type": "object"},
            },
            "x-kubernetes-group-version-kind": [{"group": "", "version": "v1", "kind": "Status"}],
        },
        _SCALE: {
            "description": "The number of replicas of an object.",
            "type": "object",
            "properties": {
                "apiVersion": text("autoscaling/v1"),
                "kind": text("Scale"),
                "metadata": {"description": "Metadata of the object.", "allOf": [_ref(f"{_META}.ObjectMeta")]},
                "spec": {
                    "description": "What is wanted.",
                    "type": "object",
                    "properties": {"replicas": number("Wanted number of replicas.")},
                },
                "status": {
                    "description": "What there is.",
                    "type": "object",
                    "properties": {"replicas": number("Number of replicas."), "selector": text("Label selector of the replicas.")},
                },
            },
            "x-kubernetes-group-version-kind": [{"group": "autoscaling", "version": "v1", "kind": "Scale"}],
        },
    }


# ---- paths


def _paths(kind: type[Object]) -> Json:
    resource = kind.resource
    root = f"/{_path(resource)}"
    scoped = f"{root}/namespaces/{{namespace}}/{resource.plural}" if resource.namespaced else f"{root}/{resource.plural}"
    paths: Json = {
        scoped: {
            "parameters": _path_parameters(resource, named=False),
            "get": _operation(kind, "list", answer=f"{component_name(kind)}List", query=_LIST_QUERY),
            "post": _operation(kind, "post", body=component_name(kind), query=_WRITE_QUERY, code="201"),
            "delete": _operation(kind, "deletecollection", answer=f"{component_name(kind)}List", query=(*_LIST_QUERY, *_DELETE_QUERY)),
        },
        f"{scoped}/{{name}}": _object_path(kind),
    }
    if resource.namespaced:
        every = _operation(kind, "list", answer=f"{component_name(kind)}List", query=_LIST_QUERY, suffix="ForAllNamespaces")
        paths[f"{root}/{resource.plural}"] = {"get": every}
    if resource.read_only:
        return {
            path: {verb: operation for verb, operation in verbs.items() if verb in ("parameters", "get")} for path, verbs in paths.items()
        }
    if resource.status:
        paths[f"{scoped}/{{name}}/status"] = _subresource_path(kind, "Status", component_name(kind), _gvk(resource))
    if resource.scale:
        scale = {"group": "autoscaling", "version": "v1", "kind": "Scale"}
        paths[f"{scoped}/{{name}}/scale"] = _subresource_path(kind, "Scale", _SCALE, scale)
    if resource.log:
        paths[f"{scoped}/{{name}}/log"] = {"parameters": _path_parameters(resource, named=True), "get": _log_operation(kind)}
    return paths


def _log_operation(kind: type[Object]) -> Json:
    operation = _operation(kind, "get", query=_LOG_QUERY, suffix="Log")
    operation["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return operation


def _object_path(kind: type[Object]) -> Json:
    name = component_name(kind)
    return {
        "parameters": _path_parameters(kind.resource, named=True),
        "get": _operation(kind, "get", answer=name),
        "put": _operation(kind, "put", body=name, query=_WRITE_QUERY),
        "patch": _operation(kind, "patch", query=_PATCH_QUERY),
        "delete": _operation(kind, "delete", body=f"{_META}.DeleteOptions", answer=name, query=_DELETE_QUERY),
    }


def _subresource_path(kind: type[Object], suffix: str, name: str, gvk: Json) -> Json:
    operations = {
        "get": _operation(kind, "get", answer=name, suffix=suffix),
        "put": _operation(kind, "put", body=name, answer=name, query=_WRITE_QUERY, suffix=suffix),
        "patch": _operation(kind, "patch", answer=name, query=_PATCH_QUERY, suffix=suffix),
    }
    return {
        "parameters": _path_parameters(kind.resource, named=True),
        **{method: {**operation, "x-kubernetes-group-version-kind": gvk} for method, operation in operations.items()},
    }


def _operation(
    kind: type[Object],
    action: str,
    *,
    body: str = "",
    answer: str = "",
    query: tuple[Json, ...] = (),
    suffix: str = "",
    code: str = "200",
) -> Json:
    """Return one operation; an `answer` that is not given is the kind itself."""
    resource = kind.resource
    answers = answer or component_name(kind)
    group = resource.group.split(".", maxsplit=1)[0].capitalize() or "Core"
    operation: Json = {
        "operationId": f"{action}{group}{resource.version.capitalize()}{resource.kind}{suffix}",
        "tags": [_path(resource)],
        "parameters": list(query),
        "responses": _responses(action, code, answers),
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": _gvk(resource),
    }
    if body:
        operation["requestBody"] = {"content": _json_content(body)}
    if action == "patch":
        operation["requestBody"] = {"content": {kind: {"schema": _ref(f"{_META}.Patch")} for kind in _PATCH_TYPES}}
    return operation


def _responses(action: str, code: str, name: str) -> Json:
    """Return what an operation answers: what it is for, or a Status that says why not."""
    made = {"description": "OK", "content": _json_content(name)}
    if action == "delete":  # The object is answered while finalizers hold it.
        made["content"] = {"application/json": {"schema": {"anyOf": [_ref(f"{_META}.Status"), _ref(name)]}}}
    status = {"content": _json_content(f"{_META}.Status")}
    created = {"201": {**made, "description": "Created by server-side apply"}} if action == "patch" else {}
    refused = {"401": {"description": "Unauthorized", **status}, "default": {"description": "Refused; the Status says why", **status}}
    return {code: made, **created, **refused}


def _json_content(name: str) -> Json:
    return {"application/json": {"schema": _ref(name)}}


def _path_parameters(resource: Resource, *, named: bool) -> list[Json]:
    parameters = [("namespace", "Namespace of the object.")] if resource.namespaced else []
    parameters += [("name", f"Name of the {resource.kind}.")] if named else []
    return [
        {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}
        for name, description in parameters
    ]


def _query(name: str, description: str, type: str = "string") -> Json:
    return {"name": name, "in": "query", "description": description, "schema": {"type": type}}


_LIST_QUERY: Final = (
    _query("labelSelector", "Choose by labels: a=b, a!=b, a in (x,y), a notin (x), a, !a."),
    _query("fieldSelector", "Choose by fields: metadata.name=x."),
    _query("limit", "Most objects in one answer.", "integer"),
    _query("continue", "Page to go on with, from the list before."),
    _query("resourceVersion", "Version to watch from."),
    _query("watch", "Stream changes in place of the list.", "boolean"),
    _query("allowWatchBookmarks", "Send bookmarks, which tell where a watch can be resumed.", "boolean"),
    _query("timeoutSeconds", "Seconds after which a watch ends.", "integer"),
)
_LOG_QUERY: Final = (
    _query("follow", "Go on as lines come.", "boolean"),
    _query("tailLines", "Only so many lines, the last ones.", "integer"),
    _query("sinceSeconds", "Only lines that are no older.", "integer"),
    _query("previous", "Of a worker: the run before the newest.", "boolean"),
    _query("run", "Of a worker: the run with this number.", "integer"),
    _query("timestamps", "Begin each line with its time.", "boolean"),
    _query("limitBytes", "End after so many bytes.", "integer"),
    _query("source", "worker, or the agent of the board."),
)
_WRITE_QUERY: Final = (
    _query("dryRun", "All: check everything, store nothing."),
    _query("fieldManager", "Who writes."),
    _query("fieldValidation", "What to do about unknown fields: Strict, Warn or Ignore."),
)
_PATCH_QUERY: Final = (*_WRITE_QUERY, _query("force", "Of an apply: take over fields that others own.", "boolean"))
_DELETE_QUERY: Final = (
    _query("dryRun", "All: check everything, delete nothing."),
    _query("propagationPolicy", "Background, Foreground or Orphan."),
)


def _gvk(resource: Resource) -> Json:
    return {"group": resource.group, "version": resource.version, "kind": resource.kind}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
