"""What is stored, as one value: boards, Models, deployments, revisions and replicas, and how people name them.

In: objects of the API. Out: `World`, which answers questions about several of them. `rkfleet/explanation.py` and the figures of
`rkfleet top` read it; `rkfleet/cli/following.py` makes it. Pure; time enters as `now`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from rkfleet import conditions
from rkfleet.errors import NotFound
from rkfleet.kinds import Board, Model, ModelDeployment, ModelRevision, Object, Replica

__all__ = ["EXPLAINED", "World", "find_named", "listed"]

EXPLAINED: Final[tuple[type[Object], ...]] = (ModelDeployment, Replica, Board, Model)
"""Kinds that can be explained, in the order in which a bare name is looked for."""

NAMES_OFFERED_MAX: Final = 12  # When a name is not found; more is a listing.


class World(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored: boards by name, the rest by (namespace, name)."""

    now: datetime
    boards: Mapping[str, Board] = {}
    models: Mapping[tuple[str, str], Model] = {}
    deployments: Mapping[tuple[str, str], ModelDeployment] = {}
    revisions: Mapping[tuple[str, str], ModelRevision] = {}
    replicas: Mapping[tuple[str, str], Replica] = {}

    def on_board(self, name: str) -> list[Replica]:
        """Return the replicas that are placed on a board, by name."""
        return _by_name(one for one in self.replicas.values() if one.spec.board_name == name)

    def left_on(self, board: Board) -> list[str]:
        """Return what must go before a board is empty, as `namespace/name`: replicas placed there, and workers that it reports.

        What a board reported before it went away says nothing about now.
        """
        left = [f"{one.metadata.namespace}/{one.metadata.name}" for one in self.on_board(board.metadata.name)]
        reported = board.status.running if conditions.is_true(board.status.conditions, conditions.READY) else ()
        return left + [one.replica for one in reported if one.replica not in left]

    def of_deployment(self, deployment: ModelDeployment) -> list[Replica]:
        """Return the replicas of a deployment, by name."""
        meta = deployment.metadata
        return _by_name(
            one for one in self.replicas.values() if (one.metadata.namespace, one.spec.deployment_name) == (meta.namespace, meta.name)
        )

    def find(self, kind: type[Object], namespace: str, name: str) -> Object | None:
        """Return an object of one of the `EXPLAINED` kinds, or None."""
        return self.boards.get(name) if kind is Board else self._namespaced(kind).get((namespace, name))

    def names(self, kind: type[Object], namespace: str) -> list[str]:
        """Return the names of all objects of one of the `EXPLAINED` kinds."""
        return sorted(self.boards if kind is Board else (name for space, name in self._namespaced(kind) if space == namespace))

    def _namespaced(self, kind: type[Object]) -> Mapping[tuple[str, str], Object]:
        found: Mapping[type[Object], Mapping[tuple[str, str], Object]] = {
            Model: self.models, ModelDeployment: self.deployments, Replica: self.replicas,
        }  # fmt: skip
        return found[kind]


def find_named(world: World, namespace: str, name: str, kinds: Sequence[type[Object]] = EXPLAINED) -> Object:
    """Return the object that a person means by a name: the first in the order of `kinds`.

    Raises:
        NotFound: There is none; the message has the names that are nearest, or some that are there.
    """
    for kind in kinds:
        if (found := world.find(kind, namespace, name)) is not None:
            return found
    known = {f"{kind.resource.singular}/{one}": one for kind in kinds for one in world.names(kind, namespace)}
    near = difflib.get_close_matches(name, known.values(), NAMES_OFFERED_MAX)
    offered = [shown for shown, one in known.items() if one in near] or list(known)
    more = " and others" if len(offered) > NAMES_OFFERED_MAX else ""
    there = f"there is {listed(offered, NAMES_OFFERED_MAX)}{more}" if offered else "there is none yet"
    what = " or ".join(kind.resource.singular for kind in kinds)
    raise NotFound(f"no {what} is named {name!r} in namespace {namespace!r}; {there}")


def listed(names: Sequence[str], limit: int) -> str:
    """Return `a, b and 3 more`."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def _by_name(replicas: Iterable[Replica]) -> list[Replica]:
    return sorted(replicas, key=lambda one: (one.metadata.namespace, one.metadata.name))
