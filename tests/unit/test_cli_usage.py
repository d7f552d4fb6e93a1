"""The figures of `rkfleet top`: memory as placement counts it, and speeds only where they were measured."""

from __future__ import annotations

from typing import Any

import msgspec

from rkfleet.cli import usage
from rkfleet.kinds import Board, Replica
from rkfleet.world import World
from tests.support.planned import NOW, board, deployment, model, replica, revision, said

MI = 2**20
CHAT = deployment()


def measured(made: Replica, **fields: Any) -> Replica:
    return msgspec.structs.replace(
        made, status=msgspec.convert({**msgspec.to_builtins(made.status), "measured": fields}, type(made.status))
    )


def only(one: Board, *replicas: Replica) -> usage.BoardUsage:
    revisions = {("default", name): revision(name, CHAT) for name in ("r1", "r2")}
    placed = {(each.metadata.namespace, each.metadata.name): each for each in replicas}
    world = World(now=NOW, boards={one.metadata.name: one}, models={("default", "qwen"): model()}, revisions=revisions, replicas=placed)
    return usage.boards(world)[0]


def test_a_placed_replica_holds_what_its_variant_requires_or_more_if_it_was_granted_more() -> None:
    a, b = replica("a", CHAT, "r1", board="b"), replica("b", CHAT, "r1", board="b")
    granted = board("b", running=[{"replica": "default/a", "uid": "uid-a", "memory": "2Gi"}])
    assert only(granted, a, b).reserved_bytes == 3 * 1024 * MI


def test_a_worker_that_nobody_asks_for_still_holds_its_memory() -> None:
    assert only(board("b", running=[{"replica": "default/old", "uid": "x", "memory": "512Mi"}])).reserved_bytes == 512 * MI


def test_a_successor_shares_the_memory_of_what_it_replaces() -> None:
    old, new = replica("a", CHAT, "r1", board="b"), replica("b", CHAT, "r2", board="b", replaces="uid-a", activation="Staged")
    assert only(board("b"), old, new).reserved_bytes == 1024 * MI
    assert only(board("b"), new).reserved_bytes == 1024 * MI, "its predecessor is gone"


def test_speeds_add_up_over_replicas_that_serve_and_have_measured() -> None:
    one = measured(replica("a", CHAT, "r1", board="b"), decodeTokensPerSecond=16.5)
    two = measured(replica("b", CHAT, "r1", board="b"), decodeTokensPerSecond=4)
    silent = replica("c", CHAT, "r1", board="b")
    stopped = measured(replica("d", CHAT, "r1", board="b", conditions=[said("Ready", "False", "Draining")]), decodeTokensPerSecond=9)
    found = only(board("b"), one, two, silent, stopped)
    assert (found.tokens_per_second, found.serving, found.replicas) == (20.5, 3, 4)
    assert only(board("b"), silent).tokens_per_second is None


def test_a_simulated_board_labels_every_figure() -> None:
    simulated = board("rk3588-1", simulated=True)
    placed = replica("a", CHAT, "r1", board="rk3588-1")
    assert usage.board_cells(only(simulated, placed))[usage.BOARD_HEADS.index("SIMULATED")] == "true"
    world = World(now=NOW, boards={"rk3588-1": simulated}, replicas={("default", "a"): placed})
    assert usage.replica_cells(usage.replicas(world)[0])[usage.REPLICA_HEADS.index("SIMULATED")] == "true"


def test_a_cordoned_board_says_so_beside_its_session() -> None:
    assert only(board("b", spec={"unschedulable": True})).status == "SessionOpen,Cordoned"


def test_times_are_read_as_people_read_them() -> None:
    def ttft(seconds: float | None) -> str:
        one = measured(replica("a", CHAT, "r1", board="b"), timeToFirstTokenSeconds=seconds)
        world = World(now=NOW, replicas={("default", "a"): one})
        return usage.replica_cells(usage.replicas(world)[0])[usage.REPLICA_HEADS.index("TTFT")]

    assert [ttft(value) for value in (None, 0.048, 0.21, 1.6, 12.0)] == ["", "48ms", "210ms", "1.6s", "12s"]
