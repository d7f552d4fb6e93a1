"""Collections of the API, kept current: what a command looks at while it waits or shows something live.

In: a client, and which kinds (`Wanted`). Out: `Following`, which has every object decoded, and `changed`, which returns once there is
something new. Board drain, top and other live views use it; a command that looks once uses `look`, which has the same shape.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from rkfleet.client import ApiClient
from rkfleet.clock import Clock
from rkfleet.errors import FleetError
from rkfleet.kinds import Board, Model, ModelDeployment, ModelRevision, Object, Replica
from rkfleet.world import World

__all__ = ["WORLD", "Following", "Trouble", "Wanted", "following", "look"]

T = TypeVar("T", bound=Object)
Json = dict[str, Any]
Trouble = Callable[[FleetError | None], None]
_Key = tuple[str, str]


class Wanted(msgspec.Struct, frozen=True):
    """One collection: a kind, of one namespace or of all, perhaps only some of it."""

    kind: type[Object]
    namespace: str = ""
    fields: str = ""


WORLD: Final = tuple(Wanted(kind) for kind in (Board, Model, ModelDeployment, ModelRevision, Replica))
"""What an explanation may depend on; causes may lead into any namespace."""


class Following:
    """Several collections by kind, then by (namespace, name)."""

    def __init__(self, wanted: Sequence[Wanted], trouble: Trouble = lambda _error: None) -> None:
        self._trouble: Final = trouble
        self._objects: Final[dict[type[Object], dict[_Key, Object]]] = {one.kind: {} for one in wanted}
        self._missing: Final = {one.kind for one in wanted}
        self._news: Final = asyncio.Event()
        self._error: FleetError | None = None

    def all(self, kind: type[T]) -> dict[_Key, T]:
        """Return every object of a kind that is followed."""
        return self._objects[kind]  # type: ignore[return-value]  # the key says what the values are

    def world(self, clock: Clock) -> World:
        """Return what explanations ask; only of `WORLD`."""
        return World(
            now=clock.now(),
            boards={name: board for (_, name), board in self.all(Board).items()},
            models=dict(self.all(Model)),
            deployments=dict(self.all(ModelDeployment)),
            revisions=dict(self.all(ModelRevision)),
            replicas=dict(self.all(Replica)),
        )

    async def changed(self) -> None:
        """Return when everything was listed and something is new since the last call; changes that come together are one.

        Raises:
            FleetError: The API refuses to tell.
        """
        while True:
            await self._news.wait()
            self._news.clear()
            if self._error is not None:
                raise self._error
            if not self._missing:
                return

    async def follow(self, client: ApiClient, wanted: Wanted) -> None:
        """Keep one collection current until it is cancelled, or the API refuses."""
        try:
            changes = client.follow(wanted.kind.resource.name, wanted.namespace, fields=wanted.fields, trouble=self._trouble)
            async with contextlib.aclosing(changes) as steps:
                async for step in steps:
                    if step.type == "REPLACED":
                        self._objects[wanted.kind].clear()
                        self._missing.discard(wanted.kind)
                    for obj in step.items:
                        self.take(wanted.kind, obj, gone=step.type == "DELETED")
                    self._news.set()
        except FleetError as error:
            self._error = error
            self._news.set()

    def take(self, kind: type[Object], obj: Json, *, gone: bool) -> None:
        """Put one object in, or take it out."""
        key = (obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        if gone:
            self._objects[kind].pop(key, None)
        else:
            self._objects[kind][key] = msgspec.convert(obj, kind)


@contextlib.asynccontextmanager
async def following(
    client: ApiClient, wanted: Sequence[Wanted] = WORLD, trouble: Trouble = lambda _error: None
) -> AsyncIterator[Following]:
    """Follow collections for as long as the block runs; `trouble` is told why nothing comes, and None when something does again."""
    followed = Following(wanted, trouble)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(followed.follow(client, one)) for one in wanted]
        try:
            yield followed
        finally:
            for task in tasks:
                task.cancel()


async def look(client: ApiClient, wanted: Sequence[Wanted] = WORLD) -> Following:
    """Return the collections as they are now, asked for at the same time."""
    found = Following(wanted)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.list(one.kind.resource.name, one.namespace, fields=one.fields)) for one in wanted]
    for one, task in zip(wanted, tasks, strict=True):
        for obj in task.result().items:
            found.take(one.kind, obj, gone=False)
    return found
