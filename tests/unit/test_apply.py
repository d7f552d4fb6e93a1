"""Server-side apply in its parts: sets of fields as Kubernetes writes them, merged lists, conflicts, who is forgotten."""

from __future__ import annotations

from typing import Any

import pytest

from controller.api.apply.applying import LAST_APPLIED, ApplyConflict
from controller.api.apply.fields import flat, from_fields, owned, text_of, to_fields
from controller.api.apply.managers import UPDATERS_MAX, decode
from controller.api.apply.merging import merged
from controller.api.apply.ownership import Ownership, Writer
from controller.api.apply.shape import ATOMIC, Shape, shape_of
from rkfleet.errors import BadRequest, Invalid
from rkfleet.kinds import KINDS, ModelDeployment
from tests.support.objects import deployment

Json = dict[str, Any]
OWNERSHIP = Ownership(KINDS)
ITEMS = Shape("items", each=Shape("fields"), keys=("name",))
SET = Shape("set", each=ATOMIC)
NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def live(**spec: Any) -> Json:
    obj = deployment(**spec)
    return OWNERSHIP.created(ModelDeployment, obj, Writer("maker"), NOW)


def applied(obj: Json, config: Json, manager: str = "kim", *, now: str = NOW, force: bool = False, subresource: str = "") -> Json:
    writer = Writer(manager, subresource)
    pending = OWNERSHIP.applied(ModelDeployment, obj, config, writer=writer, now=now, force=force)
    return OWNERSHIP.settled(ModelDeployment, obj, pending.obj, pending=pending, writer=writer)


def entries(obj: Json) -> dict[tuple[str, str], Json]:
    return {(entry["manager"], entry["operation"]): entry for entry in obj["metadata"].get("managedFields", ())}


# ---- sets of fields


FULL = {
    "metadata": {"name": "x", "labels": {"test-label": "test"}, "finalizers": ["a/b"], "ownerReferences": [{"uid": "1", "name": "o"}]},
    "spec": {"replicas": 1, "template": {"model": "m", "serving": {}}, "placement": {"tolerations": [{"key": "k"}]}},
    "status": {"conditions": [{"type": "Ready", "status": "True"}]},
}


def test_who_applies_owns_values_and_items_in_the_form_of_fields_v1() -> None:
    """As in Kubernetes' documentation of server-side apply: maps of the schema have no entry of their own, items of lists have."""
    assert to_fields(owned(FULL, shape_of(ModelDeployment))) == {
        "f:metadata": {
            "f:labels": {"f:test-label": {}},
            "f:finalizers": {'v:"a/b"': {}},
            "f:ownerReferences": {'k:{"uid":"1"}': {".": {}, "f:uid": {}, "f:name": {}}},
        },
        "f:spec": {
            "f:replicas": {},
            "f:template": {"f:model": {}, "f:serving": {}},
            "f:placement": {"f:tolerations": {}},
        },
        "f:status": {"f:conditions": {'k:{"type":"Ready"}': {".": {}, "f:type": {}, "f:status": {}}}},
    }


def test_who_writes_owns_the_maps_and_lists_too() -> None:
    """As kube-apiserver notes a created custom object: `.` for each map and list that came with it, but not for metadata."""
    assert to_fields(flat(FULL, shape_of(ModelDeployment))) == {
        "f:metadata": {
            "f:labels": {".": {}, "f:test-label": {}},
            "f:finalizers": {".": {}, 'v:"a/b"': {}},
            "f:ownerReferences": {".": {}, 'k:{"uid":"1"}': {".": {}, "f:uid": {}, "f:name": {}}},
        },
        "f:spec": {
            ".": {},
            "f:replicas": {},
            "f:template": {".": {}, "f:model": {}, "f:serving": {}},
            "f:placement": {".": {}, "f:tolerations": {}},
        },
        "f:status": {".": {}, "f:conditions": {".": {}, 'k:{"type":"Ready"}': {".": {}, "f:type": {}, "f:status": {}}}},
    }


def test_elements_are_read_in_any_spelling_and_written_in_one() -> None:
    fields = {"f:a": {'k: {"b": 2, "a": "x"}': {}, 'v: "z"': {}, "i:07": {".": {}, "f:c": {}}}}
    assert from_fields(fields) == {("f:a", 'k:{"a":"x","b":2}'), ("f:a", 'v:"z"'), ("f:a", "i:7"), ("f:a", "i:7", "f:c")}


@pytest.mark.parametrize("element", ["", "name", "k:", "k:{}", "k:[1]", "k:{bad", "v:", "v:bad", "i:", "i:-1", "i:²", "x:y"])
def test_other_elements_are_refused_by_name(element: str) -> None:
    with pytest.raises(ValueError, match="no element of a path"):
        from_fields({element: {}})


def test_paths_are_told_as_kubernetes_tells_them() -> None:
    assert text_of(("f:spec", "f:variants", 'k:{"a":1,"name":"x"}', "f:dtype")) == '.spec.variants[a=1,name="x"].dtype'
    assert text_of(("f:metadata", "f:finalizers", 'v:"a/b"')) == '.metadata.finalizers[="a/b"]'


@pytest.mark.parametrize(
    ("finalizers", "owners", "told"),
    [
        (["a/b", "a/b"], [], '.metadata.finalizers: duplicate entries for key [="a/b"]'),
        ([], [{"uid": "1"}, {"uid": "1"}], '.metadata.ownerReferences: duplicate entries for key [uid="1"]'),
        ([], [{"name": "x"}], ".metadata.ownerReferences: element 0: the list is merged by uid, which this item does not say"),
    ],
)
def test_lists_that_cannot_be_merged_are_refused(finalizers: list[str], owners: list[Json], told: str) -> None:
    config = {"metadata": {"name": "qwen", "finalizers": finalizers, "ownerReferences": owners}}
    with pytest.raises(BadRequest) as refused:
        applied(live(), config)
    assert refused.value.message == told


# ---- merging


@pytest.mark.parametrize(
    ("before", "config", "after"),
    [
        ("abc", "", "abc"),
        ("", "cab", "cab"),
        ("abc", "b", "abc"),
        ("abc", "d", "abcd"),
        ("abc", "cxa", "bcxa"),  # `a` is passed over, it comes after `c`; `b` stands where the walk meets it.
        ("abc", "xb", "axbc"),
        ("abcd", "dxb", "acdxb"),
        ("ab", "ba", "ba"),
    ],
)
def test_lists_merge_in_the_order_of_what_is_applied(before: str, config: str, after: str) -> None:
    assert merged(list(before), list(config), SET) == list(after)
    named = [{"name": one, "old": 1} for one in before]
    items = merged(named, [{"name": one, "new": 2} for one in config], ITEMS)
    assert [item["name"] for item in items] == list(after)
    assert all(("new" in item) == (item["name"] in config) and ("old" in item) == (item["name"] in before) for item in items)


def test_items_without_a_key_stay() -> None:
    before = [{"x": 1}, {"x": 2}, {"name": "a"}]
    assert merged(before, [{"name": "a", "y": 1}], ITEMS) == [{"x": 1}, {"x": 2}, {"name": "a", "y": 1}]


# ---- conflicts


def test_every_conflict_is_told_by_manager() -> None:
    obj = live(replicas=1)
    changed = {**obj, "spec": {**obj["spec"], "paused": True}}
    obj = OWNERSHIP.updated(ModelDeployment, obj, changed, sent=None, writer=Writer("ann"), now=NOW)
    with pytest.raises(ApplyConflict) as refused:
        applied(obj, deployment(replicas=2, paused=False) | {"metadata": {"name": "qwen"}})
    assert refused.value.message == (
        'Apply failed with 2 conflicts: conflicts with "ann" using rkfleet.dev/v1alpha1:\n- .spec.paused\n'
        'conflicts with "maker" using rkfleet.dev/v1alpha1:\n- .spec.replicas'
    )
    assert [(cause.field, cause.message, cause.reason) for cause in refused.value.causes] == [
        (".spec.paused", 'conflict with "ann" using rkfleet.dev/v1alpha1', "FieldManagerConflict"),
        (".spec.replicas", 'conflict with "maker" using rkfleet.dev/v1alpha1', "FieldManagerConflict"),
    ]


def test_kubectl_is_told_only_of_fields_that_it_did_not_apply_itself() -> None:
    text = '{"metadata":{"name":"qwen"},"spec":{"replicas":1}}'
    obj = live(replicas=1, paused=True)
    obj["metadata"]["annotations"] = {LAST_APPLIED: text}
    with pytest.raises(ApplyConflict) as refused:
        applied(obj, deployment(replicas=2, paused=False), "kubectl")
    assert [cause.field for cause in refused.value.causes] == [".spec.paused"]
    taken = applied(obj, deployment(replicas=2), "kubectl")
    assert taken["spec"]["replicas"] == 2
    assert '"replicas":2' in taken["metadata"]["annotations"][LAST_APPLIED]
    assert text not in taken["metadata"]["annotations"][LAST_APPLIED]


@pytest.mark.parametrize(
    "annotations", [{LAST_APPLIED: "no json"}, {LAST_APPLIED: "[1]"}, {LAST_APPLIED: 1}, {LAST_APPLIED: '{"metadata":7}'}]
)
def test_an_annotation_that_says_nothing_excuses_no_conflict(annotations: Json) -> None:
    obj = live(replicas=1)
    obj["metadata"]["annotations"] = annotations
    with pytest.raises(ApplyConflict):
        applied(obj, deployment(replicas=2), "kubectl")


def test_the_annotation_goes_where_it_has_no_room() -> None:
    obj = applied(live(), deployment(), "kubectl")
    obj["metadata"]["annotations"] = {LAST_APPLIED: "{}", "big": "x" * (256 << 10)}
    after = applied(obj, deployment(labels={"a": "1"}), "kubectl")
    assert list(after["metadata"]["annotations"]) == ["big"]


def test_the_first_apply_shares_an_object_without_managers_but_not_its_status() -> None:
    obj = {**deployment(replicas=1), "status": {"replicas": 1}}
    obj["metadata"]["labels"] = {"a": "1"}
    untracked = OWNERSHIP.updated(ModelDeployment, obj, {**obj, "spec": {"paused": True}}, sent=None, writer=Writer("ann"), now=NOW)
    assert "managedFields" not in untracked["metadata"], "nobody is noted before the first apply, as on a real cluster"
    status = applied(obj, {"metadata": {}, "status": {"replicas": 5}}, subresource="status")
    assert status["status"] == {"replicas": 5}
    with pytest.raises(ApplyConflict, match="before-first-apply"):
        applied(obj, deployment(replicas=2))
    first = applied(obj, deployment(replicas=1, paused=True))
    assert entries(first)["before-first-apply", "Update"]["fieldsV1"] == {
        "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
        "f:spec": {".": {}, "f:replicas": {}, "f:template": {".": {}, "f:model": {}}},
    }


def test_scale_is_owned_apart() -> None:
    obj = applied(live(replicas=1), {"metadata": {}, "spec": {"replicas": 4}}, "scaler", force=True, subresource="scale")
    entry = entries(obj)["scaler", "Apply"]
    assert (entry["subresource"], entry["fieldsV1"]) == ("scale", {"f:spec": {"f:replicas": {}}})
    with pytest.raises(ApplyConflict, match=r'conflict with "scaler" with subresource "scale": \.spec\.replicas'):
        applied(obj, deployment(replicas=2))


# ---- managers


def test_a_time_moves_only_with_the_set() -> None:
    first = applied(live(), deployment(labels={"a": "1"}))
    again = applied(first, deployment(labels={"a": "2"}), now=LATER)
    assert entries(again)["kim", "Apply"]["time"] == NOW
    other = applied(first, deployment(labels={"b": "2"}), now=LATER)
    assert entries(other)["kim", "Apply"]["time"] == LATER
    assert other["metadata"]["labels"] == {"b": "2"}


def test_the_oldest_of_too_many_writers_become_one() -> None:
    obj = live()
    for number in range(UPDATERS_MAX + 5):
        changed = {**obj, "metadata": {**obj["metadata"], "annotations": {f"a{one}": "" for one in range(number + 1)}}}
        writer = Writer(f"w{number}")
        obj = OWNERSHIP.updated(ModelDeployment, obj, changed, sent=None, writer=writer, now=f"2026-01-01T00:01:{number:02}Z")
    names = [entry["manager"] for entry in obj["metadata"]["managedFields"]]
    assert len(names) == UPDATERS_MAX
    assert names[0] == "ancient-changes"
    assert names[-1] == f"w{UPDATERS_MAX + 4}"
    paths = [path for managed in decode(obj["metadata"]["managedFields"]).values() for path in managed.paths]
    assert sum(1 for path in paths if path[:2] == ("f:metadata", "f:annotations") and len(path) == 3) == UPDATERS_MAX + 5


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ("x", "metadata.managedFields[0]"),
        ({"operation": "Own"}, "metadata.managedFields[0].operation"),
        ({"operation": "Apply", "fieldsType": "FieldsV2"}, "metadata.managedFields[0].fieldsType"),
        ({"operation": "Apply", "manager": "x" * 129}, "metadata.managedFields[0].manager"),
        ({"operation": "Apply", "time": "yesterday"}, "metadata.managedFields[0].time"),
        ({"operation": "Apply", "time": "2026-01-01T00:00:00"}, "metadata.managedFields[0].time"),
        ({"operation": "Apply", "fieldsV1": {"f:a": 1}}, "metadata.managedFields[0].fieldsV1"),
        ({"operation": "Apply", "fieldsV1": {"k:{": {}}}, "metadata.managedFields[0].fieldsV1"),
    ],
)
def test_managers_that_cannot_be_read_are_refused_by_field(entry: Any, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        decode([entry])
    assert refused.value.causes[0].field == field
