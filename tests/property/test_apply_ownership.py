"""Server-side apply against a small model of ownership: who owns a field, what a conflict is, what goes when nobody applies it."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.api.apply.applying import ApplyConflict
from controller.api.apply.fields import difference, flat, from_fields, text_of, to_fields
from controller.api.apply.managers import decode, encode
from controller.api.apply.ownership import Ownership, Writer
from controller.api.apply.shape import shape_of
from controller.api.apply.trees import minus, plus
from rkfleet.errors import Invalid
from rkfleet.kinds import KINDS, ModelDeployment

Json = dict[str, Any]
FIELDS = ("paused", "replicas", "servedModelName", "progressDeadlineSeconds")
LABELS = ("a", "b", "c")
FINALIZERS = ("x/1", "x/2")
MANAGERS = ("kim", "lou", "mia")
OWNERSHIP = Ownership(KINDS)


class Model:
    """The same in the plainest words: leaves and what holds them by name, a value and a set of owners for each.

    Who updates owns also the maps and lists that came with it. While nobody owns anything nothing is noted, and the first who applies then
    finds that all of it is owned already.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = dict(values)
        self.owners: dict[str, set[tuple[str, str]]] = {name: {("maker", "Update")} for name in self.all(values)}

    @staticmethod
    def all(values: dict[str, Any]) -> dict[str, Any]:
        holders = {leaf.partition(".")[0] for leaf in values}
        return values | dict.fromkeys(holders)

    def apply(self, manager: str, wanted: dict[str, Any], *, force: bool) -> bool:
        """Return whether there is no conflict; then it is done."""
        me = (manager, "Apply")
        owners = {name: set(found) for name, found in self.owners.items() if found}
        if not owners:
            owners = {name: {("before-first-apply", "Update")} for name in self.all(self.values)}
        changed = {leaf for leaf, value in wanted.items() if self.values.get(leaf, ...) != value}
        if any(owners.get(leaf, set()) - {me} for leaf in changed) and not force:
            return False
        for leaf in changed:
            owners[leaf] = set()
        for leaf in [leaf for leaf, found in owners.items() if me in found and leaf not in wanted]:
            owners[leaf].discard(me)
            if not owners[leaf]:
                del owners[leaf], self.values[leaf]
        for leaf, value in wanted.items():
            self.values[leaf] = value
            owners.setdefault(leaf, set()).add(me)
        self.owners = {name: found for name, found in owners.items() if name in self.all(self.values)}
        return True

    def update(self, manager: str, whole: dict[str, Any]) -> None:
        before, after = self.all(self.values), self.all(whole)
        self.values = dict(whole)
        if not any(self.owners.values()):
            return
        self.owners = {name: found for name, found in self.owners.items() if name in after}
        for name, value in after.items():
            if before.get(name, ...) != value:
                self.owners[name] = {(manager, "Update")}


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
        case ("f:spec",) | ("f:metadata", "f:labels") | ("f:metadata", "f:finalizers"):
            return path[-1][2:].removesuffix("s")
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


@given(contents, steps)
def test_fields_are_owned_as_in_the_model(made: dict[str, Any], played: list[tuple[str, str, dict[str, Any]]]) -> None:
    model, obj = Model(made), OWNERSHIP.created(ModelDeployment, as_object(made), Writer("maker"), "2026-01-01T00:00:00Z")
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
    st.lists(st.sampled_from(["f:a", "f:b", "f:", 'k:{"name":"x"}', 'k:{"a":1,"name":"y"}', 'v:"z"', "i:0"]), min_size=1, max_size=4).map(
        tuple
    ),
    max_size=12,
)


@given(paths)
def test_a_set_of_paths_is_what_its_fields_say(found: frozenset[tuple[str, ...]]) -> None:
    assert from_fields(to_fields(found)) == found


conditions = st.lists(
    st.fixed_dictionaries({"status": st.sampled_from(["True", "False"])}, optional={"type": st.sampled_from(["Ready", "Available"])}),
    max_size=3,
)
objects = st.builds(
    lambda found, status, extra, empty: {
        **(made := as_object(found)),
        "metadata": {**empty, **made["metadata"]},
        **extra,
        **({} if status is None else {"status": {"conditions": status}}),
    },
    contents,
    st.none() | conditions,
    st.dictionaries(
        st.sampled_from(["x", "y"]),
        st.recursive(st.booleans() | st.sampled_from([0, 1, "text", [2.5]]), lambda below: st.dictionaries(st.just("z"), below)),
    ),
    st.dictionaries(st.sampled_from(["labels", "annotations"]), st.just({})),
)


@given(objects, objects)
def test_what_changed_is_the_difference_of_all_fields(before: Json, after: Json) -> None:
    shape = shape_of(ModelDeployment)
    old, new = flat(before, shape), flat(after, shape)
    changed, removed = difference(before, msgspec.json.decode(msgspec.json.encode(after)), shape)
    assert removed == old.keys() - new.keys()
    assert changed == {path for path, value in new.items() if path not in old or (old[path], type(old[path])) != (value, type(value))}


@given(paths, paths)
def test_trees_are_taken_and_joined_as_their_sets(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> None:
    assert minus(to_fields(one), to_fields(other)) == to_fields(one - other)
    assert plus(to_fields(one), to_fields(other)) == to_fields(one | other)


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
        for managed in managers.values():
            assert all(text_of(path) for path in managed.paths)
        assert decode(encode(managers)) == managers
