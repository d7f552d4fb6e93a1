"""What each role may do, as a table, and the words of refusals."""

from __future__ import annotations

import pytest

from controller.api import auth
from controller.api.paths import Target
from controller.api.roles import Attributes, allows, allows_path
from controller.trust.tokens import Identity
from rkfleet.errors import PermissionDenied
from rkfleet.kinds import KINDS

READS = ("get", "list", "watch")
WRITES = ("create", "delete", "deletecollection", "patch", "update")
CHANGES = ("patch", "update")
NOBODY: tuple[str, ...] = ()

# Resource, subresource: verbs of viewer, operator, gateway; an admin may do everything.
TABLE = {
    ("boards", "rkfleet.dev", ""): (READS, READS + CHANGES, READS),
    ("boards", "rkfleet.dev", "status"): (READS, READS, READS),
    ("boards", "rkfleet.dev", "log"): (READS, READS, NOBODY),
    ("models", "rkfleet.dev", ""): (READS, READS + WRITES, READS),
    ("modeldeployments", "rkfleet.dev", ""): (READS, READS + WRITES, READS),
    ("modeldeployments", "rkfleet.dev", "scale"): (READS, READS + WRITES, NOBODY),
    ("modeldeployments", "rkfleet.dev", "status"): (READS, READS, READS),
    ("replicas", "rkfleet.dev", ""): (READS, READS + WRITES, READS),
    ("modelrevisions", "rkfleet.dev", ""): (READS, READS + WRITES, NOBODY),
    ("namespaces", "", ""): (READS, READS, NOBODY),
    ("events", "", ""): (READS, READS + WRITES, NOBODY),
    ("leases", "coordination.k8s.io", ""): (READS, READS + WRITES, NOBODY),
    ("secrets", "", ""): (NOBODY, NOBODY, NOBODY),
    ("*", "*", ""): (NOBODY, NOBODY, NOBODY),
}
CLUSTER_SCOPED = ("boards", "namespaces")


@pytest.mark.parametrize("role", ["viewer", "operator", "gateway", "admin"])
def test_a_role_that_counts_everywhere_may_what_the_table_says(role: str) -> None:
    """In every namespace, and over all of them."""
    identity = Identity("ada", role)  # type: ignore[arg-type]
    for (resource, group, subresource), verbs in TABLE.items():
        allowed = {"viewer": verbs[0], "operator": verbs[1], "gateway": verbs[2], "admin": (*READS, *WRITES, "*")}[role]
        for verb in (*READS, *WRITES, "*"):
            for namespace in ("", "lab"):
                asked = Attributes(verb, group, resource, subresource, namespace, "x")
                assert allows(identity, asked) == (verb in allowed), asked


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
def test_a_role_in_a_namespace_counts_there_and_only_for_what_is_in_namespaces(role: str) -> None:
    """It gets its Namespace; it lists none, deletes none, and sees no Board."""
    identity = Identity("ada", role, ("lab",))  # type: ignore[arg-type]
    for (resource, group, subresource), verbs in TABLE.items():
        allowed = {"viewer": verbs[0], "operator": verbs[1], "admin": (*READS, *WRITES)}[role]
        if resource in CLUSTER_SCOPED or KINDS.find(f"{resource}.{group}" if group else resource) is None:
            allowed = ()
        for verb in (*READS, *WRITES):
            inside = Attributes(verb, group, resource, subresource, "lab", "x")
            assert allows(identity, inside) == (verb in allowed), inside
            for namespace in ("", "home"):
                assert not allows(identity, Attributes(verb, group, resource, subresource, namespace, "x"))
    for verb in (*READS, *WRITES):
        assert allows(identity, Attributes(verb, "", "namespaces", "", "lab", "lab")) == (verb == "get")
        assert not allows(identity, Attributes(verb, "", "namespaces", "", "home", "home"))


def test_everybody_known_may_discover_and_only_an_admin_of_everything_may_use_other_paths() -> None:
    """Tokens, join tokens and samples are such paths."""
    identities = [Identity("a", "viewer"), Identity("a", "operator"), Identity("a", "gateway"), Identity("a", "admin", ("lab",))]
    for identity in (*identities, Identity("a", "admin")):
        for path in ("/api", "/apis/rkfleet.dev", "/openapi/v3", "/version"):
            assert allows_path(identity, "get", path)
            assert allows_path(identity, "post", path) == (identity.namespaces == () and identity.role == "admin")
        for path in ("/access/v1alpha1/tokens", "/enrollment/v1alpha1/join-tokens", "/apisx"):
            assert allows_path(identity, "get", path) == auth.is_admin(identity)


@pytest.mark.parametrize(
    ("verb", "target", "sentence"),
    [
        ("delete", ("boards.rkfleet.dev", "", "x", ""), '"x" is forbidden: {} delete resource "boards" in {} at the cluster scope'),
        ("list", ("replicas.rkfleet.dev", "home", "", ""), ' is forbidden: {} list resource "replicas" in {} in the namespace "home"'),
        (
            "patch", ("modeldeployments.rkfleet.dev", "home", "q", "scale"),
            '"q" is forbidden: {} patch resource "modeldeployments/scale" in {} in the namespace "home"',
        ),
        ("get", ("namespaces", "", "home", ""), '"home" is forbidden: {} get resource "namespaces" in {} in the namespace "home"'),
        ("list", ("events", "", "", ""), ' is forbidden: {} list resource "events" in {} at the cluster scope'),
    ],
)  # fmt: skip
def test_a_refusal_is_worded_as_kubernetes_words_it(verb: str, target: tuple[str, str, str, str], sentence: str) -> None:
    """Programs and people search for these sentences."""
    resource, namespace, name, subresource = target
    kind = KINDS.find(resource)
    assert kind is not None
    with pytest.raises(PermissionDenied) as refused:
        auth.authorize(Identity("bob", "viewer", ("lab",)), verb, Target(kind, namespace, name, subresource))  # type: ignore[arg-type]
    expected = sentence.format('User "bob" cannot', f'API group "{kind.resource.group}"')
    assert refused.value.message == resource + (" " if name else "") + expected
    with pytest.raises(PermissionDenied) as refused:
        auth.authorize_path(Identity("bob", "viewer"), "POST", "/apis")
    assert refused.value.message == 'forbidden: User "bob" cannot post path "/apis"'
