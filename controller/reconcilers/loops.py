"""Which loop is woken by what: puts every reconciler and its caches into a manager.

Called once by `app.py` (and by tests, with the real manager). What wakes a loop is chosen so that each change costs the keys that it can
matter to; a key that is woken for nothing plans nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from controller.machinery.manager import Manager
from controller.machinery.reconciler import Source, itself
from controller.machinery.workqueue import WorkQueue
from controller.reconcilers import deployment, placement
from controller.reconcilers.act import Applier
from controller.reconcilers.assignment import AssignmentMinter, AssignmentReconciler
from controller.reconcilers.deployment import DeploymentReconciler
from controller.reconcilers.fleet_gauges import follow_fleet
from controller.reconcilers.garbage import GarbageReconciler
from controller.reconcilers.health import HealthReconciler
from controller.reconcilers.identity import IdentityReconciler
from controller.reconcilers.model import ModelReconciler
from controller.reconcilers.namespaces import NamespaceReconciler
from controller.reconcilers.placement import PlacementReconciler
from controller.reconcilers.views import (
    BY_BOARD,
    BY_DEPLOYMENT,
    BY_MODEL,
    BY_REVISION,
    Blobs,
    Identities,
    Offers,
    PresenceReader,
    Sessions,
    Views,
    make_metadata_views,
    make_views,
    scoped,
)
from controller.store.base import Store
from rkfleet import conditions
from rkfleet.clock import Clock
from rkfleet.kinds import Board, ConfigMap, Lease, Model, ModelDeployment, ModelRevision, Namespace, Replica, Secret
from rkfleet.kinds.base import Object, Registry
from rkfleet.meta import Ref
from rkfleet.metrics import Metrics

__all__ = ["Loops", "add_loops", "garbage_keys"]

DEPLOYMENTS_AT_ONCE: Final = 4  # One key is never worked on twice at once; several share the commits that they wait for.
BOARDS_AT_ONCE: Final = 64  # A change of many boards at once (a rollout, a restart) waits for the disk, not for each other.
OWNING_BUILT_INS: Final = (Namespace, Secret, ConfigMap, Lease)
"""Built-in kinds that own others or have owners; Events have not, as in Kubernetes, and there are too many of them to follow."""
MODELS_AT_ONCE: Final = 4  # Requests to the registry.


class Loops:
    """The queues of all loops, for facts that no store holds."""

    def __init__(self, *of_boards: WorkQueue) -> None:
        self._of_boards: Final = of_boards

    def wake_board(self, board: str) -> None:
        """Look at the board again, because its presence has changed or somebody was refused. Does not block."""
        for queue in self._of_boards:
            queue.add(Ref(Board.resource.name, "", board))


def add_loops(
    manager: Manager,
    store: Store,
    registry: Registry,
    *,
    clock: Clock,
    random: random.Random,
    applier: Applier,
    minter: AssignmentMinter,
    sessions: Sessions,
    offers: Offers,
    identities: Identities,
    blobs: Blobs,
    metrics: Metrics | None = None,
) -> Loops:
    """Add every loop to the manager.

    Args:
        manager: Runs them and their caches.
        store: What they watch and write.
        registry: Kinds that owner references may name.
        clock: Wall and monotonic time.
        random: For jitter.
        applier: Writes what was planned.
        minter: Numbers assignments; the same that the hub asks at the start of a session.
        sessions: Who is in session.
        offers: Takes assignments to boards.
        identities: Who holds sessions, and who was refused.
        blobs: What the registry holds.
        metrics: Counts what caches do, and shows the fleet as they know it.
    """
    views = make_views(store, clock=clock, random=random, metrics=metrics)
    presence = PresenceReader(sessions, clock)
    deployments = DeploymentReconciler(views, store, presence, applier, clock)
    manager.add("deployment", deployments, *_deployment_sources(views, deployments.forget), workers=DEPLOYMENTS_AT_ONCE, rest_share=4.0)
    manager.add("placement", PlacementReconciler(views, applier), *(Source(cache, _placement) for cache in views))
    assignments = manager.add(
        "assignment", AssignmentReconciler(minter, offers, presence), *_assignment_sources(views), workers=BOARDS_AT_ONCE
    )
    health = manager.add("health", HealthReconciler(views, presence, applier), Source(views.boards, itself), workers=BOARDS_AT_ONCE)
    identity = IdentityReconciler(store, identities, applier, clock)
    revocation = manager.add("identity", identity, Source(views.boards, _of_identity), workers=BOARDS_AT_ONCE)
    namespaces, *others = make_metadata_views(store, OWNING_BUILT_INS, clock=clock, random=random, metrics=metrics)
    collected = (*views, namespaces, *others)
    garbage = GarbageReconciler(collected, store, registry, applier)
    manager.add("garbage", garbage, *(Source(cache, garbage_keys(garbage, registry)) for cache in collected))
    manager.add("model", ModelReconciler(views, blobs, applier), *_model_sources(views), workers=MODELS_AT_ONCE, rest_share=4.0)
    manager.add("namespace", NamespaceReconciler(store, registry, applier), Source(namespaces, itself))
    if metrics is not None:
        follow_fleet(views, metrics)
    return Loops(health, assignments, revocation)


# ---- Deployment ----------------------------------------------------------------------------------------------------------------


def _deployment_sources(views: Views, forget: Callable[[str], None]) -> Iterator[Source]:
    def of_deployment(old: ModelDeployment | None, new: ModelDeployment | None) -> Iterable[Ref]:
        if old is not None and _is_gone(old, new):
            forget(old.metadata.uid)
        yield from itself(old, new)
        yield from deployment.claimants(old, new, views.deployments.snapshot())

    def of_model(old: Model | None, new: Model | None) -> Iterable[Ref]:
        if (model := new or old) is not None and _declared(old) != _declared(new):
            yield from (one.ref for one in views.deployments.snapshot().by(BY_MODEL, scoped(model, model.metadata.name)))

    def of_board(old: Board | None, new: Board | None) -> Iterable[Ref]:
        if (board := new or old) is not None and _takes_part(old) != _takes_part(new):
            yield from _once(_deployment_of(one) for one in views.replicas.snapshot().by(BY_BOARD, board.metadata.name))

    yield Source(views.deployments, of_deployment)
    yield Source(views.revisions, _owners_key)
    yield Source(views.replicas, _owners_key)
    yield Source(views.models, of_model)
    yield Source(views.boards, of_board)


def _owners_key(old: Replica | ModelRevision | None, new: Replica | ModelRevision | None) -> Iterable[Ref]:
    if (known := new or old) is not None:
        yield _deployment_of(known)


def _deployment_of(obj: Replica | ModelRevision) -> Ref:
    return Ref(ModelDeployment.resource.name, obj.metadata.namespace, obj.spec.deployment_name)


def _takes_part(board: Board | None) -> object:
    """Return what a deployment with replicas on the board must know of it: whether it is there, and whether they must leave it."""
    if board is None:
        return None
    found = conditions.find(board.status.conditions, conditions.READY)
    return (found.status, found.reason) if found else None, board.spec.taints


def _declared(obj: Model | Replica | ModelDeployment | None) -> object:
    """Return what a writer of specs decided about an object: reports change none of it."""
    return (obj.metadata.uid, obj.metadata.generation, obj.metadata.deletion_timestamp) if obj else None


# ---- Placement -----------------------------------------------------------------------------------------------------------------


def _placement(_old: Object | None, _new: Object | None) -> Iterable[Ref]:
    """Wake placement by everything: it looks into an index first, and in a settled fleet there is nothing in it."""
    yield placement.KEY


# ---- Assignment ----------------------------------------------------------------------------------------------------------------


def _assignment_sources(views: Views) -> Iterator[Source]:
    def of_replica(old: Replica | None, new: Replica | None) -> Iterable[Ref]:
        if _declared(old) != _declared(new):
            yield from _boards_of(one for one in (old, new) if one is not None)

    def of_deployment(old: ModelDeployment | None, new: ModelDeployment | None) -> Iterable[Ref]:
        if (known := new or old) is not None and _declared(old) != _declared(new):
            yield from _boards_of(views.replicas.snapshot().by(BY_DEPLOYMENT, scoped(known, known.metadata.name)))

    def of_model(old: Model | None, new: Model | None) -> Iterable[Ref]:
        if (known := new or old) is not None and _declared(old) != _declared(new):
            yield from _boards_of(_users(views, known))

    yield Source(views.replicas, of_replica)
    yield Source(views.deployments, of_deployment)
    yield Source(views.models, of_model)
    yield Source(views.boards, _of_tuning)


def _of_tuning(old: Board | None, new: Board | None) -> Iterable[Ref]:
    """Yield a board whose tuning was changed; one that is seen for the first time gets its assignment when it opens a session."""
    if old is not None and new is not None and old.spec.tuning != new.spec.tuning:
        yield new.ref


def _users(views: Views, model: Model) -> Iterator[Replica]:
    replicas = views.replicas.snapshot()
    for revision in views.revisions.snapshot().by(BY_MODEL, scoped(model, model.metadata.name)):
        yield from replicas.by(BY_REVISION, scoped(revision, revision.metadata.name))


def _boards_of(replicas: Iterable[Replica]) -> Iterable[Ref]:
    return _once(Ref(Board.resource.name, "", one.spec.board_name) for one in replicas if one.spec.board_name)


def _once(keys: Iterable[Ref]) -> Iterable[Ref]:
    """Return each key once, in the order in which it first came: a set's order would differ from process to process."""
    return dict.fromkeys(keys)


# ---- Identity ------------------------------------------------------------------------------------------------------------------


def _of_identity(old: Board | None, new: Board | None) -> Iterable[Ref]:
    """Wake the identity loop by boards that come, go or are bound anew: reports of boards do none of it."""
    if (board := new or old) is not None and _identity(old) != _identity(new):
        yield board.ref


def _identity(board: Board | None) -> object:
    return (board.metadata.uid, board.metadata.annotations) if board else None


# ---- Garbage and models ----------------------------------------------------------------------------------------------------------


def garbage_keys(garbage: GarbageReconciler, registry: Registry) -> Callable[[Object | None, Object | None], Iterable[Ref]]:
    """Return what a change of an object wakes: itself, and who waits for it or for what it let go of."""

    def keys(old: Object | None, new: Object | None) -> Iterable[Ref]:
        if old is not None and _is_gone(old, new):
            yield from (one.ref for one in garbage.dependents(old.metadata.uid))
            yield from _owners_of(old, registry)
        elif old is not None and _owners_differ(old, new):
            yield from _owners_of(old, registry)  # An owner that orphans what it owns waits for the last to let go of it.
        if new is not None and (new.metadata.deletion_timestamp or (new.metadata.owner_references and _owners_differ(old, new))):
            yield new.ref

    return keys


def _is_gone(old: Object, new: Object | None) -> bool:
    """Return whether an object is not there any more, also when a cache that listed again found another one under its name."""
    return new is None or new.metadata.uid != old.metadata.uid


def _owners_differ(old: Object | None, new: Object | None) -> bool:
    return old is None or new is None or old.metadata.owner_references != new.metadata.owner_references


def _owners_of(obj: Object, registry: Registry) -> Iterator[Ref]:
    """Yield who may be waiting for this object to be gone."""
    for owner in obj.metadata.owner_references:
        kind = registry.find_kind(owner.api_version, owner.kind)
        if kind is not None:
            yield Ref(kind.resource.name, obj.metadata.namespace if kind.resource.namespaced else "", owner.name)


def _model_sources(views: Views) -> Iterator[Source]:
    def of_model(old: Model | None, new: Model | None) -> Iterable[Ref]:
        if _declared(old) != _declared(new):
            yield from itself(old, new)

    def of_revision(old: ModelRevision | None, new: ModelRevision | None) -> Iterable[Ref]:
        if (revision := new or old) is not None and (old is None or new is None):
            yield Ref(Model.resource.name, revision.metadata.namespace, revision.spec.template.model)

    def of_replica(old: Replica | None, new: Replica | None) -> Iterable[Ref]:
        if (replica := new or old) is not None and (old is None or new is None):
            revision = views.revisions.snapshot().find(replica.spec.revision_name, replica.metadata.namespace)
            yield from of_revision(None, revision)

    yield Source(views.models, of_model)
    yield Source(views.revisions, of_revision)
    yield Source(views.replicas, of_replica)
