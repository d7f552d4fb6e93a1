"""The deployment loop: one ModelDeployment at a time, from its spec to revisions and Replicas.

Woken by the deployment itself, its revisions and Replicas, the Model that it names, the boards that its Replicas are on, and other
deployments that claim the same model name. Decisions are `planning/deployment.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final, ParamSpec, TypeVar

import msgspec

from controller.planning.claims import find_holder, served_name
from controller.planning.deployment import BoardsView, Observed, plan_deployment
from controller.planning.eviction import evicting_boards
from controller.planning.health import view_boards
from controller.planning.progress import Reached, plan_progress
from controller.reconcilers.act import Applier
from controller.reconcilers.views import BY_DEPLOYMENT, BY_OWNER, PresenceReader, Views, scoped
from controller.store.base import Selection, Store
from rkfleet.clock import Clock
from rkfleet.errors import NotFound
from rkfleet.kinds import Board, ModelDeployment, ModelRevision, Replica
from rkfleet.meta import LABEL_DEPLOYMENT, LabelSelector, Ref

__all__ = ["DeploymentReconciler", "claimants"]

# Planning takes about 5 µs for each replica, and nothing may hold the event loop for 20 ms: beyond this a thread makes the plan, which is
# a pure function over frozen values. For fewer the way to the thread and back would cost more than the plan.
INLINE_REPLICAS_MAX: Final = 1_000

P = ParamSpec("P")
T = TypeVar("T")

_log: Final = logging.getLogger(__name__)


class DeploymentReconciler:
    """See `machinery.reconciler.Reconciler`; the key is a ModelDeployment.

    Args:
        views: Caches.
        store: For the boards that no cache knows.
        presence: Which boards are in session.
        applier: Writes.
        clock: Wall time for planning, monotonic time for the progress deadline.
    """

    def __init__(self, views: Views, store: Store, presence: PresenceReader, applier: Applier, clock: Clock) -> None:
        self._views: Final = views
        self._store: Final = store
        self._presence: Final = presence
        self._applier: Final = applier
        self._clock: Final = clock
        self._reached: Final[dict[str, Reached]] = {}  # By uid; after a restart of the controller see planning/progress.py.

    async def reconcile(self, key: Ref) -> float | None:
        """Bring the deployment one step closer to its spec."""
        deployment = self._views.deployments.snapshot().find_ref(key)
        if deployment is None:
            return None
        observed = await self._observe(deployment)
        now, uid = self._clock.now(), deployment.metadata.uid
        # Not in a thread: half a millisecond for 1,000 replicas, and what is forgotten meanwhile would come back.
        reached, stalled = plan_progress(self._reached.get(uid), deployment, observed.replicas, now, self._clock.monotonic())
        self._reached[uid] = reached
        observed = msgspec.structs.replace(observed, stalled_seconds=stalled)
        plan = await _think(len(observed.replicas), plan_deployment, observed, now)
        if plan.structural:
            await self._check_current(observed)
        await self._applier.apply(plan.actions)
        if plan.waiting:
            _log.debug("%s waits for %s", key, plan.waiting)
        return plan.again_after_seconds

    def forget(self, uid: str) -> None:
        """Forget a deployment that is gone."""
        self._reached.pop(uid, None)

    async def _observe(self, deployment: ModelDeployment) -> Observed:
        namespace, uid = deployment.metadata.namespace, deployment.metadata.uid
        index = scoped(deployment, deployment.metadata.name)
        owned = self._views.replicas.snapshot().by(BY_OWNER, uid)
        revisions = self._views.revisions.snapshot().by(BY_DEPLOYMENT, index)
        holder = find_holder(deployment, self._views.deployments.snapshot())
        return Observed(
            deployment=deployment,
            model=self._views.models.snapshot().find(deployment.spec.template.model, namespace),
            revisions=tuple(one for one in revisions if any(owner.uid == uid for owner in one.metadata.owner_references)),
            replicas=owned,
            boards=await self._view_boards(deployment, owned),
            holder="" if holder.metadata.uid == uid else f"{holder.metadata.namespace}/{holder.metadata.name}",
        )

    async def _view_boards(self, deployment: ModelDeployment, replicas: Iterable[Replica]) -> BoardsView:
        boards = self._views.boards.snapshot()
        named = {one.spec.board_name for one in replicas if one.spec.board_name}
        missing = {name for name in named if boards.find(name) is None and await self._is_missing(name)}
        presences = {name: self._presence.of(name) for name in named - missing}
        if any(not one.connected for one in presences.values()):  # Whether one is lost depends on how many are.
            presences |= {board.metadata.name: self._presence.of(board.metadata.name) for board in boards}
        place = deployment.spec.placement
        view = view_boards(tuple(boards), presences, place.board_lost_seconds, named, missing)
        known = (board for name in named if (board := boards.find(name)) is not None)
        return msgspec.structs.replace(view, evicting=evicting_boards(known, place.tolerations))

    async def _is_missing(self, board: str) -> bool:
        """Ask the store itself: replicas of a board that only this cache does not know yet must not be replaced."""
        try:
            await self._store.get(Ref(Board.resource.name, "", board))
        except NotFound:
            return True
        return False

    async def _check_current(self, observed: Observed) -> None:
        meta = observed.deployment.metadata
        itself = Selection(namespace=meta.namespace, fields=((("metadata", "name"), meta.name, True),))
        owned = Selection(namespace=meta.namespace, labels=LabelSelector(match_labels={LABEL_DEPLOYMENT: meta.name}))
        await self._applier.check_current(ModelDeployment, itself, (observed.deployment,))
        await self._applier.check_current(ModelRevision, owned, observed.revisions)
        await self._applier.check_current(Replica, owned, observed.replicas)


async def _think(size: int, decide: Callable[P, T], *known: P.args, **named: P.kwargs) -> T:
    """Return what `decide` says, from a thread where it would hold the loop."""
    if size <= INLINE_REPLICAS_MAX:
        return decide(*known, **named)
    return await asyncio.to_thread(decide, *known, **named)


def claimants(before: ModelDeployment | None, after: ModelDeployment | None, known: Iterable[ModelDeployment]) -> Iterable[Ref]:
    """Yield the deployments to wake when one of them begins or ends to claim a model name."""
    claims = {_claim(one) for one in (before, after)}
    if len(claims) == 2:
        for one in known:
            if served_name(one) in claims:
                yield one.ref


def _claim(deployment: ModelDeployment | None) -> str:
    """Return the name that is claimed; empty for none."""
    return served_name(deployment) if deployment is not None and not deployment.metadata.deletion_timestamp else ""
