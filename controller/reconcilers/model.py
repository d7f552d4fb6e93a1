"""The model loop: whether all files of a Model are in the registry, and whether a deleted Model may go.

Woken by Models, and by the Replicas and revisions that use them; a missing file is asked for again after a while, because nobody tells
when a push ends. Decisions are `planning/model.py`'s.
"""

from __future__ import annotations

from typing import Final

from controller.planning.model import plan_model
from controller.reconcilers.act import Applier
from controller.reconcilers.views import BY_MODEL, BY_REVISION, Blobs, Views, scoped
from rkfleet.errors import FleetError
from rkfleet.kinds import Model
from rkfleet.meta import Ref
from rkfleet.packaging import repository_name

__all__ = ["ModelReconciler"]


class ModelReconciler:
    """See `machinery.reconciler.Reconciler`; the key is a Model."""

    def __init__(self, views: Views, blobs: Blobs, applier: Applier) -> None:
        self._views: Final = views
        self._blobs: Final = blobs
        self._applier: Final = applier

    async def reconcile(self, key: Ref) -> float | None:
        """Write what the registry has of the model's files."""
        model = self._views.models.snapshot().find_ref(key)
        if model is None:
            return None
        missing, why = await self._missing(model)
        plan = plan_model(model, missing, why, self._users(model))
        await self._applier.apply(plan.actions)
        return plan.again_after_seconds

    async def _missing(self, model: Model) -> tuple[frozenset[str] | None, str]:
        digests = {one.digest for variant in model.spec.variants for one in variant.artifact.files}
        try:
            repository = repository_name(model.metadata.namespace, model.metadata.name)
            return await self._blobs.missing_blobs(repository, sorted(digests)), ""
        except FleetError as error:
            return None, error.message

    def _users(self, model: Model) -> list[str]:
        revisions = self._views.revisions.snapshot().by(BY_MODEL, scoped(model, model.metadata.name))
        replicas = self._views.replicas.snapshot()
        return sorted(one.metadata.name for rev in revisions for one in replicas.by(BY_REVISION, scoped(rev, rev.metadata.name)))
