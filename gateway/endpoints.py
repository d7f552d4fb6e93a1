"""What the gateway knows about the fleet: Replicas, Boards and ModelDeployments, followed over the API.

In: three followed collections. Out: the current `Table`, made anew (at most every `PLAN_SECONDS`) when something changed, and written to
the snapshot. While the controller is away the last table stays in force.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, Generic, TypeVar

import msgspec

from gateway.routing import Table, plan_table
from gateway.snapshot import Snapshot
from rkfleet import metric_names as names
from rkfleet.client import ApiClient, Followed
from rkfleet.clock import Clock, parse_time
from rkfleet.errors import FleetError
from rkfleet.kinds import Board, ModelDeployment, Object, Replica
from rkfleet.metrics import Metrics

__all__ = ["Endpoints"]

PLAN_SECONDS: Final = 0.02  # Changes within this pause share one new table: a rollout of a thousand replicas is not a thousand tables.
REST_SHARE: Final = 4.0  # A table of a thousand replicas takes longer than that pause; requests get the core four fifths of the time.
RETRY_SECONDS: Final = 2.0  # After an answer that waiting alone may not heal, for example a token that is not accepted.

T = TypeVar("T", bound=Object)
_log = logging.getLogger(__name__)


class _Mirror(Generic[T]):
    """One collection, as last seen; empty until the first list."""

    def __init__(self, kind: type[T]) -> None:
        self.kind: Final = kind
        self.synced = False
        self._objects: dict[str, T] = {}

    @property
    def objects(self) -> tuple[T, ...]:
        return tuple(self._objects.values())

    def take(self, step: Followed) -> None:
        if step.type == "REPLACED":
            self._objects = {obj["metadata"]["uid"]: msgspec.convert(obj, self.kind) for obj in step.items}
            self.synced = True
            return
        for obj in step.items:
            uid = obj["metadata"]["uid"]
            if step.type == "DELETED":
                self._objects.pop(uid, None)
            else:
                self._objects[uid] = msgspec.convert(obj, self.kind)


class Endpoints:
    """The routing table, kept current."""

    def __init__(self, client: ApiClient, fleet_id: str, snapshot: Snapshot, clock: Clock, metrics: Metrics) -> None:
        self._client: Final = client
        self._fleet_id: Final = fleet_id
        self._snapshot: Final = snapshot
        self._clock: Final = clock
        self._metrics: Final = metrics
        self._deployments: Final = _Mirror(ModelDeployment)
        self._replicas: Final = _Mirror(Replica)
        self._boards: Final = _Mirror(Board)
        self._changed: Final = asyncio.Event()
        stored = snapshot.load()
        self.table: Table = stored or Table()
        self._known = stored is not None

    def not_ready(self) -> str:
        """Return why the gateway cannot route yet; empty when it can."""
        if self._known:
            return ""
        return f"waiting for the first list of replicas from {self._client.cluster.server}"

    async def run(self) -> None:
        """Follow the fleet until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for mirror in (self._deployments, self._replicas, self._boards):
                tasks.create_task(self._follow(mirror))
            tasks.create_task(self._keep_table())

    async def _follow(self, mirror: _Mirror[Any]) -> None:
        while True:
            try:
                async for step in self._client.follow(mirror.kind.resource.name):
                    mirror.take(step)
                    self._changed.set()
            except (FleetError, msgspec.ValidationError) as error:
                _log.error("cannot follow", extra={"resource": mirror.kind.resource.name, "cause": str(error)})
                await self._clock.sleep(RETRY_SECONDS)

    async def _keep_table(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if not (self._deployments.synced and self._replicas.synced and self._boards.synced):
                continue
            began = self._clock.monotonic()
            table = self._plan()
            rest = max(PLAN_SECONDS, REST_SHARE * (self._clock.monotonic() - began))
            self._known = True
            if table != self.table:
                self.table = table
                await asyncio.to_thread(self._snapshot.save, table)
            self._metrics.clear(names.GATEWAY_READY_REPLICAS)
            for served in table.models.values():
                self._metrics.gauge(names.GATEWAY_READY_REPLICAS, model_name=served.name).set(len(served.targets))
            await self._clock.sleep(rest)

    def _plan(self) -> Table:
        boards = {board.metadata.name: board for board in self._boards.objects}
        deployments = self._deployments.objects
        seconds = {one.metadata.uid: int(parse_time(one.metadata.creation_timestamp).timestamp()) for one in deployments}
        return plan_table(deployments, self._replicas.objects, boards, self._fleet_id, seconds)
