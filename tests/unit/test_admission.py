"""What admission lets through, what it changes, and what it says when it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from controller.api.admission import Admission, Admitted
from controller.store.base import OBJECT_BYTES_MAX
from rkfleet.errors import BadRequest, Conflict, FleetError, Invalid
from rkfleet.kinds import KINDS, Board, Event, Model, ModelDeployment, ModelRevision, Replica
from rkfleet.kinds.base import Object, Registry
from tests.support.manifests import board, deployment, model, replica, stored, variant
from tests.support.widget import Widget

ADMISSION = Admission(Registry((*KINDS, Widget)))
Json = dict[str, Any]


def create(kind: type[Object], obj: Json, **options: Any) -> Admitted:
    namespace = "default" if kind.resource.namespaced else ""
    return ADMISSION.admit_create(kind, obj, **{"mode": "Strict", "namespace": namespace, **options})


def update(kind: type[Object], old: Json, new: Json, **options: Any) -> Admitted:
    return ADMISSION.admit_update(kind, old, new, **{"mode": "Strict", **options})


def causes(refused: pytest.ExceptionInfo[FleetError]) -> dict[str, str]:
    assert isinstance(refused.value, Invalid)
    return {cause.field: cause.message for cause in refused.value.causes}


def changed(obj: Json, **spec: Any) -> Json:
    return {**obj, "spec": {**obj["spec"], **spec}}


# ---- creating


def test_static_defaults_are_written_out() -> None:
    spec = create(ModelDeployment, deployment()).obj["spec"]
    assert (spec["replicas"], spec["paused"], spec["strategy"]) == (1, False, {"maxUnavailable": 1, "maxSurge": 0})
    assert spec["template"]["serving"]["contextTokens"] == 1024
    assert spec["placement"] == {"boardLostSeconds": 300}
    assert "servedModelName" not in spec


def test_what_was_sent_is_not_changed() -> None:
    sent = deployment()
    create(ModelDeployment, sent)
    assert sent == deployment()


def test_nulls_are_as_if_absent() -> None:
    obj = create(ModelDeployment, deployment(replicas=None, servedModelName=None)).obj
    assert obj["spec"]["replicas"] == 1
    assert "servedModelName" not in obj["spec"]


def test_every_cause_is_named_with_value_and_limit() -> None:
    wrong = deployment("x" * 41, replicas="three", strategy={"maxSurge": "200%"}, progressDeadlineSeconds=0)
    wrong["metadata"]["labels"] = {"bad key": "x", "site": "-", "rkfleet.dev/soc": "rk3588"}
    with pytest.raises(Invalid) as refused:
        create(ModelDeployment, wrong)
    assert causes(refused) == {
        "metadata.name": f"'{'x' * 41}' has 41 characters, at most 40 are allowed",
        "metadata.labels[bad key]": ("'bad key' must be 1..63 letters, digits, '-', '_' or '.', and start and end with a letter or digit"),
        "metadata.labels.site": "'-' must be at most 63 letters, digits, '-', '_' or '.', and start and end with a letter or digit",
        "spec.replicas": '"three": must be an integer 0..1000',
        "spec.strategy.maxSurge": '"200%": must be an integer of at least 0 or a percentage 0%..100%',
        "spec.progressDeadlineSeconds": "0: must be an integer 1..86400",
    }
    assert refused.value.message.startswith(f'ModelDeployment.rkfleet.dev "{"x" * 41}" is invalid: [metadata.name: ')


def test_unknown_fields_are_refused_in_strict_mode_together_with_every_other_cause() -> None:
    wrong = deployment(replicaz=3, replicas=-1)
    wrong["spec"]["template"]["serving"] = {"threadz": 2}
    with pytest.raises(BadRequest) as refused:
        create(ModelDeployment, wrong)
    assert refused.value.message == (
        'strict decoding error: unknown field "spec.template.serving.threadz", unknown field "spec.replicaz";'
        " spec.replicas: -1: must be an integer 0..1000"
    )


def test_unknown_fields_are_left_out_with_a_warning_or_in_silence() -> None:
    warned = create(ModelDeployment, deployment(replicaz=3), mode="Warn")
    silent = create(ModelDeployment, deployment(replicaz=3), mode="Ignore")
    assert warned.warnings == ('unknown field "spec.replicaz"',)
    assert silent.warnings == ()
    assert warned.obj == silent.obj == create(ModelDeployment, deployment()).obj


def test_system_fields_are_ignored_on_create() -> None:
    metadata = {"uid": "x", "generation": 7, "creationTimestamp": None, "deletionTimestamp": "2026-01-01T00:00:00Z", "managedFields": [{}]}
    sent = deployment()
    sent["metadata"].update(metadata)
    assert create(ModelDeployment, {**sent, "status": {"replicas": "many"}}).obj == create(ModelDeployment, deployment()).obj


def test_an_object_to_be_created_has_no_version() -> None:
    with pytest.raises(BadRequest, match="resourceVersion should not be set"):
        create(ModelDeployment, stored(deployment()))


def test_kind_and_namespace_come_from_the_url_where_they_are_absent() -> None:
    obj = create(ModelDeployment, {"metadata": {"name": "x"}, "spec": deployment()["spec"]}).obj
    assert (obj["apiVersion"], obj["kind"], obj["metadata"]["namespace"]) == ("rkfleet.dev/v1alpha1", "ModelDeployment", "default")


@pytest.mark.parametrize(
    ("obj", "options", "why"),
    [
        (deployment() | {"kind": "Model"}, {}, "do not match those of the URL"),
        (deployment(), {"namespace": "lab"}, r"namespace of the object \(default\) does not match the namespace on the URL \(lab\)"),
        (deployment(), {"name": "other"}, r"name of the object \(smollm2\) does not match the name on the URL \(other\)"),
        (deployment() | {"metadata": "x"}, {}, "metadata must be a mapping, not str"),
    ],
)
def test_an_object_that_contradicts_its_url_is_refused(obj: Json, options: Json, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        create(ModelDeployment, obj, **options)


def test_a_cluster_scoped_object_loses_the_default_namespace_of_its_client() -> None:
    obj = board()
    obj["metadata"]["namespace"] = "default"
    assert create(Board, obj).obj["metadata"] == {"name": "cpu-1"}


def test_a_generated_name_is_cut_to_the_limit_of_its_kind() -> None:
    obj = deployment()
    obj["metadata"] = {"generateName": "y" * 60}
    assert create(ModelDeployment, obj, name_suffix="abcde").obj["metadata"]["name"] == "y" * 35 + "abcde"


def test_a_name_must_be_there() -> None:
    with pytest.raises(Invalid) as refused:
        create(ModelDeployment, deployment(""))
    assert causes(refused) == {"metadata.name": "must not be empty"}


def test_an_object_over_a_mebibyte_is_refused() -> None:
    # An Event's message is the one field without a limit of its own.
    event = {"metadata": {"name": "e"}, "message": "x" * OBJECT_BYTES_MAX}
    with pytest.raises(Invalid, match=f"bytes, at most {OBJECT_BYTES_MAX} are allowed"):
        create(Event, event)


def test_lists_have_their_limit() -> None:
    with pytest.raises(Invalid) as refused:
        create(Model, model("m", *(variant(f"v{index}") for index in range(65))))
    assert causes(refused) == {"spec.variants": "65 items: must be a list of 1..64 items"}


def test_a_key_of_a_list_map_is_unique() -> None:
    with pytest.raises(Invalid) as refused:
        create(Model, model("m", variant("a"), variant("b"), variant("a")))
    assert causes(refused) == {"spec.variants[2]": '{"name":"a"}: must be unique in spec.variants'}
    assert refused.value.causes[0].reason == "FieldValueDuplicate"


@pytest.mark.parametrize("memory", ["-1", "1e999", "4GB", ""])
def test_quantities_are_validated(memory: str) -> None:
    with pytest.raises(Invalid) as refused:
        create(Model, model("m", variant(requires={"memory": memory})))
    assert causes(refused) == {"spec.variants[0].requires.memory": f'"{memory}": must be a quantity such as 512Mi or 4Gi'}


def test_a_pattern_holds_to_the_very_end() -> None:
    """Python's `$` would let a line feed through; a digest with one is another digest."""
    with pytest.raises(Invalid):
        create(Model, model("m", variant(artifact={"files": [{"path": "a\n", "digest": f"sha256:{'0' * 64}", "sizeBytes": 1}]})))


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**30])
def test_integers_have_64_bits(number: int) -> None:
    with pytest.raises(Invalid, match="must be an integer of at most 64 bits"):
        create(Event, {"metadata": {"name": "e"}, "count": number})


def test_annotations_and_owners_have_limits() -> None:
    obj = deployment()
    owner = {"apiVersion": "v1", "kind": "X", "name": "x", "uid": "u", "controller": True}
    obj["metadata"] |= {"annotations": {"a": "x" * 262144}, "finalizers": ["-"], "ownerReferences": [owner, owner]}
    with pytest.raises(Invalid) as refused:
        create(ModelDeployment, obj)
    assert set(causes(refused)) == {"metadata.annotations", "metadata.finalizers[0]", "metadata.ownerReferences"}


# ---- rules


@pytest.mark.parametrize("strategy", [{"maxUnavailable": 0}, {"maxUnavailable": "0%", "maxSurge": "0%"}])
def test_a_rule_names_its_field(strategy: Json) -> None:
    with pytest.raises(Invalid) as refused:
        create(ModelDeployment, deployment(strategy=strategy))
    assert causes(refused) == {"spec.strategy.maxUnavailable": "maxUnavailable and maxSurge must not both be 0"}


@pytest.mark.parametrize("strategy", [{"maxUnavailable": "25%", "maxSurge": "0%"}, {"maxUnavailable": "0%", "maxSurge": "100%"}])
def test_percentages_satisfy_the_rule(strategy: Json) -> None:
    create(ModelDeployment, deployment(strategy=strategy))


@pytest.mark.parametrize("value", ["101%", "200%", "-1%", "25", "1.5%", "%", -1, 1.5, True])
@pytest.mark.parametrize("field", ["maxUnavailable", "maxSurge"])
def test_a_strategy_takes_numbers_from_0_and_percentages_up_to_100(field: str, value: Any) -> None:
    with pytest.raises(Invalid) as refused:
        create(ModelDeployment, deployment(strategy={"maxUnavailable": 1, "maxSurge": 1, field: value}))
    assert list(causes(refused)) == [f"spec.strategy.{field}"]


@pytest.mark.parametrize(("deadline", "settling"), [(60, 60), (600, 900)])
def test_the_progress_deadline_is_longer_than_min_ready_seconds(deadline: int, settling: int) -> None:
    create(ModelDeployment, deployment(progressDeadlineSeconds=settling + 1, minReadySeconds=settling))
    with pytest.raises(Invalid) as refused:
        create(ModelDeployment, deployment(progressDeadlineSeconds=deadline, minReadySeconds=settling))
    said = "progressDeadlineSeconds must be greater than minReadySeconds"
    assert causes(refused) == {"spec.progressDeadlineSeconds": said}
    with pytest.raises(Invalid, match=said):
        create(ModelDeployment, deployment(minReadySeconds=600))


@pytest.mark.parametrize("effect", ["NoSchedule", "NoExecute", "PreferNoSchedule"])
def test_a_taint_has_an_effect_that_is_followed(effect: str) -> None:
    tainted = {"metadata": {"name": "cpu-1"}, "spec": {"taints": [{"key": "k", "effect": effect}]}}
    if effect == "PreferNoSchedule":
        with pytest.raises(Invalid) as refused:
            create(Board, tainted)
        assert list(causes(refused)) == ["spec.taints[0].effect"]
    else:
        create(Board, tainted)
        create(ModelDeployment, deployment(placement={"tolerations": [{"operator": "Exists", "effect": effect}]}))


def test_variants_may_be_added_and_reordered_but_not_changed() -> None:
    old = stored(create(Model, model("m", variant("a"), variant("b"))).obj)
    update(Model, old, changed(old, variants=[variant("b"), variant("c"), variant("a")]))
    update(Model, old, changed(old, variants=[variant("a", requires={"memory": "1Gi"}), variant("b")]))
    for variants, field in (
        ([variant("a")], "spec.variants"),
        ([variant("b", dtype="f16"), variant("a")], "spec.variants[0]"),
        ([variant("a"), variant("b", contextTokens=2048)], "spec.variants[1]"),
    ):
        with pytest.raises(Invalid) as refused:
            update(Model, old, changed(old, variants=variants))
        assert list(causes(refused)) == [field]


@pytest.mark.parametrize(("field", "first", "then"), [("boardName", "cpu-1", "cpu-2"), ("variantName", "a", "")])
def test_a_placement_is_set_once(field: str, first: str, then: str) -> None:
    """Also when the fault is in another field than the one that the rule points at."""
    placed = stored(create(Replica, replica(**{field: first})).obj)
    unplaced = stored(create(Replica, replica()).obj)
    assert update(Replica, unplaced, changed(unplaced, **{field: first})).obj["spec"][field] == first
    with pytest.raises(Invalid) as refused:
        update(Replica, placed, changed(placed, **{field: then}))
    assert causes(refused) == {"spec.boardName": "boardName and variantName are set once"}


def test_a_revision_is_immutable_also_when_it_was_stored_without_defaults() -> None:
    spec = {"template": {"model": "m"}, "modelUID": "u", "revision": 1, "deploymentName": "d"}
    old = stored({"metadata": {"name": "r", "namespace": "default"}, "spec": spec})
    assert update(ModelRevision, old, changed(old, revision=2)).obj["spec"]["revision"] == 2
    with pytest.raises(Invalid, match="template and modelUID are immutable"):
        update(ModelRevision, old, changed(old, template={"model": "n"}))


def test_a_kind_of_ones_own_has_its_rules() -> None:
    old = create(Widget, {"metadata": {"name": "w"}, "spec": {"sizeBytes": 50}}).obj
    with pytest.raises(Invalid) as refused:
        update(Widget, stored(old), changed(old, sizeBytes=40))
    assert causes(refused) == {"spec.sizeBytes": "sizeBytes may only grow"}
    with pytest.raises(Invalid) as refused:
        create(Widget, {"metadata": {"name": "w"}, "spec": {"sizeBytes": 500, "colour": "red"}})
    assert causes(refused) == {"spec.colour": "a red widget must be smaller than 100 bytes"}


# ---- changing


def test_system_fields_are_kept_on_update() -> None:
    old = stored(create(ModelDeployment, deployment()).obj)
    sent = changed(old, replicas=3)
    sent["metadata"] = {"name": "smollm2", "labels": {"a": "b"}, "generation": 99, "creationTimestamp": None, "deletionTimestamp": "x"}
    obj = update(ModelDeployment, old, sent).obj
    owned = {key: old["metadata"][key] for key in ("uid", "generation", "creationTimestamp")}
    assert obj["metadata"] == {"name": "smollm2", "namespace": "default", "labels": {"a": "b"}, **owned}


def test_status_and_spec_have_each_their_own_path() -> None:
    old = stored(create(ModelDeployment, deployment()).obj) | {"status": {"replicas": 1}}
    both = changed(old, replicas=5) | {"status": {"replicas": 9}}
    assert update(ModelDeployment, old, both).obj == changed(old, replicas=5)
    assert update(ModelDeployment, old, both, subresource="status").obj == {**old, "status": {"replicas": 9}}
    with pytest.raises(Invalid) as refused:
        update(ModelDeployment, old, {**old, "status": {"replicas": "many"}}, subresource="status")
    assert causes(refused) == {"status.replicas": '"many": must be an integer'}


def test_what_names_an_object_never_changes() -> None:
    old = stored(create(ModelDeployment, deployment()).obj)
    for field, error in (("name", BadRequest), ("namespace", BadRequest), ("uid", Conflict)):
        with pytest.raises(error):
            update(ModelDeployment, old, {**old, "metadata": {**old["metadata"], field: "other"}})


def test_fields_of_a_newer_controller_stay() -> None:
    """They are not reported either: nobody wrote them now."""
    old = stored(create(Model, model("m", variant("a"))).obj)
    old["spec"] = {**old["spec"], "signedBy": "x", "variants": [{**old["spec"]["variants"][0], "layout": {"k": 1}}]}
    assert update(Model, old, changed(old, family="llama")).obj == changed(old, family="llama")
    with pytest.raises(BadRequest, match=r'unknown field "spec.signedBy"$'):
        update(Model, old, changed(old, signedBy="y"))


def test_a_fault_that_was_stored_before_does_not_refuse_another_change() -> None:
    """A limit that became stricter must not keep an object from being labelled, drained or deleted."""
    old = stored(create(ModelDeployment, deployment()).obj)
    old["spec"] |= {"replicas": 5000, "strategy": {"maxUnavailable": 0, "maxSurge": 0}}
    labelled = {**old, "metadata": {**old["metadata"], "labels": {"a": "b"}}}
    assert update(ModelDeployment, old, labelled).obj["spec"]["replicas"] == 5000
    with pytest.raises(Invalid) as refused:
        update(ModelDeployment, old, changed(old, replicas=5001, strategy={"maxUnavailable": "0%", "maxSurge": 0}))
    assert set(causes(refused)) == {"spec.replicas"}
    with pytest.raises(Invalid) as refused:
        update(ModelDeployment, old, changed(old, strategy={"maxUnavailable": "0%", "maxSurge": 0}))
    assert set(causes(refused)) == {"spec.strategy.maxUnavailable"}


def test_no_finalizer_is_added_to_what_is_being_deleted() -> None:
    old = stored(create(ModelDeployment, deployment()).obj, deletionTimestamp="2026-11-23T08:00:00Z", finalizers=["a/b"])
    update(ModelDeployment, old, {**old, "metadata": {**old["metadata"], "finalizers": []}})
    with pytest.raises(Invalid, match="a/c: no finalizer can be added to an object that is being deleted"):
        update(ModelDeployment, old, {**old, "metadata": {**old["metadata"], "finalizers": ["a/b", "a/c"]}})
