"""A deployment as a whole: revisions, history, conditions and what they say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from controller.planning.actions import Activate, CreateReplica, CreateRevision, Delete, Plan, Record, RenumberRevision, WriteStatus
from controller.planning.claims import find_holder
from controller.planning.deployment import SETTLE_SECONDS, BoardsView, Observed, plan_deployment
from controller.planning.eviction import evicting_boards
from controller.planning.revision import revision_hash
from rkfleet.conditions import Condition
from rkfleet.kinds import Model, ModelDeployment, ModelRevision, Replica
from rkfleet.kinds.board import Toleration
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


def test_without_a_history_no_revision_is_kept_but_those_that_run() -> None:
    chat = planned.deployment(replicas=1, revisionHistoryLimit=0)
    old = [planned.revision(f"chat-old{number}", chat, number=number, serving={"threads": number}) for number in range(1, 4)]
    mine = planned.revision(name_of(chat), chat, number=4)
    used = planned.replica("chat-old2-7", chat, "chat-old2", slot=7, board="b7", activation="Draining")
    found = plan(chat, revisions=(*old, mine), replicas=(*world(chat, 1)["replicas"], used))
    assert deleted(found, ModelRevision) == ["chat-old1", "chat-old3"]


def test_the_revision_that_the_last_rollout_reached_is_kept_while_the_next_one_is_on_its_way() -> None:
    old = planned.deployment(replicas=1)
    status = {"currentRevision": name_of(old)}
    chat = planned.deployment(replicas=0, revisionHistoryLimit=0, template={"serving": {"threads": 1}}, status=status)
    revisions = (planned.revision(name_of(old), old), planned.revision(name_of(chat), chat, number=2, serving={"threads": 1}))
    assert deleted(plan(chat, revisions=revisions, model=None), ModelRevision) == []


def test_undo_to_a_kept_revision_makes_no_new_one_and_prunes_none_that_undo_needs() -> None:
    """`rollout undo` writes the template of a ModelRevision into the deployment; that is all there is to going back."""
    chat = planned.deployment(replicas=0, revisionHistoryLimit=2)
    kept = [planned.revision(f"chat-old{number}", chat, number=number, serving={"threads": number}) for number in (1, 2, 3)]
    template = msgspec.to_builtins(kept[0].spec.template)
    undone = planned.deployment(replicas=0, revisionHistoryLimit=2, template=template)
    found = plan(undone, revisions=tuple(kept))
    (action,) = [one for one in found.actions if isinstance(one, RenumberRevision)]
    assert (action.ref.name, action.number) == ("chat-old1", 4)
    assert not [one for one in found.actions if isinstance(one, CreateRevision)]
    assert deleted(found, ModelRevision) == []
    assert fields(found)["updateRevision"] == "chat-old1"


def test_restart_makes_a_revision_of_the_same_model_and_exchanges_every_replica() -> None:
    """`rollout restart` writes an annotation of the template."""
    before = planned.deployment(replicas=2)
    restarted = {"metadata": {"annotations": {"rkfleet.dev/restartedAt": "2026-01-01T12:00:00Z"}}}
    chat = planned.deployment(replicas=2, strategy={"maxUnavailable": 0, "maxSurge": 2}, template=restarted)
    found = plan(chat, **world(before, 2))
    (revision,) = [one for one in found.actions if isinstance(one, CreateRevision)]
    assert revision.ref.name != name_of(before)
    assert (revision.spec.template.model, revision.spec.model_uid) == ("qwen", "uid-qwen")
    assert [one.spec.revision_name for one in found.actions if isinstance(one, CreateReplica)] == [revision.ref.name] * 2
    assert plan(chat, revisions=(planned.revision(revision.ref.name, chat, number=2, **restarted),)).structural


def test_a_paused_deployment_is_scaled_down_and_up() -> None:
    chat = planned.deployment(replicas=3, paused=True)
    assert [one.spec.slot for one in plan(chat, **world(chat, 2)).actions if isinstance(one, CreateReplica)] == ["2"]
    fewer = planned.deployment(replicas=1, paused=True)
    assert [one.ref.name for one in plan(fewer, **world(fewer, 2)).actions if isinstance(one, Activate)] == [f"{name_of(fewer)}-1"]


def test_resumed_the_rollout_goes_on() -> None:
    old = planned.deployment(replicas=1)
    chat = planned.deployment(replicas=1, template={"serving": {"contextTokens": 2048}})
    assert [one.spec.activation for one in plan(chat, **world(old, 1)).actions if isinstance(one, CreateReplica)] == ["Staged"]


def test_replicas_that_their_boards_never_spoke_of_do_not_hold_up_the_next_revision() -> None:
    """Their Model went before any board heard of them, and came back as another one, which is another revision."""
    old = planned.deployment(replicas=2)
    chat = planned.deployment(replicas=2, template={"serving": {"contextTokens": 2048}})
    names = name_of(old), name_of(chat)
    revisions = (planned.revision(names[0], old), planned.revision(names[1], chat, number=2, serving={"contextTokens": 2048}))

    def waiting(since: str) -> dict[str, Any]:
        silent = [
            planned.replica(f"{names[0]}-{slot}", old, names[0], slot=slot, board=f"b{slot}", conditions=[said("Scheduled", since=since)])
            for slot in range(2)
        ]
        silent = [msgspec.structs.replace(one, status=msgspec.structs.replace(one.status, observed_generation=0)) for one in silent]
        staged = [
            planned.replica(
                f"{names[1]}-{slot + 2}", chat, names[1], slot=slot + 2, board=f"b{slot}", activation="Staged",
                replaces=silent[slot].metadata.uid, conditions=[said("Scheduled"), said("ArtifactAvailable")],
            )
            for slot in range(2)
        ]  # fmt: skip
        return {"revisions": revisions, "replicas": (*silent, *staged)}

    early = plan(chat, stalled_seconds=10.0, **waiting(seconds_ago(10)))
    assert [one for one in early.actions if isinstance(one, Delete)] == []
    assert early.again_after_seconds == 20.0
    found = plan(chat, **waiting(seconds_ago(31)))
    assert [one.ref.name for one in found.actions if isinstance(one, Delete)] == [f"{names[0]}-0", f"{names[0]}-1"]


# ---- minReadySeconds -----------------------------------------------------------------------------------------------------------


def test_min_ready_seconds_make_no_revision_and_lengthen_the_time_until_a_replica_counts() -> None:
    chat = planned.deployment(replicas=1, minReadySeconds=30)
    assert name_of(chat) == name_of(planned.deployment(replicas=1))
    name = name_of(chat)
    fresh = planned.replica(f"{name}-0", chat, name, board="b0", conditions=[said("Scheduled"), said("Ready", since=seconds_ago(12))])
    found = plan(chat, revisions=(planned.revision(name, chat),), replicas=(fresh,), stalled_seconds=12.0)
    assert (fields(found)["readyReplicas"], fields(found)["availableReplicas"]) == (1, 0)
    assert found.again_after_seconds == 18.0
    ready = told(found)["Ready"]
    assert (ready.status, ready.reason) == ("False", "RollingOut")
    assert (
        f"waits for replica {name}-0 on b0, Ready since {seconds_ago(12)}, which counts after 30 s (spec.minReadySeconds)" in ready.message
    )
    settled = planned.replica(f"{name}-0", chat, name, board="b0", conditions=[said("Scheduled"), said("Ready", since=seconds_ago(30))])
    assert fields(plan(chat, revisions=(planned.revision(name, chat),), replicas=(settled,)))["availableReplicas"] == 1


def test_waiting_for_min_ready_seconds_is_not_being_stuck() -> None:
    """The deadline is longer than minReadySeconds, and counts from the moment at which the replica became Ready."""
    chat = planned.deployment(replicas=1, minReadySeconds=59, progressDeadlineSeconds=60)
    name = name_of(chat)
    fresh = planned.replica(f"{name}-0", chat, name, board="b0", conditions=[said("Scheduled"), said("Ready", since=seconds_ago(58))])
    found = plan(chat, revisions=(planned.revision(name, chat),), replicas=(fresh,), stalled_seconds=58.0)
    assert told(found)["Progressing"].reason == "RollingOut"
    assert found.again_after_seconds == 1.0


def test_a_clock_that_was_set_back_makes_no_replica_wait_for_it() -> None:
    chat = planned.deployment(replicas=1, minReadySeconds=600, progressDeadlineSeconds=900)
    name = name_of(chat)
    future = planned.replica(f"{name}-0", chat, name, board="b0", conditions=[said("Scheduled"), said("Ready", since=seconds_ago(-60))])
    assert fields(plan(chat, revisions=(planned.revision(name, chat),), replicas=(future,)))["availableReplicas"] == 1


# ---- Boards that are emptied ---------------------------------------------------------------------------------------------------

DRAIN = "rkfleet.dev/drain:NoExecute"


def done(replicas: int, **spec: Any) -> ModelDeployment:
    """Return a deployment that is rolled out."""
    name = name_of(planned.deployment())
    return planned.deployment(replicas=replicas, status={"currentRevision": name, "updateRevision": name}, **spec)


def draining(*boards: str) -> BoardsView:
    return BoardsView(evicting=dict.fromkeys(boards, DRAIN))


def test_a_replica_on_a_board_that_is_drained_is_staged_elsewhere_and_says_so() -> None:
    chat = done(2)
    found = plan(chat, **world(chat, 2), boards=draining("b1"))
    (created,) = [one for one in found.actions if isinstance(one, CreateReplica)]
    assert (created.spec.activation, created.spec.replaces) == ("Staged", f"uid-{name_of(chat)}-1")
    (target,) = [one for one in found.actions if isinstance(one, WriteStatus) and one.ref.name == f"{name_of(chat)}-1"]
    (condition,) = target.conditions
    assert (condition.type, condition.status, condition.reason) == ("DisruptionTarget", "True", "BoardDraining")
    assert condition.message.startswith(f"Board b1 has taint {DRAIN}, which spec.placement.tolerations does not tolerate")
    assert condition.message.endswith("Try: kubectl describe modeldeployment chat -n default")
    said = told_of(found, chat)
    assert (said["Ready"].status, said["Ready"].reason) == ("False", "BoardDraining")
    assert said["Ready"].message.startswith(f"1 of 2 replicas must leave board b1 (taint {DRAIN}); waits for replica")
    assert (said["Progressing"].status, said["Progressing"].reason) == ("True", "RolloutComplete")
    assert said["Available"].status == "True"


def test_a_drain_is_said_once_and_taken_back() -> None:
    chat = done(1)
    target = said("DisruptionTarget", reason="BoardDraining", message="Board b0 has another taint")
    ready = [said("Scheduled"), said("Ready"), target]
    one = planned.replica(f"{name_of(chat)}-0", chat, name_of(chat), board="b0", conditions=ready)
    revisions = (planned.revision(name_of(chat), chat),)
    found = plan(chat, revisions=revisions, replicas=(one,), boards=draining("b0"))
    (write,) = [action for action in found.actions if isinstance(action, WriteStatus) and action.ref == one.ref]
    said_now = [*ready[:2], msgspec.to_builtins(write.conditions[0])]
    again = planned.replica(f"{name_of(chat)}-0", chat, name_of(chat), board="b0", conditions=said_now)
    writes = [a for a in plan(chat, revisions=revisions, replicas=(again,), boards=draining("b0")).actions if isinstance(a, WriteStatus)]
    assert [write.ref for write in writes] == [chat.ref]
    back = plan(chat, revisions=revisions, replicas=(again,))
    (taken,) = [action for action in back.actions if isinstance(action, WriteStatus) and action.ref == one.ref]
    assert (taken.owner, taken.conditions) == ("deployment", ())


def test_a_paused_deployment_leaves_a_board_with_the_same_revision() -> None:
    old = planned.deployment(replicas=1)
    chat = planned.deployment(replicas=1, paused=True, template={"serving": {"contextTokens": 2048}})
    found = plan(chat, **world(old, 1), boards=draining("b0"))
    (created,) = [one for one in found.actions if isinstance(one, CreateReplica)]
    assert (created.spec.revision_name, created.spec.activation) == (name_of(old), "Staged")
    assert created.ref.name == f"{name_of(old)}-1"
    assert told_of(found, chat)["Ready"].reason == "BoardDraining"
    assert told_of(found, chat)["Progressing"].reason == "DeploymentPaused"


def test_a_drain_without_room_says_so_and_what_ends_it() -> None:
    chat = done(1)
    name = name_of(chat)
    homeless = planned.replica(
        f"{name}-1", chat, name, slot=1, activation="Staged", replaces=f"uid-{name}-0",
        conditions=[said("Scheduled", "False", "NoBoardFits", f"{NO_ROOM}. Try: kubectl get boards")],
    )  # fmt: skip
    found = plan(chat, revisions=(planned.revision(name, chat),), replicas=(*world(chat, 1)["replicas"], homeless), boards=draining("b0"))
    assert not found.structural
    assert told_of(found, chat)["Ready"].message == (
        f"1 of 1 replicas must leave board b0 (taint {DRAIN}); waits for room for replica {name}-1 on a board that is not emptied:"
        f" {NO_ROOM}; fewer spec.replicas, another board, or an end of the drain helps. Try: rkfleet board uncordon b0"
    )


def test_a_rollout_whose_replicas_must_move_again_is_complete_all_the_same() -> None:
    """A drain is no rollout: no deadline runs for it."""
    chat = planned.deployment(replicas=2)
    found = plan(chat, **world(chat, 2), boards=draining("b1"), stalled_seconds=10_000.0)
    assert told_of(found, chat)["Progressing"].reason == "RolloutComplete"
    assert told_of(found, chat)["Ready"].reason == "BoardDraining"


def test_a_board_is_left_only_for_a_taint_with_no_execute_that_is_not_tolerated() -> None:
    def leave(effect: str, *tolerations: dict[str, str]) -> dict[str, str]:
        tainted = planned.board("b0", spec={"taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "k", "value": "v", "effect": effect}]})
        return evicting_boards([tainted, planned.board("b1")], [Toleration(**one) for one in tolerations])

    assert leave("NoExecute") == {"b0": "k=v:NoExecute"}
    assert leave("NoSchedule") == {}
    assert leave("NoExecute", {"key": "k", "value": "v"}) == {}
    assert leave("NoExecute", {"operator": "Exists", "effect": "NoExecute"}) == {}
    assert leave("NoExecute", {"operator": "Exists", "effect": "NoSchedule"}) == {"b0": "k=v:NoExecute"}


def told_of(found: Plan, deployment: ModelDeployment) -> dict[str, Condition]:
    (write,) = [action for action in found.actions if isinstance(action, WriteStatus) and action.ref == deployment.ref]
    return {one.type: one for one in write.conditions}


# ---- The progress deadline -----------------------------------------------------------------------------------------------------


def test_nothing_moves_for_too_long_and_the_rollout_says_so() -> None:
    chat = planned.deployment(replicas=1, progressDeadlineSeconds=60)
    found = plan(chat, **world(chat, 1, ready=0), stalled_seconds=60.0)
    progressing = told(found)["Progressing"]
    assert (progressing.status, progressing.reason) == ("False", "ProgressDeadlineExceeded")
    assert "for 60 s (spec.progressDeadlineSeconds) nothing has moved; waits for replica" in progressing.message
    assert "ProgressDeadlineExceeded" in events(found)
    assert plan(chat, **world(chat, 1, ready=0), stalled_seconds=20.0).again_after_seconds == 40.0


NO_ROOM = "No board of 2 can take the replica: variant q4 needs 2.48Gi of memory: rk3588-1 (1.1Gi of 15Gi free), rk3588-2 (0 of 15Gi free)"


def surging(
    count: int = 1, *, message: str = NO_ROOM, max_unavailable: int | str = 0, **more: Any
) -> tuple[ModelDeployment, dict[str, Any]]:
    """Return a rollout by surge of `count` replicas whose first new replica finds no board, since long."""
    old = planned.deployment(replicas=count)
    chat = planned.deployment(
        replicas=count, strategy={"maxUnavailable": max_unavailable, "maxSurge": 1}, template={"serving": {"threads": 1}}, **more
    )
    name = name_of(chat)
    command = f"{message}. Try: kubectl get boards"
    surge = planned.replica(f"{name}-{count}", chat, name, slot=count, conditions=[said("Scheduled", "False", "NoBoardFits", command)])
    before = world(old, count)
    revisions = (*before["revisions"], planned.revision(name, chat, number=2, serving={"threads": 1}))
    return chat, {"revisions": revisions, "replicas": (*before["replicas"], surge), "stalled_seconds": 30.0}


def test_a_surge_that_no_board_can_hold_is_told_with_boards_bytes_and_the_field_to_change() -> None:
    chat, rollout = surging()
    found = plan(chat, **rollout)
    progressing, ready = told(found)["Progressing"], told(found)["Ready"]
    assert (progressing.status, progressing.reason) == (ready.status, ready.reason) == ("False", "SurgeImpossible")
    assert (
        progressing.message
        == ready.message
        == (
            f"0 of 1 replicas run revision {name_of(chat)}; waits for room for surge replica {name_of(chat)}-1, because maxUnavailable is"
            f" 0, so none may stop before it serves: {NO_ROOM}. Try: kubectl patch modeldeployment chat -n default --type merge"
            ' -p \'{"spec":{"strategy":{"maxUnavailable":1}}}\''
        )
    )
    assert told(found)["Available"].status == "True"
    assert "SurgeImpossible" in events(found)
    assert not found.structural


def test_a_percentage_that_comes_out_as_0_is_told_as_such() -> None:
    chat, rollout = surging(3, max_unavailable="10%")
    assert "maxUnavailable is 0 (10% of 3, rounded down), so" in told(plan(chat, **rollout))["Progressing"].message


def test_a_surge_is_impossible_only_when_placement_has_had_time_to_look_again() -> None:
    """What it said last may be about a replica that has just gone, and `rollout status` gives up at this word."""
    chat, rollout = surging()
    found = plan(chat, **{**rollout, "stalled_seconds": 1.0})
    assert (told(found)["Progressing"].status, told(found)["Progressing"].reason) == ("True", "RollingOut")
    assert found.again_after_seconds == 4.0


def test_a_surge_is_not_impossible_while_another_one_is_on_its_way_or_an_old_one_drains() -> None:
    chat, rollout = surging(3)
    loading = planned.replica(f"{name_of(chat)}-8", chat, name_of(chat), slot=8, board="b8", conditions=[said("Scheduled")])
    drains = planned.replica("chat-old-9", chat, "chat-old", slot=9, board="b9", activation="Draining")
    for other in (loading, drains):
        found = plan(chat, **{**rollout, "replicas": (*rollout["replicas"], other)})
        assert (told(found)["Progressing"].status, told(found)["Progressing"].reason) == ("True", "RollingOut")


def test_where_replicas_may_be_missing_no_surge_is_needed() -> None:
    chat, rollout = surging(max_unavailable=1)
    found = plan(chat, **rollout)
    assert told(found)["Progressing"].reason == "RollingOut"
    assert [one.spec.activation for one in found.actions if isinstance(one, CreateReplica)] == ["Staged"]


def test_a_sentence_about_thousands_of_boards_is_cut() -> None:
    chat, rollout = surging(message=NO_ROOM + "".join(f", board-{number:04} (0 of 15Gi free)" for number in range(900)))
    message = told(plan(chat, **rollout))["Ready"].message
    assert len(message) < 3000
    assert "free) and others. Try: kubectl patch modeldeployment" in message


def test_the_first_rollout_has_a_deadline_too_and_recovers_by_itself() -> None:
    chat = planned.deployment(replicas=1, progressDeadlineSeconds=60)
    name = name_of(chat)
    waiting = planned.replica(f"{name}-0", chat, name, conditions=[said("Scheduled", "False", "NoBoardFits", NO_ROOM)])
    revisions = (planned.revision(name, chat),)
    stuck = told(plan(chat, revisions=revisions, replicas=(waiting,), stalled_seconds=60.0))["Progressing"]
    assert (stuck.status, stuck.reason) == ("False", "ProgressDeadlineExceeded")
    assert stuck.message.endswith(NO_ROOM)
    status = {"conditions": [msgspec.to_builtins(stuck)]}
    moves = told(plan(planned.deployment(replicas=1, progressDeadlineSeconds=60, status=status), revisions=revisions, replicas=(waiting,)))
    assert (moves["Progressing"].status, moves["Progressing"].reason) == ("True", "RollingOut")


def test_when_a_rollout_moved_last_is_stored_for_the_next_controller() -> None:
    chat = planned.deployment(replicas=1)
    assert fields(plan(chat, **world(chat, 1, ready=0), stalled_seconds=20.0))["lastProgressTime"] == seconds_ago(20)
    later = planned.deployment(replicas=1, status={"lastProgressTime": seconds_ago(40)})
    assert fields(plan(later, **world(later, 1, ready=0)))["lastProgressTime"] == seconds_ago(40), "less than a tenth of the deadline"
    assert fields(plan(later, **world(later, 1)))["lastProgressTime"] == seconds_ago(40), "complete: nothing moves any more"


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
