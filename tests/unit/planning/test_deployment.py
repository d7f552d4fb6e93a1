"""A deployment as a whole: revisions, history, conditions and what they say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from controller.planning.actions import CreateReplica, CreateRevision, Delete, Plan, Record, RenumberRevision, WriteStatus
from controller.planning.claims import find_holder
from controller.planning.deployment import SETTLE_SECONDS, BoardsView, Observed, plan_deployment
from controller.planning.revision import revision_hash
from rkfleet.conditions import Condition
from rkfleet.kinds import Model, ModelDeployment, ModelRevision, Replica
from tests.support import planned
from tests.support.planned import NOW, said, seconds_ago

QWEN = planned.model()


def plan(deployment: ModelDeployment, *, model: Model | None = QWEN, **more: Any) -> Plan:
    return plan_deployment(Observed(deployment=deployment, model=model, **more), NOW)


def told(found: Plan) -> dict[str, Condition]:
    (write,) = [action for action in found.actions if isinstance(action, WriteStatus)]
    return {one.type: one for one in write.conditions}


def fields(found: Plan) -> dict[str, Any]:
    (write,) = [action for action in found.actions if isinstance(action, WriteStatus)]
    return dict(write.fields)


def events(found: Plan) -> list[str]:
    return [action.reason for action in found.actions if isinstance(action, Record)]


def name_of(deployment: ModelDeployment) -> str:
    return f"{deployment.metadata.name}-{revision_hash(deployment.spec.template)}"


def world(deployment: ModelDeployment, count: int, *, ready: int | None = None, **more: Any) -> dict[str, Any]:
    """Return a deployment's own revision and `count` placed replicas of it, `ready` of them Ready since long."""
    name = name_of(deployment)
    unready = [said("Scheduled"), said("ArtifactAvailable"), said("Loaded", "False", "Loading", "Loads the model.")]
    replicas = [
        planned.replica(
            f"{name}-{slot}", deployment, name, slot=slot, board=f"b{slot}", conditions=None if ready is None or slot < ready else unready
        )
        for slot in range(count)
    ]
    return {"revisions": (planned.revision(name, deployment, **more),), "replicas": tuple(replicas)}


def test_a_new_deployment_gets_a_revision_and_replicas_that_it_owns() -> None:
    chat = planned.deployment(replicas=2)
    found = plan(chat)
    (revision,) = [one for one in found.actions if isinstance(one, CreateRevision)]
    replicas = [one for one in found.actions if isinstance(one, CreateReplica)]
    assert revision.ref.name == name_of(chat)
    assert (revision.spec.revision, revision.spec.model_uid) == (1, "uid-qwen")
    assert [one.ref.name for one in replicas] == [f"{revision.ref.name}-0", f"{revision.ref.name}-1"]
    assert {one.owner.uid for one in (*replicas, revision)} == {chat.metadata.uid}
    assert {one.spec.revision_name for one in replicas} == {revision.ref.name}
    assert fields(found)["updateRevision"] == revision.ref.name
    assert fields(found)["selector"] == "rkfleet.dev/deployment=chat"


def test_a_finished_rollout_is_ready_available_and_told_once() -> None:
    chat = planned.deployment(replicas=2)
    found = plan(chat, **world(chat, 2))
    conditions = told(found)
    assert {one.type: (one.status, one.reason) for one in conditions.values()} == {
        "Ready": ("True", "RolloutComplete"),
        "Available": ("True", "MinimumReplicasAvailable"),
        "Progressing": ("True", "RolloutComplete"),
    }
    assert events(found) == ["RolloutComplete"]
    assert fields(found)["currentRevision"] == name_of(chat)

    status = {**fields(found), "conditions": [msgspec.to_builtins(one) for one in conditions.values()]}
    again = planned.deployment(replicas=2, status=status)
    assert plan(again, **world(again, 2)).actions == ()


def test_a_replica_counts_as_available_when_gateways_have_had_time_to_see_it() -> None:
    chat = planned.deployment(replicas=1)
    name = name_of(chat)
    fresh = planned.replica(f"{name}-0", chat, name, board="b0", conditions=[said("Scheduled"), said("Ready", since=seconds_ago(0.5))])
    found = plan(chat, revisions=(planned.revision(name, chat),), replicas=(fresh,))
    assert (fields(found)["readyReplicas"], fields(found)["availableReplicas"]) == (1, 0)
    assert told(found)["Available"].status == "False"
    assert found.again_after_seconds is not None
    assert found.again_after_seconds <= SETTLE_SECONDS


def test_a_replica_on_a_board_without_a_session_is_not_available() -> None:
    chat = planned.deployment(replicas=2)
    found = plan(chat, **world(chat, 2), boards=BoardsView(absent=frozenset({"b1"})))
    assert fields(found)["availableReplicas"] == 1
    ready = told(found)["Ready"]
    assert (ready.status, ready.reason) == ("False", "RollingOut")
    assert "board b1 of replica" in ready.message
    assert ready.message.endswith("Try: kubectl describe board b1")


def test_one_replica_that_may_be_missing_is_still_unavailable() -> None:
    chat = planned.deployment(replicas=1)
    available = told(plan(chat, **world(chat, 1, ready=0)))["Available"]
    assert (available.status, available.reason) == ("False", "MinimumReplicasUnavailable")
    assert available.message.startswith("0 of 1 replicas are available and 1 must be; waits for replica")
    assert "Loads the model." in available.message


def test_losing_a_replica_after_the_rollout_is_no_rollout() -> None:
    chat = planned.deployment(replicas=3)
    chat = planned.deployment(replicas=3, status={"currentRevision": name_of(chat), "updateRevision": name_of(chat)})
    conditions = told(plan(chat, **world(chat, 3, ready=2)))
    assert conditions["Progressing"].reason == "RolloutComplete"
    assert (conditions["Ready"].status, conditions["Ready"].reason) == ("False", "ReplicasUnavailable")
    assert conditions["Available"].status == "True"


@pytest.mark.parametrize(
    ("more", "reason", "sentence"),
    [
        ({"model": None}, "ModelNotFound", "Model default/qwen of spec.template.model does not exist"),
        ({"variants": ["q8"]}, "VariantNotFound", "spec.template.variants names q8, and Model qwen has q4"),
    ],
)
def test_a_template_that_cannot_be_used_takes_nothing_down(more: dict[str, Any], reason: str, sentence: str) -> None:
    before = planned.deployment(replicas=2)
    chat = planned.deployment(replicas=2, template={"variants": more.get("variants", [])})
    found = plan(chat, model=more.get("model", QWEN), **world(before, 2))
    assert not found.structural
    assert (told(found)["Ready"].reason, told(found)["Progressing"].status) == (reason, "False")
    assert told(found)["Ready"].message.startswith(sentence)
    assert ". Try: kubectl " in told(found)["Ready"].message
    assert told(found)["Available"].status == "True"
    assert reason in events(found)


def test_without_a_model_a_new_deployment_makes_nothing() -> None:
    assert not plan(planned.deployment(), model=None).structural


def test_paused_keeps_the_old_revision_at_the_wanted_number() -> None:
    old = planned.deployment(replicas=1)
    chat = planned.deployment(replicas=2, paused=True, template={"serving": {"contextTokens": 2048}})
    found = plan(chat, **world(old, 1))
    (created,) = [one for one in found.actions if isinstance(one, CreateReplica)]
    assert created.spec.revision_name == name_of(old)
    assert not [one for one in found.actions if isinstance(one, CreateRevision)]
    assert (told(found)["Progressing"].status, told(found)["Progressing"].reason) == ("Unknown", "DeploymentPaused")
    assert "spec.paused is true" in told(found)["Ready"].message


def test_a_rollback_makes_the_old_revision_the_newest_again() -> None:
    chat = planned.deployment(replicas=0)
    other = planned.revision("chat-other", chat, number=2, serving={"contextTokens": 2048})
    found = plan(chat, revisions=(*world(chat, 0)["revisions"], other))
    (action,) = [one for one in found.actions if isinstance(one, RenumberRevision)]
    assert (action.ref.name, action.number) == (name_of(chat), 3)
    assert "RolledBack" in events(found)


def test_the_oldest_revisions_above_the_limit_go_and_used_ones_stay() -> None:
    chat = planned.deployment(replicas=1, revisionHistoryLimit=1)
    old = [planned.revision(f"chat-old{number}", chat, number=number, serving={"threads": number}) for number in range(1, 5)]
    mine = planned.revision(name_of(chat), chat, number=5)
    used = planned.replica("chat-old1-7", chat, "chat-old1", slot=7, board="b7", activation="Draining")
    found = plan(chat, revisions=(*old, mine), replicas=(*world(chat, 1)["replicas"], used))
    assert deleted(found, ModelRevision) == ["chat-old2", "chat-old3"]


def test_nothing_moves_for_too_long_and_the_rollout_says_so() -> None:
    chat = planned.deployment(replicas=1, progressDeadlineSeconds=60)
    found = plan(chat, **world(chat, 1, ready=0), stalled_seconds=60.0)
    progressing = told(found)["Progressing"]
    assert (progressing.status, progressing.reason) == ("False", "ProgressDeadlineExceeded")
    assert "for 60 s (spec.progressDeadlineSeconds) nothing has moved; waits for replica" in progressing.message
    assert "ProgressDeadlineExceeded" in events(found)
    assert plan(chat, **world(chat, 1, ready=0), stalled_seconds=20.0).again_after_seconds == 40.0


def test_a_surge_that_no_board_can_hold_is_told_with_what_helps() -> None:
    old = planned.deployment(replicas=1)
    chat = planned.deployment(replicas=1, strategy={"maxUnavailable": 0, "maxSurge": 1}, template={"serving": {"threads": 1}})
    name = name_of(chat)
    message = "No board of 1 can take the replica: less memory free: b0. Try: kubectl get boards"
    surge = planned.replica(f"{name}-1", chat, name, slot=1, conditions=[said("Scheduled", "False", "NoBoardFits", message)])
    before = world(old, 1)
    revisions = (*before["revisions"], planned.revision(name, chat, number=2, serving={"threads": 1}))
    found = plan(chat, revisions=revisions, replicas=(*before["replicas"], surge))
    assert told(found)["Progressing"].reason == "SurgeImpossible"
    assert "maxUnavailable is 0 and no board can hold a surge" in told(found)["Ready"].message
    assert '"maxUnavailable":1' in told(found)["Ready"].message
    assert not found.structural


def test_of_two_claims_to_a_name_the_older_wins_and_the_other_says_so() -> None:
    older = planned.deployment("older", servedModelName="gpt", creationTimestamp="2026-01-01T00:00:00Z")
    younger = planned.deployment("younger", servedModelName="gpt", creationTimestamp="2026-01-01T00:00:01Z", namespace="team")
    dying = planned.deployment(
        "dying", servedModelName="gpt", creationTimestamp="2025-01-01T00:00:00Z", deletionTimestamp="2026-01-01T00:00:00Z"
    )
    unrelated = planned.deployment("gpt-2", creationTimestamp="2024-01-01T00:00:00Z")
    claimants = [younger, older, dying, unrelated]
    assert find_holder(younger, claimants) is older
    assert find_holder(older, claimants) is older
    ready = told(plan(younger, holder="default/older"))["Ready"]
    assert (ready.status, ready.reason) == ("False", "ServedNameTaken")
    assert ready.message.startswith("The model name gpt belongs to ModelDeployment default/older, which is older")


def test_scaled_to_zero_is_ready() -> None:
    chat = planned.deployment(replicas=0)
    assert {(one.type, one.status) for one in told(plan(chat, **world(chat, 0))).values()} == {
        ("Ready", "True"), ("Available", "True"), ("Progressing", "True"),
    }  # fmt: skip


def test_a_deployment_under_deletion_makes_nothing() -> None:
    assert plan(planned.deployment(deletionTimestamp="2026-01-01T00:00:00Z")).actions == ()


def test_replicas_of_a_lost_board_are_replaced_and_told_as_a_warning() -> None:
    chat = planned.deployment(replicas=2)
    lost = frozenset({"b1"})
    found = plan(chat, **world(chat, 2), boards=BoardsView(absent=lost, lost=lost, gone=lost))
    assert deleted(found, Replica) == [f"{name_of(chat)}-1"]
    (created,) = [one for one in found.actions if isinstance(one, CreateReplica)]
    assert created.spec.slot == "2"
    assert ("Warning", "ReplicaDeleted") in {(one.type, one.reason) for one in found.actions if isinstance(one, Record)}


def deleted(found: Plan, kind: type[Replica | ModelRevision]) -> list[str]:
    names: Iterable[str] = (one.ref.name for one in found.actions if isinstance(one, Delete) and one.ref.resource == kind.resource.name)
    return sorted(names)
