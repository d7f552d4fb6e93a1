"""Query parameters of the API, read into frozen options. Pure; handlers call these before anything else.

Unknown parameters are ignored, as Kubernetes does; known ones with a value that means nothing are refused.

Source: Kubernetes `apimachinery/pkg/apis/meta/v1/types.go`, ListOptions and the options of writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec
from starlette.datastructures import QueryParams

from controller.api.admission import FieldValidation
from controller.store.base import Selection
from rkfleet.errors import BadRequest, Cause, Invalid
from rkfleet.meta import parse_field_selector, parse_selector

__all__ = ["ReadOptions", "WriteOptions", "check_dry_run", "is_watch", "read_options", "write_options"]

FIELD_MANAGER_LENGTH_MAX: Final = 128  # As Kubernetes.
WATCH_SECONDS_MAX: Final = 3600  # A watch that names no end is ended after an hour, so that clients spread anew over time.


class ReadOptions(msgspec.Struct, frozen=True):
    """What a list or watch asks for.

    Attributes:
        resource_version: Empty also for "0": both mean any age is fine.
        exact: A list must show this version and no newer one.
        initial_events: A watch starts with what exists, then a marked bookmark (`sendInitialEvents`).
        timeout_seconds: When a watch ends by itself.
    """

    selection: Selection
    watch: bool = False
    limit: int = 0
    continue_token: str = ""
    resource_version: str = ""
    exact: bool = False
    bookmarks: bool = False
    initial_events: bool = False
    timeout_seconds: int = WATCH_SECONDS_MAX


class WriteOptions(msgspec.Struct, frozen=True):
    """How a write is to be made."""

    dry_run: bool = False
    field_validation: FieldValidation = "Warn"


def read_options(query: QueryParams, namespace: str, name: str = "") -> ReadOptions:
    """Read the options of a list or watch over a namespace, and one object of it if `name` is given.

    Raises:
        BadRequest: A parameter cannot be read.
        Invalid: Parameters contradict each other.
    """
    try:
        labels = parse_selector(query.get("labelSelector", ""))
        fields = parse_field_selector(query.get("fieldSelector", ""))
    except ValueError as error:
        raise BadRequest(str(error)) from error
    if name:
        fields = (*fields, (("metadata", "name"), name, True))
    version = query.get("resourceVersion", "")
    match = query.get("resourceVersionMatch", "")
    watch = is_watch(query)
    initial_events = _flag(query, "sendInitialEvents")
    if initial_events and (not watch or match != "NotOlderThan"):
        raise _forbidden("sendInitialEvents", "needs watch=true and resourceVersionMatch=NotOlderThan")
    if match and not initial_events and (watch or match not in ("Exact", "NotOlderThan")):
        raise _forbidden("resourceVersionMatch", "is for lists: Exact or NotOlderThan; for watches only with sendInitialEvents")
    token = query.get("continue", "")
    if token and version not in ("", "0"):
        raise BadRequest("specifying resource version is not allowed when using continue")
    return ReadOptions(
        selection=Selection(namespace, labels, fields),
        watch=watch,
        limit=_number(query, "limit", 0, 1 << 31),
        continue_token=token,
        resource_version="" if version == "0" else version,
        exact=match == "Exact" and version not in ("", "0"),
        bookmarks=_flag(query, "allowWatchBookmarks"),
        initial_events=initial_events,
        timeout_seconds=_number(query, "timeoutSeconds", WATCH_SECONDS_MAX, WATCH_SECONDS_MAX) or WATCH_SECONDS_MAX,
    )


def write_options(query: QueryParams) -> WriteOptions:
    """Read the options of a create, update or patch.

    Raises:
        Invalid: A parameter has a value that means nothing.
    """
    manager = query.get("fieldManager", "")
    if len(manager) > FIELD_MANAGER_LENGTH_MAX or not manager.isprintable():
        raise _forbidden("fieldManager", f"must be at most {FIELD_MANAGER_LENGTH_MAX} printable characters")
    dry_run = check_dry_run(query.getlist("dryRun"))
    match query.get("fieldValidation", "Warn"):
        case "Strict" | "Warn" | "Ignore" as mode:
            return WriteOptions(dry_run, mode)
        case "":
            return WriteOptions(dry_run)
        case other:
            raise _forbidden("fieldValidation", f"is {other!r}, it must be Strict, Warn or Ignore")


def check_dry_run(values: Iterable[str]) -> bool:
    """Return whether this is a dry run.

    Raises:
        Invalid: `dryRun` has another value than All.
    """
    given = [value for value in values if value]
    for value in given:
        if value != "All":
            raise _forbidden("dryRun", f"is {value!r}, it must be All")
    return bool(given)


def is_watch(query: QueryParams) -> bool:
    """Return whether a read asks for a watch."""
    return _flag(query, "watch")


def _flag(query: QueryParams, name: str) -> bool:
    """Read a boolean as Go does; a bare `?watch` means true."""
    match query.get(name):
        case None | "0" | "f" | "F" | "false" | "False" | "FALSE":
            return False
        case "" | "1" | "t" | "T" | "true" | "True" | "TRUE":
            return True
        case other:
            raise BadRequest(f"{name} is {other!r}, it must be true or false")


def _number(query: QueryParams, name: str, default: int, maximum: int) -> int:
    text = query.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadRequest(f"{name} is {text[:40]!r}, it must be a whole number from 0 to {maximum}")
    return min(int(text), maximum)


def _forbidden(field: str, message: str) -> Invalid:
    return Invalid(f"{field} {message}", (Cause(field, message),))
