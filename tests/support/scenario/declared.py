"""Whether a fleet is as declared: everything that is not, in sentences.

In: what the store holds and what really runs. Out: an empty list once every replica serves the newest revision on a board with room, every
board follows what was minted for it and runs that and nothing else, and the gateway routes to all of it. A replica that no board has room
for may wait, if it says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rkfleet import conditions
from rkfleet.kinds import Board as BoardKind
from rkfleet.kinds import Model, ModelDeployment, Replica

if TYPE_CHECKING:
    from tests.support.scenario.fleet import Fleet


def is_complete(fleet: Fleet, deployment: str) -> bool:
    found = fleet.promises.named(ModelDeployment, deployment)
    if found is None or found.status.observed_generation != found.metadata.generation:
        return False
    return all(conditions.is_true(found.status.conditions, type) for type in (conditions.READY, conditions.AVAILABLE)) and (
        _reason(found, conditions.PROGRESSING) == conditions.ROLLOUT_COMPLETE
    )


def missing(fleet: Fleet) -> list[str]:
    """Return what is not as declared, in sentences."""
    return list(_missing(fleet))


def _missing(fleet: Fleet) -> Iterator[str]:
    promises = fleet.promises
    replicas = promises.of(Replica)
    waiting = False
    for replica in replicas:
        name, said = replica.metadata.name, replica.status.conditions
        owner = next(
            (one for one in promises.of(ModelDeployment) if one.metadata.uid in {ref.uid for ref in replica.metadata.owner_references}),
            None,
        )
        if owner is None:
            yield f"replica {name} has no owner"
            continue
        if not replica.spec.board_name:
            if any(
                _free_bytes(fleet, board) >= promises.memory_of(replica) for board in promises.of(BoardKind) if not board.spec.unschedulable
            ):
                yield f"replica {name} waits though a board has room"
            elif conditions.is_true(said, conditions.SCHEDULED) or not _reason(replica, conditions.SCHEDULED):
                yield f"replica {name} has no board and does not say why"
            waiting = True
            continue
        if replica.spec.activation != "Serving":
            yield f"replica {name} is {replica.spec.activation}"
        for type in (conditions.SCHEDULED, conditions.ARTIFACT_AVAILABLE, conditions.LOADED, conditions.READY):
            if not conditions.is_true(said, type):
                yield f"replica {name} is not {type}: {_reason(replica, type)}"
        if replica.status.observed_generation != replica.metadata.generation:
            yield f"replica {name} is reported at generation {replica.status.observed_generation} of {replica.metadata.generation}"
    for deployment in promises.of(ModelDeployment):
        name = deployment.metadata.name
        mine = [one for one in replicas if one.spec.deployment_name == name]
        if len(mine) != deployment.spec.replicas:
            yield f"{name} has {len(mine)} replicas of {deployment.spec.replicas}"
        revisions = {one.spec.revision_name for one in mine}
        if revisions - {deployment.status.update_revision}:
            yield f"{name} has replicas of {sorted(revisions)}"
        if not is_complete(fleet, name) and not waiting:
            yield f"{name} is not complete: {[(one.type, one.status, one.reason) for one in deployment.status.conditions]}"
    for board in promises.of(BoardKind):
        yield from _missing_on(fleet, board, replicas)
    if (names := {one.metadata.name for one in promises.of(BoardKind)}) != set(fleet.boards):
        yield f"boards are {sorted(names)}"
    for model in promises.of(Model):
        if not conditions.is_true(model.status.conditions, conditions.READY):
            yield f"model {model.metadata.name} is not Ready"
    if fleet.gateway is not None:
        table = fleet.gateway.endpoints.table
        routed = sorted(target.replica for served in table.models.values() for target in served.targets)
        wanted = sorted(f"default/{one.metadata.name}" for one in replicas if one.spec.board_name)
        if routed != wanted:
            yield f"the gateway routes to {routed}, not to {wanted}"


def _missing_on(fleet: Fleet, board: BoardKind, replicas: list[Replica]) -> Iterator[str]:
    name, status = board.metadata.name, board.status
    machine = fleet.boards.get(name)
    if machine is None or not machine.running:
        yield f"board {name} does not run"
        return
    agent = machine.agent
    assert agent is not None
    if not conditions.is_true(status.conditions, conditions.READY):
        yield f"board {name} is not Ready: {_reason(board, conditions.READY)}"
    for type in (conditions.MEMORY_PRESSURE, conditions.DISK_PRESSURE):
        if (found := conditions.find(status.conditions, type)) is None or found.status != "False":
            yield f"board {name} says {type} {found.status if found else 'nothing'}"
    held = agent.ledger.held
    if (held.number, held.sha256, held.number) != (
        status.assignment.number,
        status.assignment.sha256,
        status.assignment.accepted_number,
    ):
        yield f"board {name} holds assignment {held.number}, stored is {status.assignment}"
    if agent.session.connection.number != status.session.number:
        yield f"board {name} is in session {agent.session.connection.number}, stored is {status.session.number}"
    wanted = sorted(one.metadata.uid for one in replicas if one.spec.board_name == name)
    running = sorted(uid for uid, state in agent.supervisor.states().items() if state.phase == "Ready")
    if wanted != running or len(agent.supervisor.states()) != len(running):
        yield f"board {name} runs {running}, not {wanted}"
    if sorted(one.uid for one in status.running) != wanted:
        yield f"board {name} is stored to run {sorted(one.uid for one in status.running)}, not {wanted}"
    if [one.replica.uid for one in agent.served if not one.endpoint or one.draining]:
        yield f"board {name} has routes without a worker"


def _free_bytes(fleet: Fleet, board: BoardKind) -> int:
    machine = fleet.boards.get(board.metadata.name)
    used = sum(fleet.promises.memory_of(one) for one in fleet.promises.of(Replica) if one.spec.board_name == board.metadata.name)
    return machine.memory_bytes - used if machine else 0


def _reason(obj: Any, type: str) -> str:
    found = conditions.find(obj.status.conditions, type)
    return found.reason if found else ""
