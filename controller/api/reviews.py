"""Reviews: callers ask what they may do and who they are, as `kubectl auth can-i`, `can-i --list`, `whoami` and k9s do.

In: an identity and a posted review. Out: the same review with its status. Answers come from `roles.py`, by which requests are judged, too.
Nothing is stored.

    POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews
    POST /apis/authorization.k8s.io/v1/selfsubjectrulesreviews
    POST /apis/authentication.k8s.io/v1/selfsubjectreviews, and v1beta1

Source: Kubernetes `k8s.io/api/authorization/v1/types.go`, `k8s.io/api/authentication/v1/types.go`.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from controller.api import auth, bodies, roles
from controller.api.responses import json_response
from controller.api.roles import Attributes, Identity
from rkfleet.errors import BadRequest, Cause, Invalid
from rkfleet.kinds.base import Registry

__all__ = ["REVIEWS", "Review", "find_review", "groups_of", "serve_review"]

Json = dict[str, Any]
T = TypeVar("T")


class Review(msgspec.Struct, frozen=True):
    """A kind that is only created, and never stored."""

    group: str
    kind: str
    version: str = "v1"

    @property
    def plural(self) -> str:
        """Its resource."""
        return f"{self.kind.lower()}s"

    @property
    def path(self) -> str:
        """Where it is posted."""
        return f"/apis/{self.group}/{self.version}/{self.plural}"


REVIEWS: Final = (
    Review("authorization.k8s.io", "SelfSubjectAccessReview"),
    Review("authorization.k8s.io", "SelfSubjectRulesReview"),
    Review("authentication.k8s.io", "SelfSubjectReview"),
    Review("authentication.k8s.io", "SelfSubjectReview", "v1beta1"),  # What kubectl 1.27 asks.
)


class _Resource(msgspec.Struct, frozen=True, rename="camel"):
    namespace: str = ""
    verb: str = ""
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    name: str = ""


class _Path(msgspec.Struct, frozen=True, rename="camel"):
    path: str = ""
    verb: str = ""


class _Access(msgspec.Struct, frozen=True, rename="camel"):
    resource_attributes: _Resource | None = None
    non_resource_attributes: _Path | None = None


class _Rules(msgspec.Struct, frozen=True, rename="camel"):
    namespace: str = ""


def find_review(path: str) -> Review | None:
    """Return the review that is posted to this path, or None."""
    return next((review for review in REVIEWS if review.path == path.rstrip("/")), None)


def groups_of(identity: Identity) -> list[str]:
    """Return the groups of an identity, for reviews and the audit log."""
    scope = f":{','.join(identity.namespaces)}" if identity.namespaces else ""
    return [f"rkfleet:{identity.role}{scope}", "system:authenticated"]


async def serve_review(request: Request, review: Review, identity: Identity, registry: Registry) -> Response:
    """Answer a review.

    Raises:
        PermissionDenied: It is not posted.
        BadRequest: The body is no such review.
        Invalid: It asks about nothing, or about two things.
    """
    auth.require(identity, Attributes("create" if request.method == "POST" else request.method.lower(), review.group, review.plural))
    body = bodies.require_object(await bodies.read_json(request), f"a {review.kind}")
    for field, expected in (("kind", review.kind), ("apiVersion", f"{review.group}/{review.version}")):
        if body.get(field, expected) != expected:
            raise BadRequest(f"{field} is {body[field]!r} in the body and {expected} in the path; post it to the path of its kind")
    spec = body.get("spec") or {}
    match review.kind:
        case "SelfSubjectAccessReview":
            status: Json = {"allowed": _allowed(identity, _read(spec, _Access), registry)}
        case "SelfSubjectRulesReview":
            status = _rules(identity, _read(spec, _Rules).namespace)
        case _:
            status = {"userInfo": {"username": identity.name, "uid": identity.id, "groups": groups_of(identity)}}
    answer: Json = {
        "kind": review.kind,
        "apiVersion": f"{review.group}/{review.version}",
        "metadata": {"creationTimestamp": None},
        **({"spec": spec} if review.kind != "SelfSubjectReview" else {}),
        "status": status,
    }
    return await json_response(answer, status_code=201)


def _read(spec: object, type_: type[T]) -> T:
    try:
        return msgspec.convert(spec, type_)
    except msgspec.ValidationError as error:
        raise BadRequest(f"spec of the review cannot be read: {error}") from error


def _allowed(identity: Identity, access: _Access, registry: Registry) -> bool:
    asked, path = access.resource_attributes, access.non_resource_attributes
    if asked is not None and path is None:
        return roles.allows(identity, _attributes(asked, registry))
    if path is not None and asked is None:
        return roles.allows_path(identity, path.verb, path.path)
    problem = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
    raise Invalid(f"SelfSubjectAccessReview is invalid: spec: {problem}", (Cause("spec", problem),))


def _attributes(asked: _Resource, registry: Registry) -> Attributes:
    """Return what a request to the API would ask for: kubectl names a namespace also of what has none."""
    kind = registry.find(f"{asked.resource}.{asked.group}" if asked.group else asked.resource)
    namespace = asked.namespace
    if kind is not None and not kind.resource.namespaced:
        namespace = asked.name if kind.resource.name == "namespaces" else ""
    return Attributes(asked.verb, asked.group, asked.resource, asked.subresource, namespace, asked.name)


def _rules(identity: Identity, namespace: str) -> Json:
    resources: list[Json] = []
    for rule in roles.rules(identity, namespace):
        names = {"resourceNames": rule.names} if rule.names else {}
        resources.append({"verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources, **names})
    paths = [{"verbs": rule.verbs, "nonResourceURLs": rule.paths} for rule in roles.path_rules(identity)]
    return {"resourceRules": resources, "nonResourceRules": paths, "incomplete": False}
