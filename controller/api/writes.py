"""Creating, changing, applying and deleting objects: every write of a client, from the decoded body to the store.

In: a target, a body, options. Out: what was stored, or for a dry run what would have been. The steps are always the same: admit (what the
server owns, defaults, schema, rules), note who owns which field (`apply/ownership.py`), then store against the version that was judged. A
write that loses a race is judged anew unless the client itself named the version it means.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from controller.api import namespaces
from controller.api.admission import Admission
from controller.api.apply.ownership import Ownership, Writer
from controller.api.bodies import DeleteOptions, require_object
from controller.api.paths import Target
from controller.api.query import ReadOptions, WriteOptions, check_dry_run
from controller.api.values import prepared
from controller.store.base import Item, Page, Store
from controller.store.writes import Create, Delete, Outcome, Update, encode, evaluate
from rkfleet.clock import Clock, format_time
from rkfleet.errors import AlreadyExists, BadRequest, Conflict, NotFound, PermissionDenied
from rkfleet.kinds.event import Event
from rkfleet.kinds.namespace import Namespace
from rkfleet.meta import Ref

__all__ = ["Change", "Writes", "Written"]

Json = dict[str, Any]

ATTEMPTS_MAX: Final = 32  # Of writers that race one wins each time, so this many at once all win; losing more means one that never rests.
NAME_ATTEMPTS_MAX: Final = 8  # As kube-apiserver: 14 million names per prefix, so eight clashes in a row do not happen.
_SUFFIX_ALPHABET: Final = "bcdfghjklmnpqrstvwxz2456789"  # As Kubernetes: no vowels, so no words; nothing that looks like another.
_SUFFIX_LENGTH: Final = 5

Change = Callable[[Json], Any]
"""From the stored object (not to be changed) to the wanted one."""


class Written(msgspec.Struct, frozen=True):
    """What a write came to.

    Attributes:
        item: The object as stored, or as it would be stored.
        warnings: Sentences for the client.
        removed: The object is gone, or would be.
        created: It was made by this write.
    """

    item: Item
    warnings: tuple[str, ...] = ()
    removed: bool = False
    created: bool = False


class Writes:
    """The write path of the API.

    Args:
        store: Where objects live.
        admission: Judges every object before it is stored.
        ownership: Notes who set which field.
        clock: Gives creation and deletion times.
        ids: Gives random UUIDs as text.
    """

    def __init__(self, store: Store, admission: Admission, ownership: Ownership, clock: Clock, ids: Callable[[], str]) -> None:
        self._store: Final = store
        self._admission: Final = admission
        self._ownership: Final = ownership
        self._clock: Final = clock
        self._ids: Final = ids

    async def create(self, target: Target, body: Any, options: WriteOptions) -> Written:
        """Store a new object, with a made name if it has only `generateName`.

        Raises:
            FleetError: BadRequest, Invalid, NotFound (namespace), AlreadyExists, PermissionDenied, Unavailable.
        """
        obj = require_object(body, f"a {target.kind.resource.kind}")
        if target.namespace:
            await namespaces.require_namespace(self._store, target.namespace)
        for attempt in range(1, NAME_ATTEMPTS_MAX + 1):
            try:
                return await self._create(target, obj, options)
            except AlreadyExists:
                if (obj.get("metadata") or {}).get("name") or attempt == NAME_ATTEMPTS_MAX:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _create(self, target: Target, obj: Json, options: WriteOptions) -> Written:
        metadata = obj.get("metadata")
        suffix = "" if isinstance(metadata, dict) and metadata.get("name") else _name_suffix(UUID(self._ids()).int)
        admitted = self._admission.admit_create(
            target.kind, obj, mode=options.field_validation, namespace=target.namespace, name_suffix=suffix
        )
        created = self._ownership.created(target.kind, admitted.obj, Writer(options.manager), format_time(self._clock.now()))
        return await self._store_new(target, created, admitted.warnings, options)

    async def _store_new(self, target: Target, obj: Json, warnings: tuple[str, ...], options: WriteOptions) -> Written:
        identity = {"uid": self._ids(), "creationTimestamp": format_time(self._clock.now())}
        created = {**obj, "metadata": {**obj["metadata"], **identity}}
        keep_status = target.kind is Namespace
        if keep_status:
            created = namespaces.active(created)
        ref = msgspec.structs.replace(target.ref, name=created["metadata"]["name"])
        if not options.dry_run:
            return Written(await self._store.create(ref, created, keep_status=keep_status), warnings, created=True)
        create = Create(ref, created, keep_status)
        return Written(_imagined(create, await self._find(ref), target).item, warnings, created=True)

    async def _find(self, ref: Ref) -> Item | None:
        try:
            return await self._store.get(ref)
        except NotFound:
            return None

    async def change(self, target: Target, make: Change, options: WriteOptions, *, through: str = "") -> Written:
        """Store what `make` makes of the stored object; when another writer came between, it is made and judged again.

        A client that names the version it means (metadata.resourceVersion of what `make` returns) gets Conflict instead. `through` names a
        subresource that stands for a part of the object itself, for who owns it.

        Raises:
            FleetError: BadRequest, Invalid, NotFound, Conflict, Unavailable.
        """
        writer = Writer(options.manager, through or target.subresource)

        def admit(stored: Item, now: datetime) -> tuple[Json, tuple[str, ...]]:
            old = msgspec.json.decode(stored.body)
            new = require_object(make(old), f"a {target.kind.resource.kind}")
            admitted = self._admission.admit_update(target.kind, old, new, mode=options.field_validation, subresource=_subresource(target))
            sent = (new.get("metadata") or {}).get("managedFields")
            return self._ownership.updated(
                target.kind, old, admitted.obj, sent=sent, writer=writer, now=format_time(now)
            ), admitted.warnings

        return await self._changed(target, admit, options)

    async def apply(self, target: Target, config: Json, options: WriteOptions, *, through: str = "") -> Written:
        """Apply a manager's part of the object (server-side apply), which makes it if there is none. `through` is as in `change`.

        Raises:
            FleetError: BadRequest, Invalid, NotFound (namespace, or a subresource of nothing), Conflict (others own what would change),
                Unavailable.
        """
        writer = Writer(options.manager, through or target.subresource)
        _require_identity(target, config)
        config = prepared(target.kind, config)  # Who applies the text of a Secret owns the value that it becomes.

        def admit(stored: Item, now: datetime) -> tuple[Json, tuple[str, ...]]:
            old = msgspec.json.decode(stored.body)
            pending = self._ownership.applied(target.kind, old, config, writer=writer, now=format_time(now), force=options.force)
            admitted = self._admission.admit_update(
                target.kind, old, pending.obj, mode=options.field_validation, subresource=_subresource(target)
            )
            return self._ownership.settled(target.kind, old, admitted.obj, pending=pending, writer=writer), admitted.warnings

        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                return await self._changed(target, admit, options)
            except NotFound:
                if writer.subresource:
                    raise
            try:
                return await self._apply_new(target, config, writer, options)
            except AlreadyExists:
                if attempt == ATTEMPTS_MAX:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _apply_new(self, target: Target, config: Json, writer: Writer, options: WriteOptions) -> Written:
        metadata = config["metadata"]
        if metadata.get("resourceVersion") or metadata.get("uid"):
            meant = "resourceVersion" if metadata.get("resourceVersion") else "uid"
            raise Conflict(
                f'Operation cannot be fulfilled on {target.kind.resource.name} "{target.name}": {meant} is {metadata[meant]}, and there is'
                " no such object"
            )
        if options.judge is not None:
            options.judge(None, config)
        if target.namespace:
            await namespaces.require_namespace(self._store, target.namespace)
        pending = self._ownership.applied(target.kind, None, config, writer=writer, now=format_time(self._clock.now()), force=options.force)
        named = {**pending.obj, "metadata": {**pending.obj["metadata"], "name": target.name}}
        admitted = self._admission.admit_create(target.kind, named, mode=options.field_validation, namespace=target.namespace)
        settled = self._ownership.settled(target.kind, None, admitted.obj, pending=pending, writer=writer)
        return await self._store_new(target, settled, admitted.warnings, options)

    async def _changed(
        self, target: Target, admit: Callable[[Item, datetime], tuple[Json, tuple[str, ...]]], options: WriteOptions
    ) -> Written:
        """Store what `admit` makes of the stored object, against the version that it judged."""
        subresource = _subresource(target)
        for attempt in range(1, ATTEMPTS_MAX + 1):
            stored = await self._store.get(target.ref)
            version, uid, now = stored.resource_version, stored.uid, self._clock.now()
            obj, warnings = admit(stored, now)
            _check_version(stored, obj["metadata"].get("resourceVersion"))
            if options.judge is not None:
                options.judge(msgspec.json.decode(stored.body), obj)
            changed = namespaces.held(obj) if target.kind is Namespace else obj
            if options.dry_run:
                update = Update(target.ref, changed, version, uid, subresource, now)
                return Written(_imagined(update, stored, target).item, warnings)
            try:
                item = await self._store.update(target.ref, changed, resource_version=version, uid=uid, subresource=subresource, now=now)
                return Written(item, warnings)
            except Conflict:
                if attempt == ATTEMPTS_MAX:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def delete(self, target: Target, options: DeleteOptions) -> Written:
        """Delete the object, or mark it while finalizers hold it.

        Raises:
            FleetError: NotFound, Conflict (preconditions), PermissionDenied, Unavailable.
        """
        if target.kind is Namespace and target.name == namespaces.DEFAULT_NAMESPACE:
            raise PermissionDenied(f'namespaces "{target.name}" is forbidden: this namespace may not be deleted')
        uid, version, now = options.preconditions.uid, options.preconditions.resource_version, self._clock.now()
        # Events own nothing, and nobody would collect for them and take the finalizer off.
        propagation = "Background" if target.kind is Event else options.propagation_policy
        if check_dry_run(options.dry_run):
            outcome = _imagined(Delete(target.ref, uid, version, propagation, now), await self._find(target.ref), target)
            return Written(outcome.item, removed=outcome.type == "DELETED")
        item = await self._store.delete(target.ref, uid=uid, resource_version=version, propagation=propagation, now=now)
        return Written(item, removed=not msgspec.json.decode(item.body)["metadata"].get("finalizers"))

    async def delete_collection(self, target: Target, asked: ReadOptions, options: DeleteOptions) -> Page:
        """Delete every object that a list with the same options shows, one by one; what was there is returned."""
        resource = target.kind.resource.name
        page = await self._store.list(resource, asked.selection, limit=asked.limit, continue_token=asked.continue_token)
        for item in page.items:
            one = msgspec.structs.replace(target, namespace=item.ref.namespace, name=item.ref.name)
            with suppress(NotFound):
                await self.delete(one, options)
        return page


def _subresource(target: Target) -> Literal["", "status"]:
    match target.subresource:
        case "" | "status":
            return target.subresource
        case other:
            raise AssertionError(f"{other} is no part of an object that is written, see resources.py")


def _require_identity(target: Target, config: Json) -> None:
    """Hold what is applied against the URL: who applies says what and which one, as kube-apiserver demands."""
    resource = target.kind.resource
    for field, wanted in (("apiVersion", resource.api_version), ("kind", resource.kind)):
        if not config.get(field):
            raise BadRequest(f"{field} must be set in what is applied; here it is {wanted}")
    metadata = config.setdefault("metadata", {})
    if not isinstance(metadata, dict):
        raise BadRequest(f"metadata must be a mapping, not {type(metadata).__name__}")
    if metadata.get("name", target.name) != target.name:
        raise BadRequest(f"the name of the object ({metadata['name']}) does not match the name on the URL ({target.name})")


def _name_suffix(random_number: int) -> str:
    """Return five characters that complete a generated name, from a random number of at least 24 bits."""
    suffix = ""
    for _ in range(_SUFFIX_LENGTH):
        random_number, digit = divmod(random_number, len(_SUFFIX_ALPHABET))
        suffix += _SUFFIX_ALPHABET[digit]
    return suffix


def _check_version(stored: Item, meant: str | None) -> None:
    """Hold the version that the client means, if it names one, against the stored one."""
    if meant and meant != stored.resource_version:
        raise Conflict(
            f'Operation cannot be fulfilled on {stored.ref.resource} "{stored.ref.name}": the object has been modified (its resourceVersion'
            f" is {stored.resource_version}, not {meant}); please apply your changes to the latest version and try again"
        )


def _imagined(write: Create | Update | Delete, stored: Item | None, target: Target) -> Outcome:
    """Return what the store would make of a write, by the store's own rules; the item never reaches it and gets no version of its own."""
    outcome = evaluate(write, stored, target.kind.resource, revision=0)
    version = "" if stored is None else stored.resource_version
    obj = msgspec.json.decode(outcome.item.body)
    obj["metadata"]["resourceVersion"] = version
    if not version:
        del obj["metadata"]["resourceVersion"]
    return msgspec.structs.replace(outcome, item=msgspec.structs.replace(outcome.item, resource_version=version, body=encode(obj)))
