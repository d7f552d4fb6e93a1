"""What reconcilers see: the caches they share, with the indexes they read, and the two facts that no store holds.

`make_views` is called once by `loops.py`. Presence and offers live in the session hub and blobs in the registry; they come in as
Protocols that are defined here, because reconcilers never import either.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Protocol, TypeVar

import msgspec

from controller.machinery.cache import Cache
from controller.planning.assignment import Offer
from controller.planning.health import Presence
from controller.planning.identity import Attempt, Held
from controller.store.base import Store
from rkfleet import conditions
from rkfleet.clock import Clock
from rkfleet.kinds import Board, Model, ModelDeployment, ModelRevision, Replica
from rkfleet.kinds.base import Object
from rkfleet.metrics import Metrics

__all__ = [
    "BY_BOARD", "BY_DEPLOYMENT", "BY_MODEL", "BY_OWNER", "BY_REVISION", "BY_SCHEDULING", "UNSCHEDULED", "Blobs", "Identities", "Offers",
    "PresenceReader", "Sessions", "Views", "by_name", "make_metadata_views", "make_views",
    "scoped",
]  # fmt: skip

BY_BOARD: Final = "board"
BY_DEPLOYMENT: Final = "deployment"
BY_MODEL: Final = "model"
BY_OWNER: Final = "owner"
BY_REVISION: Final = "revision"
BY_SCHEDULING: Final = "scheduling"
UNSCHEDULED: Final = "todo"  # The one value of the index BY_SCHEDULING: replicas that placement has something to do for.


T = TypeVar("T", bound=Object)


class Sessions(Protocol):
    """Who is in session; the hub is one."""

    def presence(self, board: str) -> tuple[bool, float]:
        """Return whether the board has a session, and since when it has or has not: monotonic; at the latest since the hub started."""
        ...


class Offers(Protocol):
    """Takes assignments to boards; the hub is one."""

    def offer(self, board: str, offer: Offer) -> None:
        """Offer it to the board if that is in session; the newest replaces all before."""
        ...


class Identities(Protocol):
    """Who holds sessions, and who was refused; the hub is one."""

    def held(self, board: str) -> Held | None:
        """Return the session that the board holds, or None."""
        ...

    def attempt(self, board: str) -> Attempt | None:
        """Return the last refused use of the board's certificate by somebody else, or None."""
        ...

    def revoke(self, board: str, message: str) -> None:
        """End the board's session, if it has one, and tell it why."""
        ...


class Blobs(Protocol):
    """What the registry holds."""

    async def missing_blobs(self, repository: str, digests: Iterable[str]) -> frozenset[str]:
        """Return those of the digests that this repository of it does not hold.

        Raises:
            FleetError: It cannot be asked.
        """
        ...


class PresenceReader:
    """Presence as planners take it: in seconds, and whether the board was here since this process started.

    Args:
        sessions: Who is in session; made before this.
        clock: Monotonic time.
    """

    def __init__(self, sessions: Sessions, clock: Clock) -> None:
        self._sessions: Final = sessions
        self._clock: Final = clock
        self._started: Final = clock.monotonic()

    def of(self, board: str) -> Presence:
        """Return the presence of one board."""
        connected, since = self._sessions.presence(board)
        return Presence(connected=connected, seconds=max(self._clock.monotonic() - since, 0.0), seen=connected or since > self._started)


class Views(msgspec.Struct, frozen=True):
    """The caches of all kinds that reconcilers read."""

    boards: Cache[Board]
    models: Cache[Model]
    deployments: Cache[ModelDeployment]
    revisions: Cache[ModelRevision]
    replicas: Cache[Replica]

    def __iter__(self) -> Iterator[Cache[Any]]:
        for name in self.__struct_fields__:
            yield getattr(self, name)


def make_views(store: Store, *, clock: Clock, random: random.Random, metrics: Metrics | None = None) -> Views:
    """Return caches over the store; the manager runs them."""

    def cache(kind: type[T], **indexes: Callable[[T], Iterable[str]]) -> Cache[T]:
        return Cache(store, kind, clock=clock, random=random, indexes={BY_OWNER: _owner_uids, **indexes}, metrics=metrics)

    return Views(
        boards=cache(Board),
        models=cache(Model),
        deployments=cache(ModelDeployment, **{BY_MODEL: lambda one: (scoped(one, one.spec.template.model),)}),
        revisions=cache(
            ModelRevision,
            **{
                BY_DEPLOYMENT: lambda one: (scoped(one, one.spec.deployment_name),),
                BY_MODEL: lambda one: (scoped(one, one.spec.template.model),),
            },
        ),
        replicas=cache(
            Replica,
            **{
                BY_BOARD: lambda one: (one.spec.board_name,),
                BY_DEPLOYMENT: lambda one: (scoped(one, one.spec.deployment_name),),
                BY_REVISION: lambda one: (scoped(one, one.spec.revision_name),),
                BY_SCHEDULING: _scheduling,
            },
        ),
    )


def make_metadata_views(
    store: Store, kinds: Iterable[type[Object]], *, clock: Clock, random: random.Random, metrics: Metrics | None = None
) -> tuple[Cache[Any], ...]:
    """Return caches of what kinds that no loop works on have in common with others: only metadata is decoded and kept."""
    return tuple(
        Cache(store, _metadata_of(kind), clock=clock, random=random, indexes={BY_OWNER: _owner_uids}, metrics=metrics) for kind in kinds
    )


def _metadata_of(kind: type[Object]) -> type[Object]:
    """Return the kind without what is its own."""
    namespace = {"resource": kind.resource}
    bare = msgspec.defstruct(f"{kind.__name__}Metadata", [], bases=(Object,), namespace=namespace, frozen=True, kw_only=True)
    assert issubclass(bare, Object)
    return bare


def scoped(obj: Object, name: str) -> str:
    """Return `namespace/name` for a name in the namespace of `obj`, as indexes spell it."""
    return f"{obj.metadata.namespace}/{name}"


def by_name(objects: Iterable[T]) -> Mapping[tuple[str, str], T]:
    """Return objects by (namespace, name), as planners take them."""
    return {(one.metadata.namespace, one.metadata.name): one for one in objects}


def _owner_uids(obj: Object) -> Iterable[str]:
    return [reference.uid for reference in obj.metadata.owner_references]


def _scheduling(replica: Replica) -> Iterable[str]:
    done = replica.spec.board_name and conditions.is_true(replica.status.conditions, conditions.SCHEDULED)
    return () if done else (UNSCHEDULED,)
