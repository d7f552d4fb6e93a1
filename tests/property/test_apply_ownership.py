"""Server-side apply against a small model of ownership: who owns a field, what a conflict is, what goes when nobody applies it."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.api.apply.applying import ApplyConflict
from controller.api.apply.fields import flat, from_fields, to_fields
from controller.api.apply.managers import decode, encode
from controller.api.apply.ownership import Ownership, Writer
from controller.api.apply.shape import shape_of
from rkfleet.errors import Invalid
from rkfleet.kinds import KINDS, ModelDeployment

Json = dict[str, Any]
FIELDS = ("paused", "replicas", "servedModelName", "progressDeadlineSeconds")
LABELS = ("a", "b", "c")
FINALIZERS = ("x/1", "x/2")
MANAGERS = ("kim", "lou", "mia")
OWNERSHIP = Ownership(KINDS)


class Model:
    """The same in the plainest words: leaves by name, a value and a set of owners for each."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.owners: dict[str, set[tuple[str, str]]] = {}

    def apply(self, manager: str, wanted: dict[str, Any], *, force: bool) -> bool:
        """Return whether there is no conflict; then it is done."""
        me = (manager, "Apply")
        changed = {leaf for leaf, value in wanted.items() if self.values.get(leaf, ...) != value}
        if any(self.owners.get(leaf, set()) - {me} for leaf in changed) and not force:
            return False
        for leaf in changed:
            self.owners[leaf] = set()
        for leaf in [leaf for leaf, owners in self.owners.items() if me in owners and leaf not in wanted]:
            self.owners[leaf].discard(me)
            if not self.owners[leaf]:
                del self.owners[leaf], self.values[leaf]
        for leaf, value in wanted.items():
            self.values[leaf] = value
            self.owners.setdefault(leaf, set()).add(me)
        return True

    def update(self, manager: str, whole: dict[str, Any]) -> None:
        me = (manager, "Update")
        for leaf in self.values.keys() - whole.keys():
            del self.values[leaf]
            self.owners.pop(leaf, None)
        for leaf, value in whole.items():
            if self.values.get(leaf, ...) != value:
                self.owners[leaf] = {me}
        self.values = dict(whole)


def as_object(leaves: dict[str, Any]) -> Json:
    spec = {leaf.removeprefix("spec."): value for leaf, value in leaves.items() if leaf.startswith("spec.")}
    labels = {leaf.removeprefix("label."): value for leaf, value in leaves.items() if leaf.startswith("label.")}
    finalizers = [leaf.removeprefix("finalizer.") for leaf in leaves if leaf.startswith("finalizer.")]
    metadata: Json = {"name": "d", "namespace": "default"}
    metadata |= {"labels": labels} if labels else {}
    metadata |= {"finalizers": finalizers} if finalizers else {}
    return {"metadata": metadata, **({"spec": spec} if spec else {})}


def as_leaves(obj: Json) -> dict[str, Any]:
    metadata = obj["metadata"]
    return (
        {f"spec.{name}": value for name, value in obj.get("spec", {}).items()}
        | {f"label.{name}": value for name, value in metadata.get("labels", {}).items()}
        | {f"finalizer.{name}": True for name in metadata.get("finalizers", ())}
    )


def owners_of(obj: Json) -> dict[str, set[tuple[str, str]]]:
    found: dict[str, set[tuple[str, str]]] = {}
    for manager, managed in decode(obj["metadata"].get("managedFields") or []).items():
        for path in managed.paths:
            found.setdefault(_leaf(path), set()).add((manager.name, manager.operation))
    return found


def _leaf(path: tuple[str, ...]) -> str:
    match path:
        case ("f:spec", field):
            return f"spec.{field[2:]}"
        case ("f:metadata", "f:labels", label):
            return f"label.{label[2:]}"
        case ("f:metadata", "f:finalizers", value):
            return f"finalizer.{value[3:-1]}"
        case _:
            raise AssertionError(path)


leaves = st.dictionaries(
    st.sampled_from([*(f"spec.{field}" for field in FIELDS), *(f"label.{label}" for label in LABELS)]), st.sampled_from(["one", "two"])
)
contents = st.builds(
    lambda found, finalizers: found | dict.fromkeys(sorted(finalizers), True),
    leaves,
    st.sets(st.sampled_from([f"finalizer.{name}" for name in FINALIZERS])),
)
steps = st.lists(st.tuples(st.sampled_from(MANAGERS), st.sampled_from(["apply", "force", "update"]), contents), min_size=1, max_size=12)


@given(steps)
def test_fields_are_owned_as_in_the_model(played: list[tuple[str, str, dict[str, Any]]]) -> None:
    model, obj = Model(), as_object({})
    for number, (manager, verb, content) in enumerate(played):
        now = f"2026-01-01T00:00:{number:02}Z"
        if verb == "update":
            model.update(manager, content)
            sent = {**as_object(content)}
            obj = OWNERSHIP.updated(ModelDeployment, obj, sent, sent=None, writer=Writer(manager), now=now)
        else:
            agreed = model.apply(manager, content, force=verb == "force")
            keywords = {"writer": Writer(manager), "now": now, "force": verb == "force"}
            if not agreed:
                with pytest.raises(ApplyConflict) as refused:
                    OWNERSHIP.applied(ModelDeployment, obj, as_object(content), **keywords)
                assert refused.value.causes
                continue
            pending = OWNERSHIP.applied(ModelDeployment, obj, as_object(content), **keywords)
            obj = OWNERSHIP.settled(ModelDeployment, obj, pending.obj, pending=pending, writer=Writer(manager))
            again = OWNERSHIP.applied(ModelDeployment, obj, as_object(content), **(keywords | {"now": "later"}))
            assert OWNERSHIP.settled(ModelDeployment, obj, again.obj, pending=again, writer=Writer(manager)) == obj, (
                "no write the second time"
            )
        assert as_leaves(obj) == model.values
        assert owners_of(obj) == {leaf: owners for leaf, owners in model.owners.items() if owners}


paths = st.frozensets(
    st.lists(st.sampled_from(["f:a", "f:b", 'k:{"name":"x"}', 'k:{"name":"y"}', 'v:"z"', "i:0"]), min_size=1, max_size=4).map(tuple),
    max_size=12,
)


@given(paths)
def test_a_set_of_paths_is_what_its_fields_say(found: frozenset[tuple[str, ...]]) -> None:
    assert from_fields(to_fields(found)) == found


texts = st.text(max_size=5)
anything = st.recursive(st.none() | st.booleans() | texts, lambda below: st.lists(below) | st.dictionaries(texts, below))
entry = st.fixed_dictionaries(
    {"operation": st.sampled_from(["Apply", "Update"])},
    optional={"manager": texts, "fieldsV1": anything, "time": texts, "apiVersion": anything, "fieldsType": st.just("FieldsV1")},
)


@given(anything | st.lists(entry | anything))
def test_any_managed_fields_are_read_or_refused_by_name(entries: Any) -> None:
    with contextlib.suppress(Invalid):
        managers = decode(entries)
        assert decode(encode(managers)) == managers


def test_fields_are_written_as_kubernetes_writes_them() -> None:
    """The example of Kubernetes' documentation of server-side apply, and a list that is merged by key."""
    obj = {
        "metadata": {"labels": {"test-label": "test"}, "finalizers": ["a/b"]},
        "spec": {"replicas": 1, "template": {"model": "m", "serving": {}}, "placement": {"tolerations": [{"key": "k"}]}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
    assert to_fields(flat(obj, shape_of(ModelDeployment))) == {
        "f:metadata": {"f:labels": {"f:test-label": {}}, "f:finalizers": {'v:"a/b"': {}}},
        "f:spec": {
            "f:replicas": {},
            "f:template": {"f:model": {}, "f:serving": {}},
            "f:placement": {"f:tolerations": {}},
        },
        "f:status": {"f:conditions": {'k:{"type":"Ready"}': {".": {}, "f:type": {}, "f:status": {}}}},
    }
