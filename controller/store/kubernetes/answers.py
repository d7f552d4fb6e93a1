"""What a Kubernetes API answers, read with as little decoding as its use needs: items, pages, lines of a watch, and errors.

In: bytes of an answer. Out: `Item`s whose bodies are slices of it, or the `FleetError` that a Status object means. Of an object only the
few facts are decoded that selection needs; its body is never decoded here and never encoded anew. `client.py`, `watch.py` and `store.py`
call these.

Source: Kubernetes `apimachinery/pkg/apis/meta/v1/types.go` (Status, ListMeta, reasons) and API concepts, "Efficient detection of
changes".
"""

from __future__ import annotations

from typing import Final

import msgspec

from controller.store.base import Item
from rkfleet.errors import (
    BadRequest,
    Cause,
    Conflict,
    DeadlineExceeded,
    Expired,
    FleetError,
    Internal,
    Invalid,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    error_for_reason,
)
from rkfleet.kinds.base import Resource
from rkfleet.meta import Ref

__all__ = ["Event", "Listed", "error_of", "item_of", "read_event", "read_list", "succeeded", "version_of"]

MESSAGE_LENGTH_MAX: Final = 500  # Of an answer that is no Status: what a proxy says in its first lines.


class _Meta(msgspec.Struct, gc=False, rename="camel"):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None


class _Head(msgspec.Struct, gc=False, rename="camel"):
    kind: str = ""
    metadata: _Meta = msgspec.field(default_factory=_Meta)


class _ListMeta(msgspec.Struct, gc=False, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")
    remaining_item_count: int | None = None


class Listed(msgspec.Struct, gc=False):
    """One page of a list; `items` are still encoded."""

    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class Event(msgspec.Struct, gc=False):
    """One line of a watch; `object` is still encoded."""

    type: str
    object: msgspec.Raw


class _Cause(msgspec.Struct, gc=False):
    reason: str = ""
    message: str = ""
    field: str = ""


class _Details(msgspec.Struct, gc=False, rename="camel"):
    name: str = ""
    causes: list[_Cause] | None = None
    retry_after_seconds: int = 0


class _Status(msgspec.Struct, gc=False):
    kind: str = ""
    status: str = ""
    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None


def item_of(raw: bytes | msgspec.Raw, resource: Resource) -> Item:
    """Return the item of an encoded object.

    Raises:
        Internal: The bytes are no object with metadata.
    """
    body = bytes(raw)
    try:
        head = msgspec.json.decode(body, type=_Head)
    except msgspec.MsgspecError as error:
        raise _unreadable(resource.plural, error) from error
    if not head.kind:  # Lists of built-in kinds leave out what the list says already.
        separator = b"" if body[1:].lstrip()[:1] == b"}" else b","
        body = b'{"apiVersion":"%s","kind":"%s"%s%s' % (resource.api_version.encode(), resource.kind.encode(), separator, body[1:])
    metadata = head.metadata
    ref = Ref(resource.name, metadata.namespace, metadata.name)
    return Item(ref, metadata.uid, metadata.resource_version, metadata.labels or {}, body)


def read_list(body: bytes, resource: Resource) -> Listed:
    """Return a page of a list.

    Raises:
        Internal: The bytes are no list.
    """
    try:
        return msgspec.json.decode(body, type=Listed)
    except msgspec.MsgspecError as error:
        raise _unreadable(f"list of {resource.plural}", error) from error


def read_event(line: bytes, resource: Resource) -> Event:
    """Return a line of a watch.

    Raises:
        Internal: The line is no event.
    """
    try:
        return msgspec.json.decode(line, type=Event)
    except msgspec.MsgspecError as error:
        raise _unreadable(f"watch of {resource.plural}", error) from error


def version_of(raw: msgspec.Raw, resource: Resource) -> str:
    """Return the resource version of a bookmark.

    Raises:
        Internal: The bytes are no object with metadata.
    """
    try:
        return msgspec.json.decode(raw, type=_Head).metadata.resource_version
    except msgspec.MsgspecError as error:
        raise _unreadable(f"bookmark of {resource.plural}", error) from error


def succeeded(body: bytes) -> bool:
    """Return whether the answer is a Status that says Success, which a server gives for an object that is gone at once."""
    try:
        said = msgspec.json.decode(body, type=_Status)
    except msgspec.MsgspecError:  # An object whose `status` is no text.
        return False
    return (said.kind, said.status) == ("Status", "Success")


def error_of(body: bytes, http_status: int = 0, retry_after: str = "") -> FleetError:
    """Return the error that an answer means.

    Args:
        body: A Status object; anything else is told by the HTTP status.
        http_status: Of the answer; 0 for an ERROR line of a watch, whose Status has a code.
        retry_after: The header of this name.
    """
    try:
        said = msgspec.json.decode(body, type=_Status)
    except msgspec.MsgspecError:
        said = _Status(message=body[:MESSAGE_LENGTH_MAX].decode(errors="replace").strip())
    details = said.details or _Details()
    code = said.code or http_status
    message = said.message or f"the Kubernetes API answered {code} without a reason"
    kind = _class_of(said.reason, code)
    if issubclass(kind, Invalid):
        causes = tuple(Cause(one.field, one.message, one.reason or "FieldValueInvalid") for one in details.causes or ())
        return Invalid(message, causes, **({"name": details.name} if details.name else {}))
    if issubclass(kind, ResourceExhausted | Unavailable):
        seconds = int(retry_after) if retry_after.isascii() and retry_after.isdigit() else details.retry_after_seconds
        return kind(message, retry_after_seconds=seconds or 1)
    return kind(message)


_BY_CODE: Final[dict[int, type[FleetError]]] = {
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    410: Expired,
    413: Invalid,
    422: Invalid,
    429: ResourceExhausted,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}
_BY_REASON: Final[dict[str, type[FleetError]]] = {  # Where Kubernetes has more words than we have errors.
    "Gone": Expired,
    "ServerTimeout": Unavailable,
    "StorageReadError": Unavailable,
    "RequestEntityTooLarge": Invalid,
}


def _class_of(reason: str, code: int) -> type[FleetError]:
    if (found := _BY_REASON.get(reason)) is not None:
        return found
    known = error_for_reason(reason)
    if known is not Internal:
        return known
    return _BY_CODE.get(code, BadRequest if 400 <= code < 500 else Internal)


def _unreadable(what: str, error: Exception) -> Internal:
    return Internal(f"the Kubernetes API sent a {what} that cannot be read: {error}")
