"""The only applier: carries out what planners decided, and makes no choice of its own.

In: actions in order. Out: writes to the store, events to the recorder. Every reconciler uses it. Actions of one kind that stand next to
each other are written at the same time, so that they share a commit; everything else is written one after the other, and an error ends
the rest: the key is planned again from what is then there. A `Record` tells of the action before it, and does not stand between that and
the next one of its kind: people hear of what was done, in the order in which it was planned.

Before anything but status is written, a reconciler has `check_current` compare the objects that its plan was made from with the store.
Caches lag and another process may believe it leads, and a plan over counts (how many may drain, how much memory is free) is right only
for the world that it counted. What changes between the check and the write is caught by the resourceVersion that each action carries, as
far as it is the same object; a whole second leader is refused by the store.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal, Protocol, TypeVar, assert_never

import msgspec

from controller.planning.actions import (
    Action,
    Activate,
    Bind,
    CreateReplica,
    CreateRevision,
    Delete,
    EditMetadata,
    Record,
    RenumberRevision,
    WriteStatus,
)
from controller.store.base import Selection, Store, decode_item
from rkfleet.clock import Clock, format_time
from rkfleet.errors import AlreadyExists, Conflict, FleetError, NotFound
from rkfleet.kinds.base import Object
from rkfleet.kinds.replica import Replica
from rkfleet.kinds.revision import ModelRevision
from rkfleet.meta import Ref

__all__ = ["Applier", "Recorder"]

T = TypeVar("T", bound=Object)

_Step = tuple[Action, list[Record]]
"""An action, and what people are told when it is done."""

WRITES_AT_ONCE: Final = 128  # As many as one commit of the store holds; more would make other writers wait without being faster.


class Recorder(Protocol):
    """Notes what happened to an object, for people; `machinery.events.EventRecorder` is one."""

    def record(
        self, ref: Ref, uid: str, type: Literal["Normal", "Warning"], reason: str, message: str, *, kind: str, api_version: str
    ) -> None:
        """Note it; never waits, never fails."""
        ...


class Applier:
    """Writes actions.

    Args:
        store: Where to.
        clock: Wall time for creation, deletion and transition times.
        ids: Makes uids of new objects.
        events: Takes what people should know.
    """

    def __init__(self, store: Store, clock: Clock, ids: Callable[[], str], events: Recorder) -> None:
        self._store: Final = store
        self._clock: Final = clock
        self._ids: Final = ids
        self._events: Final = events

    async def apply(self, actions: Sequence[Action]) -> None:
        """Carry out the actions.

        Raises:
            Conflict: An object is not as the planner saw it, or gone; what was planned before it is done, the rest is not.
            FleetError: The store could not write.
        """
        for _, run in itertools.groupby(_with_records(actions), key=lambda one: type(one[0])):
            while batch := tuple(itertools.islice(run, WRITES_AT_ONCE)):
                await self._together(batch)

    async def check_current(
        self,
        kind: type[T],
        selection: Selection,
        seen: Iterable[T],
        *,
        matters: Callable[[T | None, T | None], bool] = lambda _old, _new: True,
    ) -> None:
        """Compare what a plan was made from with what the store holds now.

        Args:
            kind: Of the objects.
            selection: Which of them the plan depends on.
            seen: How the planner saw them; others than those selected do not matter.
            matters: Whether the difference between an object as it was seen (None: not at all) and as it is (None: gone) matters for the
                plan.

        Raises:
            Conflict: They differ: the cache lags behind, plan again.
        """
        known = {one.ref: one for one in seen}
        page = await self._store.list(kind.resource.name, selection)
        for item in page.items:
            old = known.pop(item.ref, None)
            if old is not None and old.metadata.resource_version == item.resource_version:
                continue
            if old is not None and old.metadata.uid != item.uid:
                old = None
            if matters(old, decode_item(kind, item)):
                raise Conflict(f"{item.ref} is not known yet" if old is None else f"{item.ref} has changed")
        for ref, old in known.items():
            if matters(old, None):
                raise Conflict(f"{ref} does not exist any more")

    async def _together(self, steps: Sequence[_Step]) -> None:
        if len(steps) == 1:
            await self._attempt(*steps[0])
            return
        failures: list[FleetError] = []

        async def attempt(step: _Step) -> None:
            try:
                await self._attempt(*step)
            except FleetError as error:
                failures.append(error)

        async with asyncio.TaskGroup() as tasks:
            for step in steps:
                tasks.create_task(attempt(step))
        if failures:
            raise failures[0]

    async def _attempt(self, action: Action, records: Sequence[Record]) -> None:
        try:
            await self._one(action)
        except NotFound as error:  # Deleted since the plan was made, which is not what the planner saw either.
            raise Conflict(error.message) from error
        for record in records:
            await self._one(record)

    async def _one(self, action: Action) -> None:
        now = self._clock.now()
        match action:
            case CreateRevision():
                await self._create(action.ref, action, ModelRevision)
            case CreateReplica():
                await self._create(action.ref, action, Replica)
            case RenumberRevision(ref=ref, uid=uid, resource_version=version):
                await self._store.patch(ref, {"spec": {"revision": action.number}}, uid=uid, resource_version=version, now=now)
            case Activate(ref=ref, uid=uid, resource_version=version):
                await self._store.patch(ref, {"spec": {"activation": action.activation}}, uid=uid, resource_version=version, now=now)
            case Bind(ref=ref, uid=uid, resource_version=version):
                spec = {"boardName": action.board, "variantName": action.variant}
                await self._store.patch(ref, {"spec": spec}, uid=uid, resource_version=version, now=now)
            case Delete(ref=ref, uid=uid, resource_version=version):
                await self._delete(ref, uid, version)
            case EditMetadata():
                await self._edit_metadata(action)
            case WriteStatus(ref=ref, uid=uid, owner=owner, fields=fields):
                said = [msgspec.to_builtins(one) for one in action.conditions]
                await self._store.patch_status(ref, uid, owner, fields, said, when=action.when, now=now)
            case Record():
                self._events.record(
                    action.ref, action.uid, action.type, action.reason, action.message, kind=action.kind, api_version=action.api_version
                )
            case _:
                assert_never(action)

    async def _create(self, ref: Ref, action: CreateRevision | CreateReplica, kind: type[Object]) -> None:
        obj: dict[str, Any] = {
            "apiVersion": kind.resource.api_version,
            "kind": kind.resource.kind,
            "metadata": {
                "name": ref.name,
                "namespace": ref.namespace,
                "uid": self._ids(),
                "creationTimestamp": format_time(self._clock.now()),
                "labels": dict(action.labels),
                "ownerReferences": [msgspec.to_builtins(action.owner)],
            },
            "spec": msgspec.to_builtins(action.spec),
        }
        try:
            await self._store.create(ref, obj)
        except AlreadyExists as error:  # The cache does not show it yet, or it belongs to a namesake that is being collected.
            raise Conflict(f"{ref} exists already") from error

    async def _delete(self, ref: Ref, uid: str, resource_version: str) -> None:
        try:
            await self._store.delete(ref, uid=uid, resource_version=resource_version, now=self._clock.now())
        except NotFound:
            return  # Somebody else was faster; that is what was wanted.

    async def _edit_metadata(self, action: EditMetadata) -> None:
        metadata: dict[str, Any] = {}
        if action.finalizers is not None:
            metadata["finalizers"] = list(action.finalizers) or None
        if action.owner_references is not None:
            metadata["ownerReferences"] = [msgspec.to_builtins(one) for one in action.owner_references] or None
        patch = {"metadata": metadata}
        await self._store.patch(action.ref, patch, uid=action.uid, resource_version=action.resource_version, now=self._clock.now())


def _with_records(actions: Iterable[Action]) -> Iterable[_Step]:
    """Return each action with the Records that follow it; Records that nothing stands before are steps of their own."""
    steps: list[_Step] = []
    for action in actions:
        if isinstance(action, Record) and steps and not isinstance(steps[-1][0], Record):
            steps[-1][1].append(action)
        else:
            steps.append((action, []))
    return steps
