"""OpenAPI documents of the groups that hold nothing but reviews: what `kubectl explain selfsubjectaccessreviews` prints.

In: the reviews. Out: one document for each group and version, as JSON values; `openapi.py` serves them with those of the kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from controller.api.reviews import REVIEWS, Review

__all__ = ["review_documents"]

Json = dict[str, Any]


def _text(description: str) -> Json:
    return {"type": "string", "description": description}


def _object(description: str, **properties: Json) -> Json:
    return {"type": "object", "description": description, "properties": properties}


def _list(description: str, items: Json) -> Json:
    return {"type": "array", "description": description, "items": items}


_NAMES: Final = {"type": "string"}
_RULE: Final = _object(
    "What may be done to which resources.",
    verbs=_list("Verbs; * is all.", _NAMES),
    apiGroups=_list("Groups; * is all.", _NAMES),
    resources=_list("Resources; * is all.", _NAMES),
    resourceNames=_list("Names of the only objects that it is about; none means all.", _NAMES),
)
_PATHS: Final = _object(
    "What may be done to which paths.", verbs=_list("Verbs.", _NAMES), nonResourceURLs=_list("Paths; a * at the end is all below.", _NAMES)
)
_RESOURCE: Final = _object(
    "An action on a resource.",
    namespace=_text("Namespace of the action; empty for all, or for cluster-scoped kinds."),
    verb=_text("get, list, watch, create, update, patch, delete or deletecollection."),
    group=_text("Group of the resource."),
    version=_text("Version of the group."),
    resource=_text("Resource, in the plural."),
    subresource=_text("Part of the object."),
    name=_text("Name of the object; empty for all."),
)
_PARTS: Final[Mapping[str, tuple[str, Json]]] = {
    "SelfSubjectAccessReview": (
        "Asks whether the caller may do something.",
        {
            "spec": _object(
                "What it is about: a resource or a path.",
                resourceAttributes=_RESOURCE,
                nonResourceAttributes=_object("An action on a path.", path=_text("Path."), verb=_text("Verb, in lower case.")),
            ),
            "status": _object(
                "The answer.", allowed={"type": "boolean", "description": "Whether the caller may."}, reason=_text("Why, or why not.")
            ),
        },
    ),
    "SelfSubjectRulesReview": (
        "Asks what the caller may do in a namespace.",
        {
            "spec": _object("Which namespace.", namespace=_text("Name of the namespace.")),
            "status": _object(
                "The answer.",
                resourceRules=_list("What may be done to resources.", _RULE),
                nonResourceRules=_list("What may be done to paths.", _PATHS),
                incomplete={"type": "boolean", "description": "Whether there may be more; never."},
            ),
        },
    ),
    "SelfSubjectReview": (
        "Asks who the caller is.",
        {
            "status": _object(
                "The answer.",
                userInfo=_object(
                    "The caller.",
                    username=_text("Name of the token's holder."),
                    uid=_text("Id of the token."),
                    groups=_list("What it belongs to; the role among them.", _NAMES),
                    extra={"type": "object", "description": "Nothing.", "additionalProperties": _list("Values.", _NAMES)},
                ),
            ),
        },
    ),
}


def review_documents() -> Mapping[str, Json]:
    """Return the document of each group and version, by its path (`apis/authorization.k8s.io/v1`)."""
    paths = {f"apis/{review.group}/{review.version}" for review in REVIEWS}
    return {path: _document([review for review in REVIEWS if f"apis/{review.group}/{review.version}" == path]) for path in sorted(paths)}


def _document(reviews: list[Review]) -> Json:
    return {
        "openapi": "3.0.0",
        "info": {"title": "rkfleet", "version": reviews[0].version},
        "paths": {review.path: {"post": _operation(review)} for review in reviews},
        "components": {
            "schemas": {_component(review): _schema(review) for review in reviews},
            "securitySchemes": {"BearerToken": {"type": "http", "scheme": "bearer", "description": "Token of a kubeconfig."}},
        },
        "security": [{"BearerToken": []}],
    }


def _component(review: Review) -> str:
    return f"io.k8s.api.{review.group.partition('.')[0]}.{review.version}.{review.kind}"


def _kind(review: Review) -> Json:
    return {"group": review.group, "version": review.version, "kind": review.kind}


def _schema(review: Review) -> Json:
    description, parts = _PARTS[review.kind]
    head = {"apiVersion": _text("Group and version of the review."), "kind": _text("Kind of the review.")}
    metadata = {"metadata": {"type": "object", "description": "Nothing of it is kept."}}
    return {**_object(description, **head, **metadata, **parts), "x-kubernetes-group-version-kind": [_kind(review)]}


def _operation(review: Review) -> Json:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{_component(review)}"}}}
    return {
        "operationId": f"create{review.group.partition('.')[0].capitalize()}{review.version.capitalize()}{review.kind}",
        "tags": [f"apis/{review.group}/{review.version}"],
        "requestBody": {"content": content},
        "responses": {
            "201": {"description": "OK", "content": content},
            **{code: {"description": text} for code, text in (("400", "Bad request"), ("401", "Unauthorized"), ("422", "Invalid"))},
        },
        "x-kubernetes-action": "post",
        "x-kubernetes-group-version-kind": _kind(review),
    }
