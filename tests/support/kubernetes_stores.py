"""A `KubernetesStore` for tests, over the product's own API behind TLS on a free port, with SQLite under it.

The suite of all stores writes objects of any shape, because no store looks into them; the API does, so here it serves kinds of the same
names that allow everything.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from controller.api.namespaces import ensure_namespace
from controller.store.kubernetes.store import KubernetesStore
from rkfleet.clock import Clock, SystemClock
from rkfleet.kinds import Board, Event, Model, Namespace, Replica
from rkfleet.kinds.base import Object, Registry, Resource
from tests.support.api import RunningApi, new_id, running_api
from tests.support.stores import NAMESPACES


class AnyObject(Object, frozen=True, kw_only=True):
    """Holds whatever is put in."""

    spec: Annotated[dict[str, Any], Meta(description="Anything.")] = {}
    status: Annotated[dict[str, Any], Meta(description="Anything.")] = {}
    reason: Annotated[str, Meta(description="Anything.")] = ""


class AnyModel(AnyObject, frozen=True, kw_only=True):
    """Named as a Model."""

    resource: ClassVar[Resource] = Model.resource


class AnyBoard(AnyObject, frozen=True, kw_only=True):
    """Named as a Board."""

    resource: ClassVar[Resource] = Board.resource


class AnyReplica(AnyObject, frozen=True, kw_only=True):
    """Named as a Replica."""

    resource: ClassVar[Resource] = Replica.resource


class AnyEvent(AnyObject, frozen=True, kw_only=True):
    """Named as an Event."""

    resource: ClassVar[Resource] = Event.resource


ANY_KINDS = Registry((AnyModel, AnyBoard, AnyReplica, AnyEvent, Namespace))


@contextlib.asynccontextmanager
async def store_over(
    api: RunningApi, registry: Registry = ANY_KINDS, *, clock: Clock | None = None, **options: Any
) -> AsyncIterator[KubernetesStore]:
    """Open a store over a running API; `options` go to `KubernetesStore.open`."""
    clock, chance = clock or SystemClock(), random.Random(1)
    async with KubernetesStore.open(registry, kubeconfig=api.kubeconfig, clock=clock, chance=chance, **options) as store:
        yield store


@contextlib.asynccontextmanager
async def open_kubernetes_store(directory: Path, store_options: Mapping[str, Any] | None = None) -> AsyncIterator[KubernetesStore]:
    """Run an API over `directory` and open a store over it; opened again over the same directory, it holds what it held.

    Args:
        directory: Where the API keeps its database and its certificates.
        store_options: For `SqlStore.open` below the API, for example `log_events_max`.
    """
    async with running_api(directory, registry=ANY_KINDS, store_options=store_options) as api, store_over(api) as store:
        for namespace in NAMESPACES:
            await ensure_namespace(api.store, namespace, clock=SystemClock(), ids=new_id)
        yield store
