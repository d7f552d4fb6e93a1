"""Which replica answers a request: pure functions over what the API says.

In: Replicas, Boards and ModelDeployments as JSON. Out: a `Table` that names, for every served model, the replicas that may be asked. The
endpoints loop makes a new table at every change; the proxy holds one for the length of a request. It is apart from both so that the
rules can be tested without a connection.

A replica is asked when it exists, wants to serve (`activation: Serving`), is Ready, and its board has a serving endpoint. Of two
deployments that claim the same name, the older one has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from rkfleet.conditions import READY, find, is_true
from rkfleet.enrolment import serving_name
from rkfleet.kinds import Board, ModelDeployment, Replica

__all__ = ["Served", "Table", "Target", "choose", "plan_table"]


class Target(msgspec.Struct, frozen=True, gc=False):
    """One replica that may be asked.

    Attributes:
        uid: Uid of the Replica; outstanding requests are counted by it.
        replica: Namespace and name.
        url: Base URL; `/v1/...` is appended.
        server_name: Name that the board's serving certificate must have.
        simulated: Whether the board does not exist and its speed is a figure of the benchmark table.
    """

    uid: str
    replica: str
    board: str
    variant: str
    url: str
    server_name: str
    simulated: bool = False


class Served(msgspec.Struct, frozen=True):
    """One model name that clients may ask for.

    Attributes:
        created: When its deployment was created, seconds since 1970.
        why: Sentence that says why nothing serves it, with a command; empty while something does.
    """

    name: str
    deployment: str
    created: int
    targets: tuple[Target, ...]
    why: str = ""


class Table(msgspec.Struct, frozen=True):
    """All served models by name."""

    models: dict[str, Served] = {}

    def find(self, name: str) -> Served | None:
        """Return what serves a name that a client wrote, or None.

        A name that a deployment serves comes first; else what stands after the last colon is `latest` or an adapter, which the board knows.
        """
        found = self.models.get(name)
        return found if found is not None or ":" not in name else self.models.get(name.rpartition(":")[0])


def plan_table(
    deployments: Iterable[ModelDeployment],
    replicas: Iterable[Replica],
    boards: Mapping[str, Board],
    fleet_id: str,
    seconds_of: Mapping[str, int],
) -> Table:
    """Return the routing table of this state.

    Args:
        deployments: All ModelDeployments.
        replicas: All Replicas.
        boards: All Boards by name.
        fleet_id: Fleet that serving certificates are issued for.
        seconds_of: Creation time of each deployment by uid, seconds since 1970.
    """
    by_deployment: dict[tuple[str, str], list[Target]] = {}
    for replica in replicas:
        target = _target(replica, boards, fleet_id)
        if target is not None:
            by_deployment.setdefault((replica.metadata.namespace, replica.spec.deployment_name), []).append(target)
    models: dict[str, Served] = {}
    for deployment in sorted(deployments, key=lambda one: (one.metadata.creation_timestamp, one.metadata.namespace, one.metadata.name)):
        if deployment.metadata.deletion_timestamp:
            continue
        meta = deployment.metadata
        name = deployment.spec.served_model_name or meta.name
        targets = tuple(sorted(by_deployment.get((meta.namespace, meta.name), ()), key=lambda target: target.replica))
        if name not in models:
            created = seconds_of.get(meta.uid, 0)
            models[name] = Served(name, f"{meta.namespace}/{meta.name}", created, targets, "" if targets else _why(deployment))
    return Table(models)


def _target(replica: Replica, boards: Mapping[str, Board], fleet_id: str) -> Target | None:
    board = boards.get(replica.spec.board_name)
    serves = replica.spec.activation == "Serving" and is_true(replica.status.conditions, READY) and not replica.metadata.deletion_timestamp
    if board is None or not serves or not replica.status.endpoint:
        return None
    return Target(
        replica.metadata.uid,
        f"{replica.metadata.namespace}/{replica.metadata.name}",
        board.metadata.name,
        replica.spec.variant_name,
        replica.status.endpoint,
        serving_name(board.metadata.name, fleet_id),
        board.status.simulated,
    )


def _why(deployment: ModelDeployment) -> str:
    meta = deployment.metadata
    ready = find(deployment.status.conditions, READY)
    said = ready.message or ready.reason if ready and ready.status != "True" else "no replica is ready"
    return f"{said.rstrip('.')}. Try: kubectl -n {meta.namespace} describe modeldeployment {meta.name}"


def choose(targets: Sequence[Target], outstanding: Mapping[str, int], tried: frozenset[str], turn: int) -> Target | None:
    """Return the target with the fewest outstanding requests that was not tried yet; equals take turns by `turn`."""
    left = [target for target in targets if target.uid not in tried]
    if not left:
        return None
    fewest = min(outstanding.get(target.uid, 0) for target in left)
    equals = [target for target in left if outstanding.get(target.uid, 0) == fewest]
    return equals[turn % len(equals)]
