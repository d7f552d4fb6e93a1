"""Discovery: which groups, versions, kinds and verbs the API serves, in both forms that clients ask for.

In: the registry of kinds. Out: plain JSON values. `app.py` serves them:

- `GET /api` and `GET /apis` with `Accept: …;as=APIGroupDiscoveryList;v=v2`: `core(registry)` and `groups(registry)`, answered with the
  Content-Type `AGGREGATED_CONTENT_TYPE` exactly, because clients tell the form by it;
- `GET /api` and `GET /apis` otherwise: `legacy_core()` and `legacy_groups(registry)`;
- `GET /apis/<group>`: `legacy_group(registry, group)`; `GET /api/v1` and `GET /apis/<group>/<version>`:
  `legacy_resources(registry, group, version)`.

Verbs that are named here are served for every kind (`read_only` ones are only read); nothing else is. Reviews (`reviews.py`) are only
created.

Source: Kubernetes `k8s.io/api/apidiscovery/v2/types.go` and `apimachinery/pkg/apis/meta/v1/types.go`.
"""

from __future__ import annotations

from typing import Any, Final

from controller.api.reviews import REVIEWS, Review
from rkfleet.errors import NotFound
from rkfleet.kinds.base import Object, Registry, Resource

__all__ = [
    "AGGREGATED_CONTENT_TYPE",
    "VERBS",
    "core",
    "groups",
    "legacy_core",
    "legacy_group",
    "legacy_groups",
    "legacy_resources",
    "verbs_of",
]

Json = dict[str, Any]

AGGREGATED_CONTENT_TYPE: Final = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
VERBS: Final = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
READ_VERBS: Final = ("get", "list", "watch")
SUBRESOURCE_VERBS: Final = ("get", "patch", "update")
LOG_VERBS: Final = ("get",)


def core(registry: Registry) -> Json:
    """Return the aggregated form of the core group."""
    return _aggregated(registry, [""] if "" in _versions(registry) else [])


def groups(registry: Registry) -> Json:
    """Return the aggregated form of all named groups, in the order of the registry."""
    return _aggregated(registry, [group for group in _versions(registry) if group])


def legacy_core() -> Json:
    """Return `APIVersions` for `/api`."""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def legacy_groups(registry: Registry) -> Json:
    """Return `APIGroupList` for `/apis`."""
    named = [_group(group, versions) for group, versions in _versions(registry).items() if group]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": named}


def legacy_group(registry: Registry, group: str) -> Json:
    """Return `APIGroup` for `/apis/<group>`.

    Raises:
        NotFound: No kind is in this group.
    """
    versions = _versions(registry).get(group) if group else None
    if versions is None:
        raise NotFound("the server could not find the requested resource")
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(group, versions)}


def legacy_resources(registry: Registry, group: str, version: str) -> Json:
    """Return `APIResourceList` for `/apis/<group>/<version>`, and for `/api/v1` with an empty group.

    Raises:
        NotFound: No kind is in this group and version.
    """
    resources = [entry for kind in _kinds(registry, group, version) for entry in _legacy_entries(kind)]
    resources += [_legacy_review_entry(review) for review in _reviews(group, version)]
    if not resources:
        raise NotFound("the server could not find the requested resource")
    group_version = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def _aggregated(registry: Registry, named: list[str]) -> Json:
    versions = _versions(registry)
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": [
            {
                "metadata": {"name": group} if group else {},
                "versions": [
                    {
                        "version": version,
                        "freshness": "Current",
                        "resources": [
                            *(_entry(kind) for kind in _kinds(registry, group, version)),
                            *(_review_entry(review) for review in _reviews(group, version)),
                        ],
                    }
                    for version in versions[group]
                ],
            }
            for group in named
        ],
    }


def _entry(kind: type[Object]) -> Json:
    resource = kind.resource
    entry: Json = {
        "resource": resource.plural,
        "responseKind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular,
        "verbs": verbs_of(resource),
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    if subresources := _subresources(kind):
        entry["subresources"] = [
            {"subresource": name, "responseKind": response_kind, "verbs": _subresource_verbs(name)}
            for name, response_kind in subresources.items()
        ]
    return entry


def _legacy_entries(kind: type[Object]) -> list[Json]:
    resource = kind.resource
    entry: Json = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": verbs_of(resource),
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    below = [
        {
            "name": f"{resource.plural}/{name}",
            "singularName": "",
            "namespaced": resource.namespaced,
            **response_kind,
            "verbs": _subresource_verbs(name),
        }
        for name, response_kind in _subresources(kind).items()
    ]
    return [entry, *below]


def verbs_of(resource: Resource) -> list[str]:
    """Return what clients may do to a kind."""
    return list(READ_VERBS if resource.read_only else VERBS)


def _review_entry(review: Review) -> Json:
    return {
        "resource": review.plural,
        "responseKind": {"group": review.group, "version": review.version, "kind": review.kind},
        "scope": "Cluster",
        "singularResource": review.kind.lower(),
        "verbs": ["create"],
    }


def _legacy_review_entry(review: Review) -> Json:
    return {"name": review.plural, "singularName": review.kind.lower(), "namespaced": False, "kind": review.kind, "verbs": ["create"]}


def _subresources(kind: type[Object]) -> dict[str, Json]:
    """Return the subresources of a kind and what each answers with."""
    resource = kind.resource
    subresources: dict[str, Json] = {}
    if resource.status:
        subresources["status"] = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    if resource.scale:
        subresources["scale"] = {"group": "autoscaling", "version": "v1", "kind": "Scale"}
    if resource.log:
        subresources["log"] = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    return subresources


def _subresource_verbs(name: str) -> list[str]:
    return list(LOG_VERBS if name == "log" else SUBRESOURCE_VERBS)


def _versions(registry: Registry) -> dict[str, list[str]]:
    """Return the versions of each group; groups and versions in the order of the registry."""
    versions: dict[str, list[str]] = {}
    for kind in registry:
        known = versions.setdefault(kind.resource.group, [])
        if kind.resource.version not in known:
            known.append(kind.resource.version)
    for review in REVIEWS:
        known = versions.setdefault(review.group, [])
        if review.version not in known:
            known.append(review.version)
    return versions


def _kinds(registry: Registry, group: str, version: str) -> list[type[Object]]:
    return [kind for kind in registry if (kind.resource.group, kind.resource.version) == (group, version)]


def _reviews(group: str, version: str) -> list[Review]:
    return [review for review in REVIEWS if (review.group, review.version) == (group, version)]


def _group(group: str, versions: list[str]) -> Json:
    named = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
    return {"name": group, "versions": named, "preferredVersion": named[0]}
