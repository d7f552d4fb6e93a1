"""Errors on the wire: every `FleetError` as a Kubernetes `Status`, with the HTTP headers that belong to it.

In: an error and the `Target` that the request named. Out: status code, JSON object, headers. `app.py` is the only caller; everything
below it raises. The classes here are the refusals that only HTTP knows; all others stand in `rkfleet/errors.py`.

Source: Kubernetes `apimachinery/pkg/api/errors/errors.go` (reasons, details, which `kind` the details carry).
"""

from __future__ import annotations

from typing import Any

from controller.api.apply.applying import ApplyConflict
from controller.api.paths import Target
from rkfleet.errors import BadRequest, Cause, DeadlineExceeded, FleetError, Invalid, NotFound, ResourceExhausted, Unavailable

__all__ = [
    "MethodNotAllowed",
    "NotAcceptable",
    "RequestEntityTooLarge",
    "TooLargeVersion",
    "UnsupportedMediaType",
    "headers_of",
    "no_such_path",
    "status_of",
]

Json = dict[str, Any]


class MethodNotAllowed(BadRequest):
    """The path exists, but not with this method."""

    http_status = 405
    http_reason = "MethodNotAllowed"


class NotAcceptable(BadRequest):
    """None of the media types that the client accepts can be made."""

    http_status = 406
    http_reason = "NotAcceptable"


class RequestEntityTooLarge(BadRequest):
    """The body is larger than the named limit."""

    http_status = 413
    http_reason = "RequestEntityTooLarge"


class UnsupportedMediaType(BadRequest):
    """The body is of a media type that is not read here."""

    http_status = 415
    http_reason = "UnsupportedMediaType"


class TooLargeVersion(DeadlineExceeded):
    """A list is to be at least as new as a version that does not exist yet; client-go waits and asks again."""

    def __init__(self, asked: str, newest: str) -> None:
        super().__init__(f"Timeout: Too large resource version: {asked}, current: {newest}; list again without it")


def no_such_path() -> NotFound:
    """Return the error for a path that nothing serves, in the words that clients look for."""
    return NotFound("the server could not find the requested resource")


def status_of(error: FleetError, target: Target | None = None) -> Json:
    """Return the `Status` object that says this error about this target.

    An error about another object than the target names it: `NotFound(message, resource="namespaces", name="lab")`.
    """
    details = _details(error, target)
    if isinstance(error, Invalid | ApplyConflict) and error.causes:
        details["causes"] = [_cause(cause) for cause in error.causes]
    if isinstance(error, TooLargeVersion):
        details |= {"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}], "retryAfterSeconds": 1}
    if isinstance(error, ResourceExhausted | Unavailable):
        details["retryAfterSeconds"] = error.retry_after_seconds
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": error.message,
        "reason": error.http_reason,
        "details": details,
        "code": error.http_status,
    }


def headers_of(error: FleetError) -> dict[str, str]:
    """Return the headers that tell a client what to do about this error."""
    if isinstance(error, ResourceExhausted | Unavailable):
        return {"retry-after": str(error.retry_after_seconds)}
    return {"www-authenticate": "Bearer"} if error.http_status == 401 else {}


def _cause(cause: Cause) -> Json:
    return {"reason": cause.reason, "message": cause.message, "field": cause.field}


def _details(error: FleetError, target: Target | None) -> Json:
    """Say what the error is about: what it names itself (`resource`, `name` of its details), else the target."""
    if "resource" in error.details:
        plural, _, group = str(error.details["resource"]).partition(".")
        details = {"name": error.details.get("name"), "group": group, "kind": plural}
    elif target is not None:
        resource = target.kind.resource
        kind = resource.kind if isinstance(error, Invalid) else resource.plural
        details = {"name": target.name or error.details.get("name"), "group": resource.group, "kind": kind}
    else:
        details = {}
    return {key: value for key, value in details.items() if value}
