"""Where replicas go, and what is said of those that go nowhere."""

from __future__ import annotations

import pytest

from controller.planning.actions import Bind, Record, WriteStatus
from controller.planning.feasibility import Reservation, reserved_bytes, tolerates
from controller.planning.placement import BINDINGS_MAX, Fleet, plan_placement
from rkfleet import conditions
from rkfleet.kinds import Board, Model, ModelDeployment, Replica
from rkfleet.kinds.board import Taint, Toleration
from tests.support import planned
from tests.support.planned import board, said, variant


def fleet(
    boards: list[Board], replicas: list[Replica], *, models: tuple[Model, ...] = (), owner: ModelDeployment | None = None,
    **template: object,
) -> Fleet:  # fmt: skip
    owner = owner or planned.deployment()
    revision = planned.revision("chat-1", owner, **template)
    return Fleet(
        boards=tuple(boards),
        replicas=tuple(replicas),
        deployments={("default", "chat"): owner},
        revisions={("default", "chat-1"): revision},
        models={("default", one.metadata.name): one for one in models or (planned.model(),)},
    )


def waiter(slot: int = 0, **more: object) -> Replica:
    return planned.replica(f"chat-1-{slot}", planned.deployment(), "chat-1", slot=slot, **more)  # type: ignore[arg-type]


def placed(board: str, slot: int = 9, **more: object) -> Replica:
    return planned.replica(f"chat-1-{slot}", planned.deployment(), "chat-1", slot=slot, board=board, **more)  # type: ignore[arg-type]


def bindings(world: Fleet) -> dict[str, tuple[str, str]]:
    return {action.ref.name: (action.board, action.variant) for action in plan_placement(world).actions if isinstance(action, Bind)}


def why_not(world: Fleet) -> str:
    plan = plan_placement(world)
    assert not any(isinstance(action, Bind) for action in plan.actions)
    (written,) = [action for action in plan.actions if isinstance(action, WriteStatus)]
    (condition,) = written.conditions
    assert (condition.type, condition.status) == (conditions.SCHEDULED, "False")
    return condition.message


def test_replicas_of_one_deployment_are_spread_over_boards() -> None:
    found = bindings(fleet([board("a"), board("b"), board("c")], [waiter(0), waiter(1), waiter(2)]))
    assert sorted(name for name, _ in found.values()) == ["a", "b", "c"]


def test_the_least_loaded_board_is_taken() -> None:
    other = planned.replica("other-1-0", planned.deployment("other"), "chat-1", board="a")
    assert bindings(fleet([board("a"), board("b")], [other, waiter()]))["chat-1-0"] == ("b", "q4")


def test_the_preferred_variant_is_worth_more_than_an_empty_board() -> None:
    model = planned.model("qwen", variant("npu", soc="rk3588", runtime="rkllm"), variant("cpu"))
    npu = board("npu", soc="rk3588", runtimes=[{"name": "rkllm", "version": "1.1.4"}, {"name": "llamacpp", "version": "1.2"}])
    world = fleet([board("cpu", memory="16Gi"), npu], [waiter()], models=(model,))
    assert bindings(world) == {"chat-1-0": ("npu", "npu")}
    assert bindings(fleet([board("cpu"), npu], [waiter()], models=(model,), variants=["cpu"])) == {"chat-1-0": ("cpu", "cpu")}


def test_replicas_spread_over_chips_unless_the_template_states_an_order() -> None:
    """The Model's order says which variant suits a board, not which chip is to be filled first."""
    model = planned.model("qwen", variant("big", soc="rk3588", runtime="rkllm"), variant("small", soc="rk3576", runtime="rkllm"))
    runtimes = [{"name": "rkllm", "version": "1.1.4"}]
    boards = [board("a", soc="rk3588", memory="16Gi", runtimes=runtimes), board("b", soc="rk3576", runtimes=runtimes)]
    waiting = [waiter(0), waiter(1)]
    assert bindings(fleet(boards, waiting, models=(model,))) == {"chat-1-0": ("a", "big"), "chat-1-1": ("b", "small")}
    stated = fleet(boards, waiting, models=(model,), variants=["big", "small"])
    assert bindings(stated) == {"chat-1-0": ("a", "big"), "chat-1-1": ("a", "big")}


def test_one_plan_never_gives_memory_away_twice() -> None:
    found = plan_placement(fleet([board("a", memory="2Gi")], [waiter(0), waiter(1), waiter(2)]))
    assert [action.ref.name for action in found.actions if isinstance(action, Bind)] == ["chat-1-0", "chat-1-1"]


def test_a_worker_that_still_runs_holds_its_memory_though_its_replica_is_gone() -> None:
    busy = board("a", memory="1Gi", running=[{"replica": "default/gone", "uid": "uid-gone", "memory": "600Mi"}])
    assert "variant q4 needs 1Gi of memory: a (424Mi of 1Gi free)" in why_not(fleet([busy], [waiter()]))


def test_a_successor_shares_the_memory_of_the_one_it_replaces_and_takes_its_board() -> None:
    old = placed("b", memory="2Gi")
    boards = [board("a", memory="2Gi"), board("b", memory="1Gi")]
    successor = waiter(0, activation="Staged", replaces=old.metadata.uid)
    assert bindings(fleet(boards, [old, successor])) == {"chat-1-0": ("b", "q4")}


def test_a_successor_goes_elsewhere_when_its_board_is_cordoned() -> None:
    old = placed("b")
    boards = [board("a"), board("b", spec={"unschedulable": True})]
    assert bindings(fleet(boards, [old, waiter(0, replaces=old.metadata.uid)])) == {"chat-1-0": ("a", "q4")}


def test_what_a_lagging_cache_does_not_know_fills_its_board() -> None:
    unknown = placed("a", variant="never-heard-of")
    assert bindings(fleet([board("a")], [unknown, waiter()])) == {}
    assert bindings(fleet([board("a")], [placed("a"), waiter()])) == {"chat-1-0": ("a", "q4")}


def test_an_unplaceable_replica_names_every_excluded_board_once_grouped_by_reason() -> None:
    model = planned.model("qwen", variant("q4", memory="3Gi", runtimeVersion=">=1.1,<1.4"))
    boards = [
        board("cordoned", spec={"unschedulable": True}), board("tainted", spec={"taints": [{"key": "maintenance"}]}),
        board("away", ready=False),
        board("small-1", memory="2Gi"), board("small-2", memory="1Gi"), board("bare", runtimes=[]),
        board("old", runtimes=[{"name": "llamacpp", "version": "1.0.9"}]),
    ]  # fmt: skip
    message = why_not(fleet(boards, [waiter()], models=(model,)))
    assert message == (
        "No board of 7 can take the replica:"
        " variant q4 needs 3Gi of memory: small-1 (2Gi of 2Gi free), small-2 (1Gi of 1Gi free);"
        " llamacpp is outside the >=1.1,<1.4 of variant q4: old (has 1.0.9);"
        " no runtime llamacpp, which variant q4 needs: bare;"
        " cordoned (spec.unschedulable): cordoned;"
        " no session (BoardLost): away;"
        " taint maintenance:NoSchedule is not tolerated: tainted."
        " Try: kubectl get boards -o wide; kubectl describe modeldeployment chat -n default"
    )


@pytest.mark.parametrize(
    ("asked", "have", "reason"),
    [
        (variant("q4", soc="rk3588"), {}, "no allowed variant is for the chip cpu: a"),
        (variant("q4", driverVersion=">=0.9.7"), {"versions": {"npuDriver": {"version": "0.9.2"}}},
         "NPU driver is outside the >=0.9.7 of variant q4: a (has 0.9.2)"),
        (variant("q4", npuCores=3), {"capacity": {"npuCores": 2}}, "fewer NPU cores than the 3 of variant q4: a (has 2)"),
        (variant("q4", contextTokens=512), {}, "serving.contextTokens 1024 is above the 512 of variant q4"),
        (variant("q4"), {"allocatable": {"memory": "4Gi", "storage": "999"}}, "too little storage"),
        (variant("q4"), {"conditions": [said("Ready"), said("DiskPressure")]}, "under DiskPressure: a"),
        (variant("q4"), {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "being deleted: a"),
    ],
)  # fmt: skip
def test_a_board_is_excluded_with_value_and_limit(asked: planned.Json, have: planned.Json, reason: str) -> None:
    assert reason in why_not(fleet([board("a", **have)], [waiter()], models=(planned.model("qwen", asked),)))


def test_nothing_that_needs_the_npu_goes_where_it_is_not_ready() -> None:
    """Another variant of the Model may go there; what is unknown, or not said, excludes nobody."""
    runtimes = [{"name": "rkllm", "version": "1.1.4"}, {"name": "llamacpp", "version": "1.2"}]
    shared = board(
        "shared", soc="rk3588", runtimes=runtimes, conditions=[said("Ready"), said("NPUReady", "False", "OtherNPUClient", "frigate has it")]
    )
    npu = variant("npu", soc="rk3588", runtime="rkllm")
    message = why_not(fleet([shared], [waiter()], models=(planned.model("qwen", npu),)))
    assert "NPU is not ready (OtherNPUClient), which variant npu needs: shared" in message
    both = fleet([shared], [waiter()], models=(planned.model("qwen", npu, variant("cpu")),))
    assert bindings(both) == {"chat-1-0": ("shared", "cpu")}
    for status in ("Unknown", "True"):
        other = board("a", soc="rk3588", runtimes=runtimes, conditions=[said("Ready"), said("NPUReady", status)])
        assert bindings(fleet([other], [waiter()], models=(planned.model("qwen", npu),))) == {"chat-1-0": ("a", "npu")}


def test_of_boards_that_fit_alike_the_cooler_one_is_taken() -> None:
    """Though less of its memory would be free; spreading comes first."""
    hot = board("hot", memory="16Gi", conditions=[said("Ready"), said("ThermalPressure")])
    assert bindings(fleet([hot, board("warm")], [waiter()])) == {"chat-1-0": ("warm", "q4")}
    assert bindings(fleet([hot, board("warm")], [placed("warm"), waiter()])) == {"chat-1-0": ("hot", "q4")}


def test_a_board_outside_of_the_selector_is_excluded() -> None:
    owner = planned.deployment(placement={"boardSelector": {"matchLabels": {"site": "lab"}}})
    world = fleet([board("a", labels={"site": "attic"}), board("b", labels={"site": "lab"})], [waiter()], owner=owner)
    assert bindings(world) == {"chat-1-0": ("b", "q4")}
    assert "not chosen by spec.placement.boardSelector (site=lab): a" in why_not(fleet([board("a")], [waiter()], owner=owner))


def test_a_message_about_thousands_of_boards_stays_within_a_condition() -> None:
    message = why_not(fleet([board(f"board-{number:04}", ready=False) for number in range(3000)], [waiter()]))
    assert len(message) < 32768
    assert "and others" in message


def test_without_boards_the_message_says_how_to_join_one() -> None:
    assert why_not(fleet([], [waiter()])) == "The fleet has no board. Try: rkfleet join-token create"


def test_nothing_is_written_twice() -> None:
    world = fleet([], [waiter()])
    (status, event) = plan_placement(world).actions
    assert isinstance(status, WriteStatus)
    assert isinstance(event, Record)
    told = [said("Scheduled", "False", status.conditions[0].reason, status.conditions[0].message)]
    assert plan_placement(fleet([], [waiter(conditions=told)])).actions == ()


def test_a_binding_without_its_condition_is_completed() -> None:
    write, told = plan_placement(fleet([board("a")], [placed("a", conditions=[])])).actions
    assert isinstance(write, WriteStatus)
    assert write.conditions[0].reason == conditions.PLACED
    assert isinstance(told, Record)


def test_one_plan_binds_a_bounded_number_and_asks_to_go_on() -> None:
    plan = plan_placement(fleet([board("a", memory="2000Gi")], [waiter(slot) for slot in range(BINDINGS_MAX + 1)]))
    assert [type(action) for action in plan.actions] == [Bind] * BINDINGS_MAX, "what is said of them waits, the boards do not"
    assert plan.again_after_seconds == 0.0


def test_a_chain_of_successors_holds_the_largest_of_its_needs() -> None:
    chain = {
        "a": Reservation(memory_bytes=5), "b": Reservation(memory_bytes=7, replaces="a"), "c": Reservation(memory_bytes=6, replaces="b"),
        "x": Reservation(memory_bytes=1, replaces="not here"),
    }  # fmt: skip
    assert reserved_bytes(chain) == 8


@pytest.mark.parametrize(
    ("toleration", "holds"),
    [
        ({"operator": "Exists"}, True), ({"key": "m", "value": "v"}, True), ({"key": "m", "operator": "Exists"}, True),
        ({"key": "m", "value": "w"}, False), ({"key": "n", "operator": "Exists"}, False), ({}, False),
        ({"key": "m", "value": "v", "effect": "NoSchedule"}, True),
    ],
)  # fmt: skip
def test_a_taint_is_tolerated_as_in_kubernetes(toleration: planned.Json, holds: bool) -> None:
    assert tolerates([Toleration(**toleration)], Taint(key="m", value="v")) == holds


def test_a_runtime_must_meet_what_the_template_and_what_the_variant_ask_for() -> None:
    """One installed version that meets both is enough; two that meet one each are not."""
    model = planned.model("qwen", variant("npu", soc="any", runtime="rkllm", runtimeVersion=">=1.2"))
    both = board("both", runtimes=[{"name": "rkllm", "version": "1.2.3"}, {"name": "rkllm", "version": "1.3.0"}])
    old = board("old", runtimes=[{"name": "rkllm", "version": "1.1.4"}, {"name": "rkllm", "version": "1.2.3"}])
    asked = {"serving": {"runtimeVersion": ">=1.3.0"}}
    assert bindings(fleet([old, both], [waiter()], models=(model,), **asked)) == {"chat-1-0": ("both", "npu")}
    assert "no rkllm meets serving.runtimeVersion >=1.3.0 and the >=1.2 of variant npu: old (has 1.1.4, 1.2.3)" in why_not(
        fleet([old], [waiter()], models=(model,), **asked)
    )
    apart = fleet([old], [waiter()], models=(model,), serving={"runtimeVersion": "<1.2"})
    assert "no rkllm meets serving.runtimeVersion <1.2" in why_not(apart)


def test_saved_prompts_count_against_storage() -> None:
    """Those of every replica of the board."""
    asked = {"serving": {"promptCache": "20Gi"}}
    assert "20Gi of serving.promptCache" in why_not(
        fleet([board("a", allocatable={"memory": "8Gi", "storage": "10Gi"})], [waiter()], **asked)
    )
    assert bindings(fleet([board("a", allocatable={"memory": "8Gi", "storage": "30Gi"})], [waiter()], **asked))
    assert not bindings(fleet([board("a", allocatable={"memory": "8Gi", "storage": "30Gi"})], [waiter(), placed("a")], **asked))


def test_of_replicas_that_load_on_demand_only_the_largest_holds_memory() -> None:
    """The board has one of them loaded at a time when more do not fit."""
    gi = 1 << 30
    held = {
        "eager": Reservation(memory_bytes=gi),
        "small": Reservation(memory_bytes=gi, on_demand=True),
        "large": Reservation(memory_bytes=3 * gi, on_demand=True),
        "next": Reservation(memory_bytes=4 * gi, on_demand=True, replaces="small"),
    }
    assert reserved_bytes(held) == 5 * gi
