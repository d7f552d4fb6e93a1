"""The garbage loop: collects objects whose owners are gone, and ends deletions that wait for dependents.

Woken by objects that have owners or come under deletion, and by owners that go. Caches say which objects there are; whether an owner
exists is asked of the store itself. Decisions are `planning/garbage.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from controller.machinery.cache import Cache
from controller.planning.garbage import Owner, plan_dependent, plan_owner
from controller.reconcilers.act import Applier
from controller.reconcilers.views import BY_OWNER
from controller.store.base import Store
from rkfleet.errors import NotFound
from rkfleet.kinds.base import Object, Registry
from rkfleet.meta import OwnerReference, Ref

__all__ = ["GarbageReconciler"]


class GarbageReconciler:
    """See `machinery.reconciler.Reconciler`; the key is any object of the cached kinds.

    Args:
        caches: Of every kind that may own, or be owned.
        store: To see whether an owner exists.
        registry: Which kinds there are; an owner of another kind is never held to be gone.
        applier: Writes.
    """

    def __init__(self, caches: Iterable[Cache[Any]], store: Store, registry: Registry, applier: Applier) -> None:
        self._store: Final = store
        self._registry: Final = registry
        self._applier: Final = applier
        self._caches: Final = {cache.kind.resource.name: cache for cache in caches}

    async def reconcile(self, key: Ref) -> float | None:
        """Collect the object if nobody owns it any more, or go on with its deletion."""
        cache = self._caches.get(key.resource)
        obj = cache.snapshot().find_ref(key) if cache else None
        if obj is None:
            return None
        if obj.metadata.deletion_timestamp:
            dependents = self.dependents(obj.metadata.uid)
            await self._applier.apply(plan_owner(obj, dependents).actions)
        else:
            owners = [Owner(reference=one, exists=await self._exists(obj, one)) for one in obj.metadata.owner_references]
            await self._applier.apply(plan_dependent(obj, owners).actions)
        return None

    def dependents(self, uid: str) -> list[Object]:
        """Return the objects that name this uid as an owner."""
        return [one for cache in self._caches.values() for one in cache.snapshot().by(BY_OWNER, uid)]

    async def _exists(self, obj: Object, owner: OwnerReference) -> bool:
        kind = self._registry.find_kind(owner.api_version, owner.kind)
        if kind is None:
            return True
        namespace = obj.metadata.namespace if kind.resource.namespaced else ""
        try:
            item = await self._store.get(Ref(kind.resource.name, namespace, owner.name))
        except NotFound:
            return False
        return item.uid == owner.uid
