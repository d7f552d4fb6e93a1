"""The loop of namespaces that are being deleted: observe what is in one, plan, act."""

from __future__ import annotations

from typing import Final

import msgspec

from controller.planning.namespaces import Content, plan_namespace
from controller.reconcilers.act import Applier
from controller.store.base import Selection, Store, decode_item
from rkfleet.errors import NotFound
from rkfleet.kinds.base import Registry
from rkfleet.kinds.namespace import Namespace
from rkfleet.meta import ObjectMeta, Ref

__all__ = ["NamespaceReconciler"]


class _Described(msgspec.Struct):
    metadata: ObjectMeta


class NamespaceReconciler:
    """Empties namespaces that are being deleted and lets them go.

    It reads the store itself, not caches: it looks at kinds that no loop follows, and rarely.

    Args:
        store: Where the namespaces and their contents are.
        registry: Kinds that may be in a namespace.
        applier: Carries out the plans.
    """

    def __init__(self, store: Store, registry: Registry, applier: Applier) -> None:
        self._store: Final = store
        self._resources: Final = tuple(kind.resource.name for kind in registry if kind.resource.namespaced)
        self._applier: Final = applier

    async def reconcile(self, key: Ref) -> float | None:
        """See `machinery.reconciler.Reconciler`."""
        try:
            namespace = decode_item(Namespace, await self._store.get(key))
        except NotFound:
            return None
        contents = await self._contents(key.name) if namespace.metadata.deletion_timestamp else ()
        plan = plan_namespace(namespace, contents)
        await self._applier.apply(plan.actions)
        return plan.again_after_seconds

    async def _contents(self, namespace: str) -> tuple[Content, ...]:
        contents: list[Content] = []
        for resource in self._resources:
            for item in (await self._store.list(resource, Selection(namespace))).items:
                going = bool(msgspec.json.decode(item.body, type=_Described).metadata.deletion_timestamp)
                contents.append(Content(item.ref, item.uid, going))
        return tuple(contents)
