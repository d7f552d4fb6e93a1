"""What each role may do, as rules of the kind that Kubernetes' RBAC has, and the one function that reads them.

Pure. In: who asks, and what for. Out: yes or no, or the rules themselves. The API decides by `allows` and `allows_path`, and the reviews
(`kubectl auth can-i`) by the same two, so that they cannot differ.

    admin      everything
    operator   reads as a viewer; writes Models, ModelDeployments, ModelRevisions, Replicas, ConfigMaps, Leases and Events;
               changes Boards, but makes and deletes none
    viewer     reads everything but Secrets
    gateway    reads what routing needs

A role that counts in some namespaces only has there what it says about objects in namespaces, and may get those Namespaces; nothing else.

Source: Kubernetes `pkg/apis/rbac/v1/evaluation_helpers.go`, `plugin/pkg/auth/authorizer/rbac/rbac.go`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol

import msgspec

from rkfleet.kinds import KINDS
from rkfleet.kinds.base import GROUP, Resource

__all__ = [
    "ADMIN",
    "GATEWAY",
    "OPERATOR",
    "VIEWER",
    "Attributes",
    "Identity",
    "PathRule",
    "Rule",
    "allows",
    "allows_path",
    "path_rules",
    "rules",
]

ADMIN: Final = "admin"
OPERATOR: Final = "operator"
VIEWER: Final = "viewer"
GATEWAY: Final = "gateway"

READS: Final = ("get", "list", "watch")
WRITES: Final = ("create", "delete", "deletecollection", "patch", "update")


class Identity(Protocol):
    """Somebody known."""

    @property
    def name(self) -> str:
        """Name of the token, for messages."""
        ...

    @property
    def role(self) -> str:
        """`admin`, `operator`, `viewer` or `gateway`."""
        ...

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Where the role counts; empty for everywhere."""
        ...

    @property
    def id(self) -> str:
        """What the token is called where a name is not enough."""
        ...


class Attributes(msgspec.Struct, frozen=True):
    """What somebody wants to do to an object or collection; an empty namespace is the cluster, or all namespaces."""

    verb: str
    group: str
    resource: str
    subresource: str = ""
    namespace: str = ""
    name: str = ""

    @property
    def path(self) -> str:
        """`replicas`, or `replicas/status`."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


class Rule(msgspec.Struct, frozen=True):
    """Verbs on resources; `*` stands for all of them. `names` are of objects, none of them for all."""

    verbs: tuple[str, ...]
    groups: tuple[str, ...]
    resources: tuple[str, ...]
    names: tuple[str, ...] = ()

    def matches(self, asked: Attributes) -> bool:
        """Return whether the rule allows this."""
        return (
            _has(self.verbs, asked.verb)
            and _has(self.groups, asked.group)
            and _has(self.resources, asked.path)
            and (not self.names or asked.name in self.names)
        )


class PathRule(msgspec.Struct, frozen=True):
    """Verbs on paths that are no resources; a path that ends in `*` stands for all that begin so."""

    verbs: tuple[str, ...]
    paths: tuple[str, ...]

    def matches(self, verb: str, path: str) -> bool:
        """Return whether the rule allows this."""
        return _has(self.verbs, verb) and any(path == one or (one.endswith("*") and path.startswith(one[:-1])) for one in self.paths)


def allows(identity: Identity, asked: Attributes) -> bool:
    """Return whether the identity may do this."""
    return any(rule.matches(asked) for rule in rules(identity, asked.namespace))


def allows_path(identity: Identity, verb: str, path: str) -> bool:
    """Return whether the identity may use a path that is no resource; the verb is the HTTP method in small letters."""
    return any(rule.matches(verb, path) for rule in path_rules(identity))


def rules(identity: Identity, namespace: str) -> tuple[Rule, ...]:
    """Return what the identity may do in a namespace; with an empty one, at the cluster scope and in all namespaces together."""
    if not identity.namespaces:
        return _ABOUT_ONESELF + _EVERYWHERE.get(identity.role, ())
    named = Rule(("get",), ("",), ("namespaces",), identity.namespaces)
    return (*_ABOUT_ONESELF, named, *(_IN_A_NAMESPACE.get(identity.role, ()) if namespace in identity.namespaces else ()))


def path_rules(identity: Identity) -> tuple[PathRule, ...]:
    """Return which paths that are no resources the identity may use."""
    return (_DISCOVERY, PathRule(("*",), ("*",))) if identity.role == ADMIN and not identity.namespaces else (_DISCOVERY,)


def _has(allowed: tuple[str, ...], asked: str) -> bool:
    return "*" in allowed or asked in allowed


def _on(
    verbs: tuple[str, ...], resources: Iterable[Resource], below: Callable[[Resource], Iterable[str]] = lambda _: ()
) -> tuple[Rule, ...]:
    """Return one rule for each group of these resources; `below` says which subresources are meant, too."""
    by_group: dict[str, list[str]] = {}
    for resource in resources:
        names = by_group.setdefault(resource.group, [])
        names += (resource.plural, *(f"{resource.plural}/{name}" for name in below(resource)))
    return tuple(Rule(verbs, (group,), tuple(names)) for group, names in by_group.items())


def _subresources(resource: Resource) -> Iterable[str]:
    return (name for name, served in (("status", resource.status), ("scale", resource.scale), ("log", resource.log)) if served)


def _scale(resource: Resource) -> Iterable[str]:
    return ("scale",) if resource.scale else ()


_ALL: Final = tuple(kind.resource for kind in KINDS)
_OPEN: Final = tuple(one for one in _ALL if one.name != "secrets")
_ROUTED_BY: Final = ("replicas", "boards", "modeldeployments", "models")
_WRITTEN_BY_OPERATORS: Final = tuple(
    one for one in _ALL
    if one.namespaced and (one.group == GROUP or one.name in {"configmaps", "events", "events.events.k8s.io", "leases.coordination.k8s.io"})
)  # fmt: skip

_ABOUT_ONESELF: Final = (
    Rule(("create",), ("authorization.k8s.io",), ("selfsubjectaccessreviews", "selfsubjectrulesreviews")),
    Rule(("create",), ("authentication.k8s.io",), ("selfsubjectreviews",)),
)
_DISCOVERY: Final = PathRule(
    ("get", "head"),
    (
        "/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz", "/registry/v1alpha1/info",
        "/registry/v1alpha1/token", "/version", "/version/",
    ),
)  # fmt: skip

_VIEWS_IN_A_NAMESPACE: Final = _on(READS, (one for one in _OPEN if one.namespaced), _subresources)
_OPERATES_IN_A_NAMESPACE: Final = _VIEWS_IN_A_NAMESPACE + _on(WRITES, _WRITTEN_BY_OPERATORS, _scale)
_VIEWS: Final = _on(READS, _OPEN, _subresources)

_IN_A_NAMESPACE: Final = {
    ADMIN: _on(("*",), (one for one in _ALL if one.namespaced), _subresources),
    OPERATOR: _OPERATES_IN_A_NAMESPACE,
    VIEWER: _VIEWS_IN_A_NAMESPACE,
}
_EVERYWHERE: Final = {
    ADMIN: (Rule(("*",), ("*",), ("*",)),),
    OPERATOR: (*_VIEWS, *_on(WRITES, _WRITTEN_BY_OPERATORS, _scale), Rule(("patch", "update"), (GROUP,), ("boards",))),
    VIEWER: _VIEWS,
    GATEWAY: (Rule(READS, (GROUP,), (*_ROUTED_BY, *(f"{one}/status" for one in _ROUTED_BY))),),
}
