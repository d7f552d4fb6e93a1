"""Why something is not running: over many states, the sentence names the root cause and the command helps with that."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rkfleet import explanation
from rkfleet.errors import NotFound
from rkfleet.explanation import Explanation
from rkfleet.kinds import Board, Model, ModelDeployment, Object, Replica
from rkfleet.kinds.board import TAINT_DRAIN
from rkfleet.world import World, find_named
from tests.support.planned import NOW, board, deployment, model, replica, revision, said, seconds_ago

Json = dict[str, Any]
PLACED = said("Scheduled", reason="Placed")


def world(*objects: Object) -> World:
    """A world of these objects."""

    def of(kind: type[Any]) -> Json:
        return {(one.metadata.namespace, one.metadata.name): one for one in objects if type(one).__name__ == kind.__name__}

    boards = {name: one for (_, name), one in of(Board).items()}
    revisions = {(one.metadata.namespace, one.metadata.name): one for one in objects if type(one).__name__ == "ModelRevision"}
    return World(now=NOW, boards=boards, models=of(Model), deployments=of(ModelDeployment), revisions=revisions, replicas=of(Replica))


def why(about: Object, *others: Object) -> Explanation:
    found = explanation.explain(about, world(about, *others))
    assert found.sentence.endswith(".")
    assert found.sentence.count(". ") == 0, "one sentence"
    assert ". Try:" not in found.sentence, "the command stands apart"
    assert found.command or found.verdict == "Well"
    return found


def rolled(
    reason: str = "ReplicasUnavailable", message: str = "", *, progressing: tuple[str, str] = ("True", "RolloutComplete"), **counts: Any
) -> Json:
    """The status of a deployment that is not Ready."""
    conditions = [said("Ready", "False", reason, message), said("Progressing", *progressing, message)]
    return {"observedGeneration": 1, "availableReplicas": 0, "updateRevision": "chat-1", "conditions": conditions, **counts}


READY: Json = {
    "observedGeneration": 1,
    "availableReplicas": 2,
    "currentRevision": "chat-1",
    "updateRevision": "chat-1",
    "conditions": [said("Ready", reason="RolloutComplete"), said("Progressing", reason="RolloutComplete")],
}


def waiting(name: str, owner: ModelDeployment, message: str = "No board of 1 can take the replica: b is full") -> Replica:
    """A replica that no board can take."""
    told = said("Scheduled", "False", "NoBoardFits", f"{message}. Try: kubectl get boards -o wide")
    return replica(name, owner, "chat-1", conditions=[told])


def on(name: str, owner: ModelDeployment, *conditions: Json, board: str = "b", status: Json | None = None) -> Replica:
    """A replica on a board, with these conditions besides Scheduled."""
    made = replica(name, owner, "chat-1", board=board, conditions=[PLACED, *conditions])
    merged = {**msgspec.to_builtins(made.status), **(status or {})}
    return msgspec.structs.replace(made, status=msgspec.convert(merged, type(made.status)))


# ---- Well ----------------------------------------------------------------------------------------------------------------------


def test_a_deployment_that_is_as_declared_says_where_it_serves() -> None:
    chat = deployment(status=READY)
    found = why(
        chat, replica("r-0", chat, "chat-1", board="a"), replica("r-1", chat, "chat-1", board="b"), board("a"), board("b", simulated=True)
    )
    assert found.verdict == "Well"
    assert found.sentence == "Deployment chat is as declared: 2 of 2 replicas serve on board a, board b (simulated)."


def test_a_deployment_scaled_to_zero_is_well_and_says_how_to_come_back() -> None:
    conditions = [said("Ready", reason="ScaledToZero"), said("Progressing", reason="RolloutComplete")]
    found = why(deployment(replicas=0, status={"observedGeneration": 1, "conditions": conditions}))
    assert (found.verdict, found.command) == ("Well", "rkfleet scale modeldeployment/chat --replicas 1 -n default")


def test_a_paused_deployment_on_which_nothing_waits_is_well() -> None:
    found = why(deployment(paused=True, status=READY))
    assert found.verdict == "Well"
    assert "it is paused (spec.paused)" in found.sentence


def test_a_replica_that_serves_says_its_speed() -> None:
    chat = deployment()
    made = on("r-0", chat, said("Ready", reason="Serving"), status={"measured": {"decodeTokensPerSecond": 16}})
    assert why(made, chat, board("b")).sentence == "Replica r-0 on board b serves, 16 tokens/s."


def test_a_model_whose_files_are_there_is_well() -> None:
    made = msgspec.convert(
        {
            **msgspec.to_builtins(model()),
            "status": {"conditions": [said("Ready", reason="ArtifactsPresent", message="All files of 1 variants are in the registry.")]},
        },
        Model,
    )
    assert why(made).sentence == "Model qwen can be used: all files of 1 variants are in the registry."


# ---- Deployments ---------------------------------------------------------------------------------------------------------------


def test_a_missing_model_is_named_with_the_nearest_name_that_exists() -> None:
    message = "Model default/qwenn of spec.template.model does not exist. Try: kubectl get models -n default"
    chat = deployment(model="qwenn", status=rolled("ModelNotFound", message, progressing=("False", "ModelNotFound")))
    found = why(chat, model("qwen"))
    assert found.verdict == "NeedsHelp"
    assert "model default/qwenn of spec.template.model does not exist (there is qwen)" in found.sentence
    assert found.command == "kubectl get models -n default"


def test_a_template_that_was_broken_by_a_change_is_taken_back_with_undo() -> None:
    message = "spec.template.variants names w4, and Model qwen has q4. Try: kubectl edit modeldeployment chat -n default"
    status = rolled("VariantNotFound", message, progressing=("False", "VariantNotFound"), currentRevision="chat-1")
    found = why(deployment(template={"variants": ["w4"]}, status=status), model("qwen"))
    assert "names w4, and Model qwen has q4" in found.sentence
    assert found.command == "rkfleet rollout undo chat -n default"


def test_what_has_just_come_is_no_reason_to_call_somebody() -> None:
    chat = deployment(status=rolled("ModelNotFound", "Model default/qwen does not exist", progressing=("False", "ModelNotFound")))
    assert why(chat, model("qwen")).verdict == "Working"


def test_a_name_that_an_older_deployment_has_is_the_reason() -> None:
    why_not = "The model name chat belongs to ModelDeployment other/chat, which is older, so gateways do not route to this one"
    message = f"{why_not}. Try: kubectl patch X"
    found = why(deployment(status=rolled("ServedNameTaken", message)))
    assert found.verdict == "NeedsHelp"
    assert found.sentence == (
        "Deployment chat gets no requests: the model name chat belongs to ModelDeployment other/chat, which is older, so gateways do not"
        " route to this one."
    )
    assert found.command == "kubectl patch X"


def test_a_paused_deployment_with_a_new_template_waits_for_resume() -> None:
    chat = deployment(paused=True, status=rolled("DeploymentPaused", "paused", progressing=("Unknown", "DeploymentPaused")))
    found = why(chat, on("r-0", chat, said("Ready", reason="Serving")), board("b"))
    assert (found.verdict, found.command) == ("NeedsHelp", "rkfleet rollout resume chat -n default")


def test_a_surge_that_no_board_can_hold_has_the_planners_sentence_and_command() -> None:
    message = "1 of 2 replicas run revision r; waits for room for one more replica, because maxUnavailable is 0. Try: kubectl patch Y"
    for status in ("True", "False"):
        found = why(deployment(status=rolled("SurgeImpossible", message, progressing=(status, "SurgeImpossible"))))
        assert found.verdict == "NeedsHelp"
        assert "waits for room for one more replica, because maxUnavailable is 0" in found.sentence
        assert found.command == "kubectl patch Y"


def test_a_stuck_rollout_leads_to_what_it_is_stuck_on() -> None:
    chat = deployment(status=rolled("ProgressDeadlineExceeded", "nothing moved", progressing=("False", "ProgressDeadlineExceeded")))
    found = why(chat, on("r-0", chat, said("ArtifactAvailable", "False", "Fetching")), board("b"), model())
    assert found.verdict == "NeedsHelp"
    assert "has not moved for 600 s (spec.progressDeadlineSeconds), because replica r-0 on board b is fetching" in found.sentence


def test_the_controller_that_has_not_looked_yet_is_waited_for() -> None:
    found = why(deployment(generation=3, status={**READY, "observedGeneration": 2}))
    assert (found.verdict, found.command) == ("Working", "rkfleet rollout status chat -n default")


def test_a_deployment_without_replicas_yet_is_on_its_way() -> None:
    found = why(deployment(status=rolled("RollingOut", progressing=("True", "RollingOut"))))
    assert found.verdict == "Working"
    assert "not made yet" in found.sentence


def test_the_worst_of_many_replicas_speaks_for_the_deployment() -> None:
    """One that gets there by itself never hides one that needs help."""
    chat = deployment(status=rolled())
    fetching = on("r-0", chat, said("ArtifactAvailable", "False", "Fetching"))
    broken = on("r-1", chat, said("Loaded", "False", "RuntimeMissing", "The board has no runtime rkllm. Try: kubectl get board b -o yaml"))
    found = why(chat, fetching, broken, board("b"), model())
    assert (
        found.sentence == "Deployment chat has 0 of 2 replicas available, because replica r-1 on board b: the board has no runtime rkllm."
    )
    assert found.command == "kubectl get board b -o yaml"


def test_a_deployment_that_is_being_deleted_says_so() -> None:
    assert why(deployment(deletionTimestamp="2026-01-01T00:00:00Z", status=READY)).verdict == "Working"


# ---- Replicas without a board --------------------------------------------------------------------------------------------------


def parts(chat: ModelDeployment) -> tuple[Object, ...]:
    return (revision("chat-1", chat), model())


def test_no_board_at_all_has_placements_command() -> None:
    chat = deployment(status=rolled())
    told = said("Scheduled", "False", "NoBoards", "The fleet has no board. Try: rkfleet join-token create")
    found = why(chat, replica("r-0", chat, "chat-1", conditions=[told]), *parts(chat))
    assert found.sentence == "Deployment chat has 0 of 2 replicas available, because replica r-0 has no board: the fleet has no board."
    assert found.command == "rkfleet join-token create"


def test_a_board_that_never_fits_is_no_root_cause() -> None:
    """A cordoned board of another chip would not help if it were uncordoned."""
    chat = deployment(status=rolled())
    others = (revision("chat-1", chat), model("qwen", variant_of("rk3588", "rkllm")))
    found = why(chat, waiting("r-0", chat), board("b", spec={"unschedulable": True}), *others)
    assert found.command == "kubectl get boards -o wide"
    assert "no board of 1 can take the replica: b is full" in found.sentence


def test_a_cordoned_board_without_the_runtime_version_that_is_asked_for_is_no_root_cause() -> None:
    """Uncordoning it would not help."""
    chat = deployment(status=rolled())
    asked = (revision("chat-1", chat, serving={"runtimeVersion": ">=99"}), model())
    found = why(chat, waiting("r-0", chat), board("b", spec={"unschedulable": True}), *asked)
    assert found.command == "kubectl get boards -o wide"


def variant_of(soc: str, runtime: str) -> Json:
    from tests.support.planned import variant

    return variant(soc=soc, runtime=runtime)


def test_a_cordoned_board_that_could_run_it_is_the_root_cause() -> None:
    chat = deployment(status=rolled())
    found = why(chat, waiting("r-0", chat), board("b", spec={"unschedulable": True}), *parts(chat))
    assert found.sentence == (
        "Deployment chat has 0 of 2 replicas available, because replica r-0 has no board: board b, which could run it, was cordoned."
    )
    assert found.command == "rkfleet board uncordon b"
    assert [cause.kind for cause in found.causes] == ["ModelDeployment", "Replica", "Board"]


def test_a_lost_board_that_could_run_it_is_the_root_cause() -> None:
    chat = deployment(status=rolled())
    lost = board("b", conditions=[said("Ready", "False", "BoardLost", since=seconds_ago(180))])
    found = why(chat, waiting("r-0", chat), lost, *parts(chat))
    assert found.sentence.endswith("because replica r-0 has no board: board b has been lost for 3m: it has no session.")
    assert found.command == "on the board: systemctl status rkfleet-agent"


def test_boards_that_are_only_full_are_looked_at_with_top() -> None:
    chat = deployment(status=rolled())
    message = "No board of 1 can take the replica: less memory free than the 1Gi of variant q4: b (has 0 of 4Gi)"
    found = why(chat, waiting("r-0", chat, message), board("b"), *parts(chat))
    assert (found.verdict, found.command) == ("NeedsHelp", "rkfleet top boards")


def test_a_reason_that_names_thousands_of_boards_is_cut() -> None:
    chat = deployment(status=rolled())
    names = ", ".join(f"board-{number}" for number in range(1000))
    found = why(chat, waiting("r-0", chat, f"No board of 1000 can take the replica: being deleted: {names}"), *parts(chat))
    assert found.sentence.endswith(" and others.")
    assert len(found.sentence) < 1000


def test_a_replica_that_placement_has_not_seen_is_on_its_way() -> None:
    chat = deployment()
    assert why(replica("r-0", chat, "chat-1"), chat).verdict == "Working"


# ---- Replicas on a board -------------------------------------------------------------------------------------------------------


def test_a_crash_loop_says_how_the_worker_ended() -> None:
    chat = deployment(status=rolled())
    told = said("Loaded", "False", "CrashLoopBackOff", "it starts again in 20 s. Try: rkfleet logs r-0 -n default")
    status = {"restarts": 4, "lastExit": {"reason": "OutOfMemory", "message": "the kernel ended it for memory.", "time": ""}}
    found = why(chat, on("r-0", chat, told, status=status), board("b"), model())
    assert found.sentence == (
        "Deployment chat has 0 of 2 replicas available, because the worker of replica r-0 on board b ended although it should run"
        " (OutOfMemory: the kernel ended it for memory), 4 restarts so far."
    )
    assert found.command == "rkfleet logs r-0 -n default"


def test_a_model_that_the_runtime_refuses_has_the_runtimes_words() -> None:
    chat = deployment()
    status = {"lastExit": {"reason": "LoadFailed", "message": "invalid magic", "time": ""}}
    found = why(on("r-0", chat, said("Loaded", "False", "LoadFailed", "try again in 5 s"), status=status), chat, board("b"), model())
    assert found.verdict == "NeedsHelp"
    assert "could not load the model (LoadFailed: invalid magic)" in found.sentence


def test_a_known_failure_of_the_npu_is_told_with_its_values_and_its_remedy() -> None:
    """One command from "it does not run" to what to change."""
    sentence = "the worker ended (LoadFailed: contextTokens 16384 is more than the 4096 that the model file was converted for)"
    message = f"{sentence} and starts again after a pause. Try: set spec.template.serving.contextTokens to 4096 or less"
    chat = deployment()
    found = why(on("r-0", chat, said("Loaded", "False", "ContextAboveModelLimit", message)), chat, board("b"), model())
    assert "16384 is more than the 4096" in found.sentence
    assert found.command == "set spec.template.serving.contextTokens to 4096 or less"


def test_a_full_disk_of_the_board_is_said_with_df() -> None:
    chat = deployment()
    told = said("ArtifactAvailable", "False", "DiskFull", "1.5Gi are needed and 200Mi are free")
    found = why(on("r-0", chat, told), chat, board("b"), model())
    assert (found.verdict, found.command) == ("NeedsHelp", "on the board: df -h")
    assert "1.5Gi are needed and 200Mi are free" in found.sentence


def missing_model() -> Model:
    told = said("Ready", "False", "ArtifactMissing", "1 of 1 files are not in the registry: m. Try: rkfleet model push FILE --name qwen")
    return msgspec.convert({**msgspec.to_builtins(model()), "status": {"conditions": [told]}}, Model)


def test_files_that_are_not_in_the_registry_are_the_root_cause_of_a_fetch() -> None:
    chat = deployment(status=rolled())
    found = why(chat, on("r-0", chat, said("ArtifactAvailable", "False", "FetchFailed", "404")), board("b"), missing_model())
    assert found.verdict == "NeedsHelp"
    assert found.command == "rkfleet model push FILE --name qwen"
    assert found.causes[-1].kind == "Model"


def test_a_fetch_on_its_way_says_how_far_it_is() -> None:
    chat = deployment()
    status = {"progress": {"fetchedBytes": 300, "totalBytes": 1000}}
    found = why(on("r-0", chat, said("ArtifactAvailable", "False", "Fetching", "..."), status=status), chat, board("b"))
    assert (found.verdict, found.sentence) == ("Working", "Replica r-0 on board b is fetching its files, 30% are there.")


def test_a_fetch_that_failed_for_another_reason_has_the_agents_sentence() -> None:
    chat = deployment()
    told = said("ArtifactAvailable", "False", "FetchFailed", "The registry refused the token. Try: kubectl get events")
    found = why(on("r-0", chat, told), chat, board("b"), model())
    assert (found.verdict, found.command) == ("NeedsHelp", "kubectl get events")


@pytest.mark.parametrize("reason", ["Staged", "Loading", "WaitingForPredecessor"])
def test_steps_of_a_rollout_need_nobody(reason: str) -> None:
    chat = deployment()
    made = on("r-0", chat, said("ArtifactAvailable"), said("Loaded", "False", reason, "The worker is loading"))
    assert why(made, chat, board("b")).verdict == "Working"


def test_a_replica_on_a_lost_board_follows_the_board() -> None:
    chat = deployment(status=rolled())
    lost = board("b", simulated=True, conditions=[said("Ready", "False", "BoardLost", since=seconds_ago(300))])
    found = why(chat, on("r-0", chat, said("Ready", "Unknown", "BoardLost")), lost)
    assert found.sentence.endswith(
        "because nothing is known of replica r-0 on board b (simulated): board b (simulated) has been lost for 5m: it has no session."
    )


def test_a_replica_on_a_board_that_is_expected_back_waits() -> None:
    chat = deployment()
    away = board("b", conditions=[said("Ready", "Unknown", "AwaitingReconnect", since=seconds_ago(20))])
    found = why(on("r-0", chat, said("Ready", "Unknown", "AwaitingReconnect")), chat, away)
    assert (found.verdict, found.command) == ("Working", "rkfleet events --for board/b")


def test_a_board_that_refused_its_assignment_is_the_root_cause() -> None:
    chat = deployment()
    refuses = board("b", assignment={"number": 5, "acceptedNumber": 4, "message": "ledger: no space left on device."})
    found = why(on("r-0", chat), chat, refuses)
    assert found.verdict == "NeedsHelp"
    assert "board b refused what it should run: ledger: no space left on device" in found.sentence


def test_a_board_that_has_not_answered_yet_is_waited_for() -> None:
    chat = deployment()
    found = why(on("r-0", chat), chat, board("b", assignment={"number": 5, "acceptedNumber": 4}))
    assert (found.verdict, found.sentence) == ("Working", "Replica r-0 on board b waits for the board to answer with its assignment 5.")


def test_a_replica_of_a_board_that_is_gone_is_replaced() -> None:
    chat = deployment()
    assert why(on("r-0", chat, said("Ready", "Unknown", "BoardLost")), chat).verdict == "Working"


# ---- Boards --------------------------------------------------------------------------------------------------------------------


def test_a_board_that_enrolled_and_never_came_is_started_by_somebody() -> None:
    for conditions in ([said("Ready", "Unknown", "NeverConnected")], []):
        found = why(board("b", conditions=conditions))
        assert (found.verdict, found.command) == ("NeedsHelp", "on the board: systemctl status rkfleet-agent")
        assert "never opened a session" in found.sentence


@pytest.mark.parametrize(
    ("type", "reason", "command"),
    [("DiskPressure", "DiskFull", "on the board: df -h"), ("MemoryPressure", "LowMemory", "rkfleet top boards")],
)
def test_a_board_under_pressure_says_which(type: str, reason: str, command: str) -> None:
    found = why(board("b", conditions=[said("Ready"), said(type, "True", reason, "Less than 32Mi are free")]))
    assert (found.verdict, found.command) == ("NeedsHelp", command)
    assert f"under {type}: less than 32Mi are free" in found.sentence


def test_a_board_that_cannot_use_its_npu_says_why_and_is_the_root_cause_of_what_needs_it() -> None:
    """A replica that waits for memory is not told about the NPU."""
    broken = board("b", conditions=[said("Ready"), said("NPUReady", "False", "NodeMissing", "The node is gone. Try: ls /dev/dri")])
    found = why(broken)
    assert (found.verdict, found.command) == ("NeedsHelp", "ls /dev/dri")
    assert found.sentence == "Board b cannot use its NPU: the node is gone."
    chat = deployment(status=rolled())
    message = "No board of 1 can take the replica: NPU is not ready (NodeMissing), which variant npu needs: b"
    assert "board b cannot use its NPU" in why(chat, waiting("r-0", chat, message), broken, *parts(chat)).sentence
    message = "No board of 1 can take the replica: less memory free than the 1Gi of variant q4: b (has 0 of 4Gi)"
    assert "NPU" not in why(chat, waiting("r-0", chat, message), broken, *parts(chat)).sentence


@pytest.mark.parametrize(("type", "reason"), [("IdentityConflict", "OtherMachine"), ("LedgerDamaged", "LedgerUnreadable")])
def test_a_board_that_somebody_must_look_at_says_why_with_the_command_of_its_condition(type: str, reason: str) -> None:
    found = why(
        board("b", conditions=[said("Ready"), said(type, "True", reason, "The certificate was used. Try: kubectl annotate board b x-")])
    )
    assert (found.verdict, found.command) == ("NeedsHelp", "kubectl annotate board b x-")
    assert f"has {type}: the certificate was used" in found.sentence


DRAIN: Json = {"unschedulable": True, "taints": [{"key": TAINT_DRAIN, "effect": "NoExecute"}]}


def test_a_cordoned_board_is_well_and_says_the_way_back() -> None:
    found = why(board("b", spec={"unschedulable": True}))
    assert (found.verdict, found.command) == ("Well", "rkfleet board uncordon b")


def test_an_empty_board_is_drained() -> None:
    found = why(board("b", spec=DRAIN))
    assert (found.verdict, found.sentence) == ("Well", "Board b is drained: nothing runs there.")


def test_a_drain_that_moves_needs_nobody() -> None:
    chat = deployment(status=rolled("RollingOut", progressing=("True", "RollingOut")))
    leaving = on("r-0", chat, said("Ready", reason="Serving"))
    coming = on("r-1", chat, said("ArtifactAvailable"), said("Loaded", "False", "Loading", "Loading"), board="c")
    found = why(board("b", spec=DRAIN), chat, leaving, coming, board("c"), *parts(chat))
    assert found.verdict == "Working"
    assert found.sentence.startswith("Board b is being drained and still has default/r-0, because deployment chat has 0 of 2")


def test_a_drain_with_nowhere_to_go_says_so_and_how_to_end_it() -> None:
    """The deployment is well as long as the replica serves where it is; its successor that finds no board is what is wrong."""
    chat = deployment(status=READY)
    found = why(board("b", spec=DRAIN), chat, on("r-0", chat, said("Ready", reason="Serving")), waiting("r-1", chat), *parts(chat))
    assert found.verdict == "NeedsHelp"
    assert "because deployment chat is not as declared: " in found.sentence
    assert found.sentence.endswith("replica r-1 has no board: board b, which could run it, was cordoned to drain it.")
    assert found.command == "rkfleet board uncordon b"


def test_a_worker_that_no_replica_asks_for_any_more_keeps_a_board_from_being_empty() -> None:
    running = [{"replica": "default/old", "uid": "u", "memory": "1Gi"}]
    assert "still has default/old" in why(board("b", spec=DRAIN, running=running)).sentence
    lost = board("b", spec=DRAIN, running=running, ready=False)
    assert world(lost).left_on(lost) == [], "what a lost board reported says nothing about now"


# ---- Models --------------------------------------------------------------------------------------------------------------------


def test_a_model_without_its_files_says_how_to_push_them() -> None:
    found = why(missing_model())
    assert (found.verdict, found.command) == ("NeedsHelp", "rkfleet model push FILE --name qwen")


def test_a_registry_that_cannot_be_asked_needs_help() -> None:
    told = said("Ready", "Unknown", "RegistryUnavailable", "The registry cannot be asked: refused. Try: curl -k X")
    found = why(msgspec.convert({**msgspec.to_builtins(model()), "status": {"conditions": [told]}}, Model))
    assert (found.verdict, found.command) == ("NeedsHelp", "curl -k X")


def test_a_model_that_nobody_has_looked_at_is_on_its_way() -> None:
    assert why(model()).verdict == "Working"


# ---- Names ---------------------------------------------------------------------------------------------------------------------


def test_a_bare_name_is_a_deployment_before_it_is_a_model() -> None:
    chat, same = deployment("qwen"), model("qwen")
    assert find_named(world(chat, same), "default", "qwen") is chat
    assert find_named(world(same), "default", "qwen") is same
    assert find_named(world(board("rk-1")), "default", "rk-1").metadata.name == "rk-1"


def test_a_name_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(NotFound, match=r"is named 'chatt' in namespace 'default'; there is modeldeployment/chat$"):
        find_named(world(deployment("chat"), board("rk3588-1")), "default", "chatt")
    with pytest.raises(NotFound, match="there is none yet"):
        find_named(world(), "default", "chat")


def test_a_replica_that_serves_says_what_its_model_is_not_and_what_has_no_effect() -> None:
    """Well all the same: it takes requests."""
    chat = deployment()
    asleep = on("r", chat, said("ArtifactAvailable"), said("Loaded", "False", "Unloaded", "qwen is not in memory"), said("Ready"))
    found = why(asleep, board("b"))
    assert (found.verdict, found.sentence) == ("Well", "Replica r on board b serves; qwen is not in memory.")
    noted = on(
        "r", chat, said("ArtifactAvailable"), said("Loaded", "True", "ModelLoaded", "serving.cpus has no effect. Try: x"), said("Ready")
    )
    assert why(noted, board("b")).sentence == "Replica r on board b serves; serving.cpus has no effect."
