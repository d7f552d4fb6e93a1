"""The store seam: what API server, reconcilers and sessions hold, and what every implementation keeps.

The store is a revisioned log of objects with Kubernetes semantics. Objects are JSON; the unit that is kept, cached and watched is
`Item`: the encoded bytes with the few facts that selection needs. Implementations: `store/sql/` (SQLite and PostgreSQL), which keeps the
objects itself, and `store/kubernetes/`, which asks the API of a cluster. One contract suite
(`tests/contract/store_suite.py`) runs over each of them.

What every implementation keeps:

- A write is acknowledged after it is durable, and is visible to every read and watch in commit order.
- `metadata.resourceVersion` is opaque: compare for equality only. It comes from one counter for all kinds here, from etcd there.
- `metadata.generation` starts at 1 and rises when something outside `metadata` and `status` changed.
- A write that changes nothing is answered with the stored item; it bumps nothing and no watch sees it.
- `update` and `patch` without subresource leave `status` as stored; with `"status"` they change nothing but `status`. For kinds
  without the status subresource (`Resource.status` is False) there is no such split.
- `create` drops `status` of kinds with the status subresource, unless `keep_status` says otherwise (controllers that make an object
  together with its first status). Where the objects are a server's, that is two writes, and a watch may see the first alone.
- Time and identity are the caller's or the server's. A store that keeps the objects itself has no clock and no random ids: `create` takes
  objects that carry `metadata.uid` and `metadata.creationTimestamp`, `delete` takes `now`. A server gives its own; whoever needs the uid
  reads it from the answer. Times of transition are always the caller's `now`.
- Namespaces that are written into exist.
- A watch from revision r delivers exactly what came after r, in order, without gaps and duplicates, or raises Expired.
- Validation is not the store's business; names are. Callers pass valid objects.

Errors: NotFound, AlreadyExists, Conflict (resourceVersion, uid or `when` differ), Expired (page or watch too old), Unavailable (disk
full, database locked, stopping; the message says which), Invalid (object over `OBJECT_BYTES_MAX`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, Protocol, TypeVar

import msgspec

from rkfleet.kinds.base import Object, decode
from rkfleet.meta import LabelSelector, Ref, ResourceName

__all__ = ["OBJECT_BYTES_MAX", "Change", "Item", "Page", "Propagation", "Selection", "Store", "Watch", "decode_item"]

OBJECT_BYTES_MAX: Final = 1 << 20  # As etcd's practical limit: an object that is larger holds data, not declarations.

Json = dict[str, Any]
Propagation = Literal["Background", "Foreground", "Orphan"]


class Item(msgspec.Struct, frozen=True, gc=False):
    """One stored object.

    Attributes:
        ref: Its name.
        uid: Its identity in time.
        resource_version: Its version; `body` carries the same.
        labels: Its labels, for selection.
        body: The whole object as JSON, with apiVersion, kind and metadata.
    """

    ref: Ref
    uid: str
    resource_version: str
    labels: Mapping[str, str]
    body: bytes


class Selection(msgspec.Struct, frozen=True, gc=False):
    """Which objects of a resource: a namespace (empty for all), labels, and `(path, value, equal)` terms over fields.

    A field that is absent compares equal to the empty string.
    """

    namespace: str = ""
    labels: LabelSelector = LabelSelector()
    fields: tuple[tuple[tuple[str, ...], str, bool], ...] = ()


class Page(msgspec.Struct, frozen=True):
    """A list: items in order, as they were at `resource_version`.

    Attributes:
        resource_version: Watch from here to see everything that came after.
        continue_token: Opaque; empty on the last page.
        remaining: Items after this page, where the implementation knows.
    """

    items: Sequence[Item]
    resource_version: str
    continue_token: str = ""
    remaining: int | None = None


class Change(msgspec.Struct, frozen=True, gc=False):
    """One step of a watch. An object that starts or stops to match the selection is ADDED or DELETED.

    A BOOKMARK carries only `resource_version`; a watch can be resumed from it.
    """

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    resource_version: str
    item: Item | None = None


class Watch(Protocol):
    """A stream of changes. It must be closed; iteration raises Expired when the watcher fell behind the named buffer limit."""

    def __aiter__(self) -> AsyncIterator[Change]:
        """Iterate over changes in commit order."""
        ...

    async def aclose(self) -> None:
        """Stop; a waiting iteration ends."""
        ...


class Store(Protocol):
    """A revisioned log of objects; the module docstring says what every implementation keeps."""

    async def get(self, ref: Ref) -> Item:
        """Return the object.

        Raises:
            NotFound: There is none.
        """
        ...

    async def list(self, resource: ResourceName, selection: Selection = Selection(), *, limit: int = 0, continue_token: str = "") -> Page:
        """Return the objects of one resource; `limit` 0 returns all, ordered by namespace and name.

        Pages are ordered the same way where the store keeps the objects itself; a server has its own order.

        Raises:
            Expired: `continue_token` is too old.
        """
        ...

    async def create(self, ref: Ref, obj: Json, *, keep_status: bool = False) -> Item:
        """Store a new object with `metadata.uid` and `metadata.creationTimestamp` as the caller set them, or as the server gives them.

        Raises:
            AlreadyExists: The name is taken.
        """
        ...

    async def update(
        self, ref: Ref, obj: Json, *, resource_version: str = "", uid: str = "", subresource: Literal["", "status"] = "", now: datetime
    ) -> Item:
        """Replace the object; empty `resource_version` or `uid` means any.

        An object with a deletionTimestamp whose finalizers are now empty is removed; its last state is returned.

        Raises:
            NotFound: There is none.
            Conflict: It has another resource version or uid.
        """
        ...

    async def patch(
        self,
        ref: Ref,
        patch: Json,
        *,
        resource_version: str = "",
        uid: str = "",
        when: Mapping[str, Any] | None = None,
        subresource: Literal["", "status"] = "",
        now: datetime,
    ) -> Item:
        """Apply a JSON merge patch (RFC 7396) to the stored JSON, so that fields unknown here are kept.

        Args:
            ref: Name of the object.
            patch: Merge patch over the whole object.
            resource_version: Expected version; empty for any.
            uid: Expected uid; empty for any.
            when: Expected values by dotted path, for example `{"status.session.number": 12}`; an absent path is None.
            subresource: As for `update`.
            now: Wall time, for transition and deletion times.

        Raises:
            NotFound: There is none.
            Conflict: An expectation does not hold.
        """
        ...

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
        """Replace what `owner` owns of `status`, and nothing else.

        `fields` are camelCase fields directly below `status`; a field of the owner (`Resource.owners`) that is not given is removed.
        `conditions` (without transition times) are put in by type; a condition type of the owner that is not given is removed.
        Other writers' fields and conditions are not touched.

        Raises:
            NotFound: There is none, or another uid.
            Conflict: `when` does not hold.
        """
        ...

    async def delete(
        self,
        ref: Ref,
        *,
        uid: str = "",
        resource_version: str = "",
        propagation: Propagation = "Background",
        now: datetime,
    ) -> Item:
        """Delete the object, or mark it with a deletionTimestamp while finalizers hold it; the last state is returned.

        `uid` and `resource_version` bind the deletion; empty means any. Of an object that is gone at once, a server may not say with which
        version it went: then the last state has the version that it had before.

        Background leaves dependents to garbage collection; Foreground and Orphan add the finalizer `foregroundDeletion` or `orphan`.

        Raises:
            NotFound: There is none.
            Conflict: It has another resource version or uid.
        """
        ...

    async def watch(
        self, resource: ResourceName, selection: Selection = Selection(), *, resource_version: str, bookmarks: bool = False
    ) -> Watch:
        """Return what comes after `resource_version`, in order.

        Raises:
            Expired: `resource_version` is compacted or from another time; a store that must ask a server may raise it from the first
                iteration.
        """
        ...


T = TypeVar("T", bound=Object)


def decode_item(kind: type[T], item: Item) -> T:
    """Decode a stored object tolerantly into its frozen struct."""
    return decode(kind, item.body)
