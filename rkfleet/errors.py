"""The one error tree of rkfleet.

    FleetError
    ├── Invalid              what was written cannot be accepted; `causes` name every field
    ├── BadRequest           what was sent cannot be read at all
    ├── NotFound             no such object
    ├── AlreadyExists        the name is taken
    ├── Conflict             the object changed since it was read
    ├── Expired              the wanted revision or page is too old; list again
    ├── FailedPrecondition   the world is not in the state that this call needs
    ├── ResourceExhausted    a named limit is reached; `retry_after_seconds` may say when to come back
    ├── Unavailable          the other side cannot be reached or is starting
    ├── DeadlineExceeded     the wait had a limit and it passed
    ├── Unauthenticated      nobody known is asking
    ├── PermissionDenied     somebody known asks for what is not theirs
    └── Internal             our own mistake

Every program raises these, every edge translates them: HTTP Status objects, gRPC codes, exit statuses of the command line. The
numbers of gRPC stand here as numbers so that nothing needs `grpc` to name an error. Third-party exceptions are translated by the
adapter that meets them; the original is chained.

Source of the gRPC numbers: https://grpc.io/docs/guides/status-codes/. Source of the HTTP reasons: Kubernetes
`metav1.StatusReason`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec

__all__ = [
    "AlreadyExists",
    "BadRequest",
    "Cause",
    "Conflict",
    "DeadlineExceeded",
    "Expired",
    "FailedPrecondition",
    "FleetError",
    "Internal",
    "Invalid",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "Unauthenticated",
    "Unavailable",
    "error_for_reason",
]


class Cause(msgspec.Struct, frozen=True):
    """One reason why an object is invalid.

    Attributes:
        field: Path in the object as people write it, for example `spec.replicas` or `spec.variants[0].dtype`.
        message: Sentence that names the value and the limit.
        reason: Kubernetes `metav1.CauseType`, for example `FieldValueInvalid`.
    """

    field: str
    message: str
    reason: str = "FieldValueInvalid"


class FleetError(Exception):
    """Something rkfleet can name went wrong.

    Attributes:
        message: Sentence for a person: the object, what was tried, the limit and the value.
        details: Facts for a program, JSON values only.
    """

    http_status: ClassVar[int] = 500
    http_reason: ClassVar[str] = "InternalError"
    grpc_code: ClassVar[int] = 13
    exit_status: ClassVar[int] = 70
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message: Final = message
        self.details: Final[Mapping[str, Any]] = details


class Invalid(FleetError):
    """What was written cannot be accepted."""

    http_status = 422
    http_reason = "Invalid"
    grpc_code = 3
    exit_status = 1

    def __init__(self, message: str, causes: tuple[Cause, ...] = (), **details: Any) -> None:
        super().__init__(message, **details)
        self.causes: Final = causes


class BadRequest(FleetError):
    """What was sent cannot be read at all."""

    http_status = 400
    http_reason = "BadRequest"
    grpc_code = 3
    exit_status = 1


class NotFound(FleetError):
    """No such object."""

    http_status = 404
    http_reason = "NotFound"
    grpc_code = 5
    exit_status = 3


class AlreadyExists(FleetError):
    """The name is taken."""

    http_status = 409
    http_reason = "AlreadyExists"
    grpc_code = 6
    exit_status = 4


class Conflict(FleetError):
    """The object changed since it was read."""

    http_status = 409
    http_reason = "Conflict"
    grpc_code = 10
    exit_status = 4
    retryable = True


class Expired(FleetError):
    """The wanted revision or page is too old; list again."""

    http_status = 410
    http_reason = "Expired"
    grpc_code = 11
    exit_status = 4


class FailedPrecondition(FleetError):
    """The world is not in the state that this call needs."""

    http_status = 409
    http_reason = "Conflict"
    grpc_code = 9
    exit_status = 1


class ResourceExhausted(FleetError):
    """A named limit is reached."""

    http_status = 429
    http_reason = "TooManyRequests"
    grpc_code = 8
    exit_status = 6
    retryable = True

    def __init__(self, message: str, retry_after_seconds: int = 1, **details: Any) -> None:
        super().__init__(message, **details)
        self.retry_after_seconds: Final = retry_after_seconds


class Unavailable(FleetError):
    """The other side cannot be reached or is starting."""

    http_status = 503
    http_reason = "ServiceUnavailable"
    grpc_code = 14
    exit_status = 6
    retryable = True

    def __init__(self, message: str, retry_after_seconds: int = 1, **details: Any) -> None:
        super().__init__(message, **details)
        self.retry_after_seconds: Final = retry_after_seconds


class DeadlineExceeded(FleetError):
    """The wait had a limit and it passed."""

    http_status = 504
    http_reason = "Timeout"
    grpc_code = 4
    exit_status = 7
    retryable = True


class Unauthenticated(FleetError):
    """Nobody known is asking."""

    http_status = 401
    http_reason = "Unauthorized"
    grpc_code = 16
    exit_status = 5


class PermissionDenied(FleetError):
    """Somebody known asks for what is not theirs."""

    http_status = 403
    http_reason = "Forbidden"
    grpc_code = 7
    exit_status = 5


class Internal(FleetError):
    """Our own mistake."""


_BY_REASON: Final[Mapping[str, type[FleetError]]] = {
    error.http_reason: error
    for error in (
        Internal, Invalid, BadRequest, NotFound, AlreadyExists, Conflict, Expired, ResourceExhausted,
        Unavailable, DeadlineExceeded, Unauthenticated, PermissionDenied,
    )
}  # fmt: skip


def error_for_reason(reason: str) -> type[FleetError]:
    """Return the error class whose HTTP `Status.reason` this is; unknown reasons are `Internal`."""
    return _BY_REASON.get(reason, Internal)
