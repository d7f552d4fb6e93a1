"""Namespaces as the API needs them: objects are made only in one that exists and is not being deleted.

In: the store. Out: nothing, or the error of Kubernetes. `writes.py` asks before every create in a namespace; `app.py` of the controller
calls `ensure_namespace` for `default` at start.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import msgspec

from controller.store.base import Store
from rkfleet.clock import Clock, format_time
from rkfleet.errors import AlreadyExists, NotFound, PermissionDenied
from rkfleet.kinds.namespace import CONTENTS_FINALIZER, Namespace
from rkfleet.meta import Ref

__all__ = ["DEFAULT_NAMESPACE", "active", "ensure_namespace", "held", "require_namespace"]

Json = dict[str, Any]

DEFAULT_NAMESPACE: Final = "default"


async def ensure_namespace(store: Store, name: str, *, clock: Clock, ids: Callable[[], str]) -> None:
    """Create the namespace unless it is there; one that is there costs no write, which a full disk would refuse."""
    resource = Namespace.resource
    ref = Ref(resource.name, "", name)
    with suppress(NotFound):
        await store.get(ref)
        return
    metadata = {"name": name, "uid": ids(), "creationTimestamp": format_time(clock.now())}
    made = active({"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, "spec": {}})
    with suppress(AlreadyExists):
        await store.create(ref, made, keep_status=True)


async def require_namespace(store: Store, name: str) -> None:
    """Return if objects may be created in the namespace.

    Raises:
        NotFound: There is none.
        PermissionDenied: It is being deleted.
    """
    resource = Namespace.resource
    try:
        item = await store.get(Ref(resource.name, "", name))
    except NotFound as error:
        raise NotFound(f'{resource.name} "{name}" not found', resource=resource.name, name=name) from error
    if msgspec.json.decode(item.body)["metadata"].get("deletionTimestamp"):
        message = f'unable to create new content in namespace "{name}" because it is being terminated'
        raise PermissionDenied(message, resource=resource.name, name=name)


def active(namespace: Json) -> Json:
    """Return a new namespace as it begins: in use, and held until everything in it is gone."""
    return {**held(namespace), "status": {"phase": "Active"}}


def held(namespace: Json) -> Json:
    """Return a namespace that, when it is deleted, stays until everything in it is gone; one that is being deleted already is as it is."""
    metadata = namespace["metadata"]
    finalizers = metadata.get("finalizers", [])
    if metadata.get("deletionTimestamp") or CONTENTS_FINALIZER in finalizers:
        return namespace
    return {**namespace, "metadata": {**metadata, "finalizers": [*finalizers, CONTENTS_FINALIZER]}}
