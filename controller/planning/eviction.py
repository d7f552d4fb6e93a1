"""Boards that replicas must leave, and how the replicas there say so.

In: Boards with their taints, and one deployment with its Replicas. Out: the boards of it that are to be emptied (`evicting_boards`), for
`BoardsView`; and the writes that bring the `DisruptionTarget` condition of its Replicas up to date (`plan_evicted`). How they leave is
`rollout.py`'s. It is apart because a board is emptied for reasons that no rollout knows.

A taint with effect NoExecute empties a board of every replica whose deployment does not tolerate it; `rkfleet board drain` sets one.
Source: Kubernetes `core/v1` Taint (NoExecute) and the pod condition DisruptionTarget.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from controller.planning.actions import WriteStatus
from controller.planning.feasibility import taint_text, tolerates
from rkfleet import conditions
from rkfleet.conditions import condition, explain
from rkfleet.kinds.board import TAINT_DRAIN, Board, Toleration
from rkfleet.kinds.deployment import ModelDeployment
from rkfleet.kinds.replica import Replica

__all__ = ["evicting_boards", "plan_evicted", "way_back"]


def evicting_boards(boards: Iterable[Board], tolerations: Sequence[Toleration]) -> dict[str, str]:
    """Return those of the boards that replicas with these tolerations must leave, by name, each with the taint that says so."""
    found = {}
    for board in boards:
        for taint in board.spec.taints:
            if taint.effect == "NoExecute" and not tolerates(tolerations, taint):
                found[board.metadata.name] = taint_text(taint)
                break
    return found


def way_back(board: str, taint: str) -> str:
    """Return the command that keeps the replicas of a board where they are after all."""
    if taint.startswith(TAINT_DRAIN):
        return f"rkfleet board uncordon {board}"
    return f"kubectl edit board {board} (take the taint out of spec.taints)"


def plan_evicted(deployment: ModelDeployment, replicas: Iterable[Replica], evicting: Mapping[str, str]) -> Iterator[WriteStatus]:
    """Yield the writes for Replicas whose `DisruptionTarget` condition is not as it should be."""
    meta = deployment.metadata
    for replica in replicas:
        before = conditions.find(replica.status.conditions, conditions.DISRUPTION_TARGET)
        board = replica.spec.board_name
        if board not in evicting:
            if before is not None:
                yield WriteStatus(ref=replica.ref, uid=replica.metadata.uid, owner="deployment")
            continue
        message = explain(
            f"Board {board} has taint {evicting[board]}, which spec.placement.tolerations does not tolerate, so this replica moves to"
            " another board when spec.strategy allows it",
            f"kubectl describe modeldeployment {meta.name} -n {meta.namespace}",
        )
        if before is None or (before.status, before.message) != ("True", message):
            said = condition(conditions.DISRUPTION_TARGET, "True", conditions.BOARD_DRAINING, message)
            yield WriteStatus(ref=replica.ref, uid=replica.metadata.uid, owner="deployment", conditions=(said,))
