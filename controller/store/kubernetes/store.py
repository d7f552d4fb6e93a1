"""The store over the API of Kubernetes: any cluster in which the CRDs are installed, or another controller's API.

In: the calls of `controller.store.base.Store`. Out: items, pages and watches, straight from the server; nothing is kept here, caches are
`machinery/cache.py`'s. Uids, creation and deletion times are the server's.

What a write comes to is worked out by `writes.evaluate`, the same rules that the other stores keep: read the object, evaluate, send it
back with the resourceVersion that was read, and begin anew when another writer came between. So expectations (`when`), the ownership of
status, transition times and writes that change nothing mean exactly the same on every substrate, for one more read. Writes that need
nothing of what is stored (a patch without `when`, an update of a known version) are sent as they are.

Sources: Kubernetes API concepts; `apiserver/pkg/registry/rest/{create,update,delete}.go`; KEP-4358 for field selectors of custom
resources.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

import msgspec

from controller.store import writes
from controller.store.base import Item, Page, Propagation, Selection, Watch
from controller.store.kubernetes.answers import Listed, item_of, read_list, succeeded
from controller.store.kubernetes.client import Client
from controller.store.kubernetes.watch import CONNECTION_SECONDS, FieldFilter, KubernetesWatch
from controller.store.selecting import Selector
from controller.store.turn import turn
from rkfleet.clock import Clock
from rkfleet.errors import BadRequest, Conflict, Expired, NotFound
from rkfleet.kinds.base import Registry, Resource
from rkfleet.meta import LabelSelector, Ref, ResourceName, format_selector

__all__ = ["KubernetesStore"]

Json = dict[str, Any]
Subresource = Literal["", "status"]

PAGE_ITEMS: Final = 500  # Of a list that is read whole: client-go's own page, 1 MB of boards and 1 ms to read; 500 MiB at the very most.
LIST_ATTEMPTS_MAX: Final = 3  # Of a list whose pages expire before they are read.
WRITE_ATTEMPTS_MAX: Final = 32  # Of writers that race one wins each time, so this many at once all win; losing more is an endless race.
MANAGER: Final = "rkfleet-controller"  # Who wrote a field, in managedFields; of status it is the owner.

_SERVER_FIELDS: Final = frozenset({*writes.SERVER_FIELDS, "selfLink"})
_SERVED_FIELDS: Final = (("metadata", "name"), ("metadata", "namespace"))  # What every server can choose by.


class KubernetesStore:
    """See `controller.store.base.Store`; `open` is the way to one."""

    def __init__(self, client: Client, registry: Registry, clock: Clock, watch_seconds: int) -> None:
        self._client: Final = client
        self._registry: Final = registry
        self._clock: Final = clock
        self._watch_seconds: Final = watch_seconds

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        registry: Registry,
        *,
        kubeconfig: Path | None = None,
        context: str = "",
        clock: Clock,
        chance: random.Random,
        watch_seconds: int = CONNECTION_SECONDS,
    ) -> AsyncIterator[KubernetesStore]:
        """Open the store; closed, with all its connections, when the context ends.

        Args:
            registry: Kinds that can be used.
            kubeconfig: File with the cluster's address and credentials; None for the service account of the pod that this runs in.
            context: Which context of the file; empty for its current one.
            clock: For waits.
            chance: Jitter of the waits.
            watch_seconds: How long the server is asked to keep each connection of a watch.

        Raises:
            FailedPrecondition: The credentials cannot be read, or would go over a connection that is not verified.
        """
        async with Client.open(kubeconfig, context, clock=clock, chance=chance) as client:
            yield cls(client, registry, clock, watch_seconds)

    async def get(self, ref: Ref) -> Item:
        """See `Store.get`."""
        resource = self._resource(ref.resource)
        return item_of(await self._client.request("GET", _path_of(resource, ref)), resource)

    async def list(self, resource: ResourceName, selection: Selection = Selection(), *, limit: int = 0, continue_token: str = "") -> Page:
        """See `Store.list`; a list that is read whole is ordered by namespace and name, pages are in the order of the server."""
        kind, query = self._resource(resource), _query_of(selection)
        if limit:
            return await self._page(kind, selection, query, limit, continue_token)
        for attempt in range(1, LIST_ATTEMPTS_MAX + 1):
            try:
                return await self._whole(kind, selection, query, continue_token)
            except Expired:
                if continue_token or attempt == LIST_ATTEMPTS_MAX:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _whole(self, resource: Resource, selection: Selection, query: Json, token: str) -> Page:
        selector, items = _asked_here(selection), []
        while True:
            listed = await self._listed(resource, selection, {**query, "limit": str(PAGE_ITEMS), "continue": token})
            items += _items(listed, resource, selector)
            token = listed.metadata.continue_
            if not token:
                break
            await turn()
        items.sort(key=lambda item: (item.ref.namespace, item.ref.name))
        return Page(items, listed.metadata.resource_version, "", 0)

    async def _page(self, resource: Resource, selection: Selection, query: Json, limit: int, token: str) -> Page:
        """Return one page. Where fields are asked for here, pages of the server are read until `limit` items are found."""
        selector, items = _asked_here(selection), list[Item]()
        while True:
            listed = await self._listed(resource, selection, {**query, "limit": str(limit - len(items)), "continue": token})
            items += _items(listed, resource, selector)
            token = listed.metadata.continue_
            if not token or len(items) == limit:
                break
        remaining = listed.metadata.remaining_item_count if selector is None else None
        return Page(items, listed.metadata.resource_version, token, remaining if token else 0)

    async def _listed(self, resource: Resource, selection: Selection, query: Mapping[str, str]) -> Listed:
        asked = {key: value for key, value in query.items() if value}
        return read_list(await self._client.request("GET", _path_of(resource, namespace=selection.namespace), asked), resource)

    async def create(self, ref: Ref, obj: Json, *, keep_status: bool = False) -> Item:
        """See `Store.create`; a first status is a second write, so watches may see the object without it."""
        resource = self._resource(ref.resource)
        metadata = obj.get("metadata")
        named = {**metadata, "uid": "", "creationTimestamp": ""} if isinstance(metadata, dict) else metadata
        outcome = writes.evaluate(writes.Create(ref, {**obj, "metadata": named}, keep_status), None, resource, revision=0)
        made = _decoded(outcome.item)
        status = made.pop("status", None) if resource.status else None
        made["metadata"] = _without_server_fields(made["metadata"], ref)
        path = _path_of(resource, namespace=ref.namespace)
        item = item_of(await self._client.request("POST", path, {"fieldManager": MANAGER}, made), resource)
        return item if status is None else await self._first_status(item, status, resource)

    async def _first_status(self, item: Item, status: Json, resource: Resource) -> Item:
        """Give a new object its status, also when somebody wrote the object meanwhile."""
        for attempt in range(1, WRITE_ATTEMPTS_MAX + 1):
            try:
                return await self._put(item, {**_decoded(item), "status": status}, resource, "status", MANAGER)
            except Conflict:
                if attempt == WRITE_ATTEMPTS_MAX:
                    raise
                item = await self.get(item.ref)
        raise AssertionError("the last attempt returns or raises")

    async def update(
        self, ref: Ref, obj: Json, *, resource_version: str = "", uid: str = "", subresource: Subresource = "", now: datetime
    ) -> Item:
        """See `Store.update`."""
        resource = self._resource(ref.resource)
        if not resource_version or (subresource and resource.status):
            return await self._evaluated(writes.Update(ref, obj, resource_version, uid, subresource, now), resource, subresource, MANAGER)
        metadata = obj.get("metadata")
        expected = {"resourceVersion": resource_version, **({"uid": uid} if uid else {})}
        wanted = {
            **obj,
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {**_without_server_fields(metadata if isinstance(metadata, dict) else {}, ref), **expected},
        }
        return item_of(await self._client.request("PUT", _path_of(resource, ref), {"fieldManager": MANAGER}, wanted), resource)

    async def patch(
        self,
        ref: Ref,
        patch: Json,
        *,
        resource_version: str = "",
        uid: str = "",
        when: Mapping[str, Any] | None = None,
        subresource: Subresource = "",
        now: datetime,
    ) -> Item:
        """See `Store.patch`."""
        resource = self._resource(ref.resource)
        if when or (subresource and resource.status):
            write = writes.Patch(ref, patch, resource_version, uid, when or {}, subresource, now)
            return await self._evaluated(write, resource, subresource, MANAGER)
        metadata = patch.get("metadata")
        wanted = {key: value for key, value in metadata.items() if key not in _SERVER_FIELDS} if isinstance(metadata, dict) else {}
        if resource_version:
            wanted["resourceVersion"] = resource_version
        if uid:
            wanted["uid"] = uid
        sent = {key: value for key, value in patch.items() if key not in ("metadata", "apiVersion", "kind")}
        if wanted:
            sent["metadata"] = wanted
        answer = await self._client.request(
            "PATCH", _path_of(resource, ref), {"fieldManager": MANAGER}, sent, media_type="application/merge-patch+json"
        )
        return item_of(answer, resource)

    async def patch_status(
        self,
        ref: Ref,
        uid: str,
        owner: str,
        fields: Mapping[str, Any],
        conditions: Sequence[Json],
        *,
        when: Mapping[str, Any] | None = None,
        now: datetime,
    ) -> Item:
        """See `Store.patch_status`."""
        write = writes.PatchStatus(ref, uid, owner, fields, conditions, when or {}, now)
        return await self._evaluated(write, self._resource(ref.resource), "status", owner)

    async def delete(
        self,
        ref: Ref,
        *,
        uid: str = "",
        resource_version: str = "",
        propagation: Propagation = "Background",
        now: datetime,
    ) -> Item:
        """See `Store.delete`; the time of deletion is the server's, and so is `now`."""
        del now
        resource = self._resource(ref.resource)
        for attempt in range(1, WRITE_ATTEMPTS_MAX + 1):
            stored = await self.get(ref)
            preconditions = {"uid": uid or stored.uid, **({"resourceVersion": resource_version} if resource_version else {})}
            body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation, "preconditions": preconditions}
            try:
                answer = await self._client.request("DELETE", _path_of(resource, ref), None, body)
            except Conflict:
                if uid or resource_version or attempt == WRITE_ATTEMPTS_MAX:
                    raise
                continue  # It went and came again under its name since it was read.
            return stored if succeeded(answer) else item_of(answer, resource)
        raise AssertionError("the last attempt returns or raises")

    async def watch(
        self, resource: ResourceName, selection: Selection = Selection(), *, resource_version: str, bookmarks: bool = False
    ) -> Watch:
        """See `Store.watch`; that a version is too old is mostly told by the first iteration."""
        kind, query = self._resource(resource), _query_of(selection)
        path = _path_of(kind, namespace=selection.namespace)
        if not resource_version:
            raise BadRequest(f"a watch of {resource} needs the resourceVersion to start after; list first")
        if resource_version == "0":  # To a server this means any version, and a watch that begins with what is there.
            raise Expired(f"{resource}: what came after the beginning of time is not known; list again")
        filter, selector = None, _asked_here(selection)
        if selector is not None:
            filter = FieldFilter(selector, await self._matching(kind, selection, query, selector, resource_version))
        watch = KubernetesWatch(
            self._client,
            kind,
            path,
            query,
            resource_version,
            bookmarks=bookmarks,
            filter=filter,
            clock=self._clock,
            connection_seconds=self._watch_seconds,
        )
        await watch.start()
        return watch

    async def _matching(self, resource: Resource, selection: Selection, query: Json, selector: Selector, version: str) -> Sequence[Ref]:
        """Return what a selection matched at a version, for a watch that must know who stops to match.

        Raises:
            Expired: The server does not know that moment any more.
        """
        first = {"resourceVersion": version, "resourceVersionMatch": "Exact"}
        found, token = list[Ref](), ""
        while True:
            page = {**query, "limit": str(PAGE_ITEMS), **({"continue": token} if token else first)}
            listed = await self._listed(resource, selection, page)
            found += [item.ref for item in _items(listed, resource, selector)]
            token = listed.metadata.continue_
            if not token:
                return found
            await turn()

    async def _evaluated(
        self, write: writes.Update | writes.Patch | writes.PatchStatus, resource: Resource, subresource: Subresource, manager: str
    ) -> Item:
        """Read, evaluate, and write against the version that was read; anew when another writer came between."""
        for attempt in range(1, WRITE_ATTEMPTS_MAX + 1):
            stored = await self.get(write.ref)
            outcome = writes.evaluate(write, stored, resource, revision=0)
            if not outcome.type:
                return stored
            try:
                return await self._put(stored, _decoded(outcome.item), resource, subresource, manager)
            except Conflict:
                if attempt == WRITE_ATTEMPTS_MAX:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _put(self, stored: Item, obj: Json, resource: Resource, subresource: Subresource, manager: str) -> Item:
        metadata = {**obj["metadata"], "resourceVersion": stored.resource_version}
        path = _path_of(resource, stored.ref, subresource if resource.status else "")
        answer = await self._client.request("PUT", path, {"fieldManager": manager}, {**obj, "metadata": metadata})
        return item_of(answer, resource)

    def _resource(self, name: ResourceName) -> Resource:
        kind = self._registry.find(name)
        if kind is None:
            raise NotFound(f"there is no resource {name!r}")
        return kind.resource


def _path_of(resource: Resource, ref: Ref | None = None, subresource: str = "", *, namespace: str = "") -> str:
    """Return the path of an object, or of a collection in a namespace (empty for all).

    Raises:
        NotFound: No path can name it.
    """
    root = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
    name = ref.name if ref else ""
    namespace = ref.namespace if ref else namespace
    # A segment of dots would be taken for the way up, to another resource.
    if (ref is not None and (not name or bool(namespace) != resource.namespaced)) or {name, namespace} & {".", ".."}:
        raise NotFound(f'{resource.name} "{name}" not found', name=name, resource=resource.name, namespace=namespace)
    parts = [*(("namespaces", namespace) if namespace else ()), resource.plural, *((name,) if ref else ())]
    return "/".join([root, *(quote(part, safe="") for part in parts), *((subresource,) if subresource else ())])


def _query_of(selection: Selection) -> dict[str, str]:
    """Return the selectors that every server understands."""
    query: dict[str, str] = {}
    if selection.labels != LabelSelector():
        query["labelSelector"] = format_selector(selection.labels)
    served = [term for term in selection.fields if term[0] in _SERVED_FIELDS]
    if served:
        query["fieldSelector"] = ",".join(f"{'.'.join(path)}{'=' if equal else '!='}{value}" for path, value, equal in served)
    return query


def _asked_here(selection: Selection) -> Selector | None:
    """Return the terms over fields that no server has to know, or None if there are none."""
    fields = tuple(term for term in selection.fields if term[0] not in _SERVED_FIELDS)
    return Selector(Selection(fields=fields)) if fields else None


def _items(listed: Listed, resource: Resource, selector: Selector | None) -> list[Item]:
    items = [item_of(raw, resource) for raw in listed.items or ()]
    return items if selector is None else [item for item in items if selector.selects(item)]


def _without_server_fields(metadata: Json, ref: Ref) -> Json:
    kept = {key: value for key, value in metadata.items() if key not in _SERVER_FIELDS}
    return {**kept, "name": ref.name, **({"namespace": ref.namespace} if ref.namespace else {})}


def _decoded(item: Item) -> Json:
    obj: Json = msgspec.json.decode(item.body)
    return obj
