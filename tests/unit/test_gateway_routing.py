"""The routing rules of the gateway, as pure functions."""

from __future__ import annotations

from gateway.routing import Target, choose, plan_table
from rkfleet.conditions import condition
from rkfleet.kinds import Board, ModelDeployment, Replica
from rkfleet.kinds.deployment import ModelDeploymentSpec, Template
from rkfleet.kinds.replica import Activation, ReplicaSpec, ReplicaStatus
from rkfleet.meta import ObjectMeta


def a_deployment(name: str, created: str, served: str = "") -> ModelDeployment:
    spec = ModelDeploymentSpec(template=Template(model="m"), served_model_name=served)
    meta = ObjectMeta(name=name, namespace="default", uid=f"uid-{name}", creation_timestamp=created)
    return ModelDeployment(metadata=meta, spec=spec)


def a_replica(name: str, deployment: str, *, ready: bool = True, activation: Activation = "Serving", board: str = "b1") -> Replica:
    spec = ReplicaSpec(deployment_name=deployment, revision_name="r", slot="0", board_name=board, variant_name="v", activation=activation)
    status = ReplicaStatus(endpoint=f"https://10.0.0.1/{name}", conditions=(condition("Ready", "True" if ready else "False", "Serving"),))
    return Replica(metadata=ObjectMeta(name=name, namespace="default", uid=f"uid-{name}"), spec=spec, status=status)


BOARDS = {"b1": Board(metadata=ObjectMeta(name="b1"))}


def test_only_ready_serving_replicas_on_known_boards_are_asked() -> None:
    """A replica that is staged, draining, not ready or on a board that is gone gets no request."""
    replicas = [
        a_replica("good", "d"),
        a_replica("loading", "d", ready=False),
        a_replica("draining", "d", activation="Draining"),
        a_replica("staged", "d", activation="Staged"),
        a_replica("orphan", "d", board="gone"),
    ]
    table = plan_table([a_deployment("d", "2026-01-01T00:00:00Z")], replicas, BOARDS, "f1", {})
    assert [target.replica for target in table.models["d"].targets] == ["default/good"]
    assert table.models["d"].targets[0].server_name == "b1.boards.f1"


def test_the_older_of_two_deployments_has_a_served_name() -> None:
    """Two claims of one name: the older deployment wins, whatever the order of the lists."""
    old = a_deployment("old", "2026-01-01T00:00:00Z", "chat")
    new = a_deployment("new", "2026-02-01T00:00:00Z", "chat")
    replicas = [a_replica("r-old", "old"), a_replica("r-new", "new")]
    for deployments in ([old, new], [new, old]):
        table = plan_table(deployments, replicas, BOARDS, "f1", {})
        assert table.models["chat"].deployment == "default/old"


def test_a_model_without_a_ready_replica_says_why_and_what_to_type() -> None:
    """The sentence that clients get names a command."""
    table = plan_table([a_deployment("d", "2026-01-01T00:00:00Z")], [], BOARDS, "f1", {})
    assert table.models["d"].targets == ()
    assert "Try: kubectl -n default describe modeldeployment d" in table.models["d"].why


def test_the_least_busy_replica_is_chosen_and_equals_take_turns() -> None:
    """Least outstanding first; what was tried is not tried again."""
    targets = [Target(uid, uid, "b", "v", "u", "n") for uid in ("a", "b", "c")]
    first = choose(targets, {"a": 2, "b": 1, "c": 1}, frozenset(), 0)
    second = choose(targets, {"a": 2, "b": 1, "c": 1}, frozenset(), 1)
    assert {first.uid if first else "", second.uid if second else ""} == {"b", "c"}
    left = choose(targets, {}, frozenset({"b", "c"}), 7)
    assert left is not None
    assert left.uid == "a"
    assert choose(targets, {}, frozenset({"a", "b", "c"}), 0) is None
