"""Query parameters of the API, read into frozen options. Pure; handlers call these before anything else.

Unknown parameters are ignored, as Kubernetes does; known ones with a value that means nothing are refused.

Source: Kubernetes `apimachinery/pkg/apis/meta/v1/types.go`, ListOptions and the options of writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Literal

import msgspec
from starlette.datastructures import QueryParams

from controller.api.admission import FieldValidation
from controller.store.base import Selection
from rkfleet.errors import BadRequest, Cause, Invalid
from rkfleet.meta import parse_field_selector, parse_selector

__all__ = [
    "LogOptions",
    "ReadOptions",
    "WriteOptions",
    "check_dry_run",
    "is_pretty",
    "is_watch",
    "log_options",
    "read_options",
    "write_options",
]

FIELD_MANAGER_LENGTH_MAX: Final = 128  # As Kubernetes.
UNKNOWN_MANAGER: Final = "unknown"
VERSION_DIGITS_MAX: Final = 19  # As the widest number that a database counts with.
WATCH_SECONDS_MAX: Final = 3600  # A watch that names no end is ended after an hour, so that clients spread anew over time.
MESSAGE_LENGTH_MAX: Final = 500  # Of what is told about a selector: who sent 60 KB need not read them again.
LOG_NUMBER_MAX: Final = (1 << 31) - 1  # What the session's numbers hold; more is more than any journal has.


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
    """How a write is to be made.

    Attributes:
        manager: Who writes, in `managedFields`.
        force: An apply takes over what others own.
        judge: Called with the stored object (None where an apply makes one) and the wanted one; raises PermissionDenied at what the caller
            may not make of it. Who may write at all was judged before.
    """

    dry_run: bool = False
    field_validation: FieldValidation = "Warn"
    manager: str = UNKNOWN_MANAGER
    force: bool = False
    judge: Callable[[dict[str, Any] | None, dict[str, Any]], None] | None = None


class LogOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a read of a log asks for, in the words of Kubernetes' pods; `run` and `source` are our own.

    Attributes:
        run: 0 is the newest run of a worker and all that follow, -1 the one before it, a positive number names a run.
        tail_lines: None for all.
        since_seconds: 0 for all.
        limit_bytes: None for no limit.
        source: Empty for what the object has.
    """

    follow: bool = False
    run: int = 0
    tail_lines: int | None = None
    since_seconds: int = 0
    timestamps: bool = False
    limit_bytes: int | None = None
    source: Literal["", "worker", "agent"] = ""


def log_options(query: QueryParams) -> LogOptions:
    """Read the options of a log.

    Raises:
        BadRequest: A parameter cannot be read, is not served, or contradicts another.
    """
    source = _log_source(query.get("source", ""))
    if query.get("sinceTime"):
        raise BadRequest("sinceTime is not served, because a board may not know the time; use sinceSeconds")
    previous, run = _flag(query, "previous"), _number(query, "run", 0, LOG_NUMBER_MAX)
    if previous and run:
        raise BadRequest(f"previous goes with no run, and run is {run}")
    if source == "agent" and (previous or run):
        raise BadRequest("the log of an agent has no runs; leave out previous and run")
    return LogOptions(
        follow=_flag(query, "follow"),
        run=-1 if previous else run,
        tail_lines=_number(query, "tailLines", 0, LOG_NUMBER_MAX) if query.get("tailLines") else None,
        since_seconds=_number(query, "sinceSeconds", 0, LOG_NUMBER_MAX),
        timestamps=_flag(query, "timestamps"),
        limit_bytes=_number(query, "limitBytes", 0, LOG_NUMBER_MAX) if query.get("limitBytes") else None,
        source=source,
    )


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
        raise BadRequest(str(error)[:MESSAGE_LENGTH_MAX]) from error
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
    if match and not watch:
        _check_match(match, version, token)
    if version and not (version.isascii() and version.isdigit() and len(version) <= VERSION_DIGITS_MAX):
        raise BadRequest(f"resourceVersion is {version[:40]!r}, it must be one that a list or an object had")
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


def _check_match(match: str, version: str, token: str) -> None:
    """Refuse a `resourceVersionMatch` that has nothing to match, in the cases in which Kubernetes does."""
    if token:
        raise _forbidden("resourceVersionMatch", "is forbidden when continue is provided")
    if not version:
        raise _forbidden("resourceVersionMatch", "is forbidden unless resourceVersion is provided")
    if match == "Exact" and version == "0":
        raise _forbidden("resourceVersionMatch", 'is Exact, which is forbidden for resourceVersion "0"')


def write_options(query: QueryParams, user_agent: str = "", *, apply: bool = False) -> WriteOptions:
    """Read the options of a create, update, patch or apply.

    Args:
        query: Parameters of the request.
        user_agent: Of the client; up to its first slash it names a manager that does not name itself.
        apply: It is an apply, which must name its manager and may force.

    Raises:
        Invalid: A parameter has a value that means nothing.
    """
    manager = query.get("fieldManager", "")
    if len(manager) > FIELD_MANAGER_LENGTH_MAX or not manager.isprintable():
        raise _forbidden("fieldManager", f"must be at most {FIELD_MANAGER_LENGTH_MAX} printable characters")
    if apply and not manager:
        cause = Cause("fieldManager", "is required for apply patch", "FieldValueRequired")
        raise Invalid(f"fieldManager: Required value: {cause.message}", (cause,))
    if not apply and query.get("force"):
        raise _forbidden("force", "may not be specified for non-apply patch")
    options = WriteOptions(
        dry_run=check_dry_run(query.getlist("dryRun")),
        manager=manager or _agent(user_agent),
        force=_flag(query, "force"),
    )
    match query.get("fieldValidation", "Warn"):
        case "Strict" | "Warn" | "Ignore" as mode:
            return msgspec.structs.replace(options, field_validation=mode)
        case "":
            return options
        case other:
            raise _forbidden("fieldValidation", f"is {other!r}, it must be Strict, Warn or Ignore")


def _agent(user_agent: str) -> str:
    name = user_agent.partition("/")[0][:FIELD_MANAGER_LENGTH_MAX]
    return name if name and name.isprintable() else UNKNOWN_MANAGER


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


def is_pretty(query: QueryParams) -> bool:
    """Return whether the answer is for a person's eyes."""
    return _flag(query, "pretty")


def _log_source(text: str) -> Literal["", "worker", "agent"]:
    match text:
        case "" | "worker" | "agent":
            return text
        case other:
            raise BadRequest(f"source is {other[:40]!r}, it must be worker or agent")


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
