"""The edge of the API: every request passes here once on its way in, every error becomes a Status object on its way out.

In: an ASGI application that raises. Out: one that does not. An error that has a name is answered and not logged, it is the client's
news; an error without one is logged with its chain under an id, and the client sees the id. Requests are counted, timed and audited here,
because only here the final status code is known.

Tokens that nobody holds are counted by the address that sends them. Above `FAILURES_MAX` within `FAILURE_SECONDS` the answer is 429 instead
of 401, whatever token is guessed next; a token that somebody holds is let through always, so that nobody locks out a neighbour.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controller.api.audit import Audit, is_write, record_of
from controller.api.errors import MethodNotAllowed, headers_of, no_such_path, status_of
from controller.api.limits import FailureLimit
from controller.api.paths import Target
from controller.api.responses import json_response
from controller.api.scope import GUESSED, TARGET, VERB, caller_of
from rkfleet.clock import Clock
from rkfleet.errors import BadRequest, FleetError, Internal, PermissionDenied, ResourceExhausted, Unauthenticated, Unavailable
from rkfleet.metric_names import API_FAILED_LOGINS, API_REQUEST_SECONDS, API_REQUESTS
from rkfleet.metrics import Metrics

__all__ = ["Edge"]

OPEN_ENDED: Final = ("watch", "log")  # Verbs that take as long as the client likes; their durations say nothing.

AUDIT_RETRY_SECONDS: Final = 5  # When a client may come again after the disk of the audit log refused.

_log: Final = logging.getLogger(__name__)


class Edge:
    """Wraps the API's router.

    Attributes:
        app: What it wraps.
    """

    def __init__(self, app: ASGIApp, clock: Clock, ids: Callable[[], str], metrics: Metrics, audit: Audit | None = None) -> None:
        self.app: Final = app
        self._audit: Final = audit
        self._guesses: Final = FailureLimit("logins", clock)
        self._clock: Final = clock
        self._ids: Final = ids
        self._metrics: Final = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, whatever happens."""
        started, received = self._clock.monotonic(), self._clock.now()
        audit_id = self._ids()
        code = 0
        refusal: FleetError | None = None
        writes = self._audit is not None and is_write(scope)
        blocked = False

        async def send_seen(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                MutableHeaders(scope=message)["audit-id"] = audit_id
            await send(message)

        scope["app"] = self.app  # Starlette raises what it refuses only inside an application; without one it answers plain text.
        scope[GUESSED] = lambda error: self._count_guess(scope, error)
        try:
            if writes and self._audit is not None and (why := self._audit.why_not()):
                blocked = True
                raise Unavailable(
                    f"the audit log takes no lines, so that nothing may be changed now: {why}; reads go on", AUDIT_RETRY_SECONDS
                )
            await self.app(scope, receive, send_seen)
        except ClientDisconnect:
            code = 499  # The client left before its answer; nginx's number for it.
        except Exception as error:
            if code:  # The answer has begun; the server breaks it off and logs why.
                raise
            refusal = self._judged(scope, error, audit_id)
            await self._refuse(scope, receive, send_seen, refusal)
        finally:
            self._count(scope, code, started)
            if self._audit is not None and (writes or _is_refusal(code, refusal)):
                record = record_of(scope, audit_id=audit_id, code=code, error=refusal, received=received, completed=self._clock.now())
                if blocked or _is_refusal(code, refusal):
                    self._audit.refused(record, "" if code == PermissionDenied.http_status else caller_of(scope))
                else:
                    self._audit.wrote(record)

    def _judged(self, scope: Scope, error: Exception, audit_id: str) -> FleetError:
        """Return what the client is told."""
        named = _named(error, audit_id)
        if isinstance(named, Internal):
            _log.error("%s %s failed", scope["method"], scope["path"], exc_info=error, extra={"auditId": audit_id})
        if isinstance(named, Unauthenticated):
            try:
                self._count_guess(scope, named)
            except ResourceExhausted as limited:
                return limited
        return named

    def _count_guess(self, scope: Scope, error: Unauthenticated) -> None:
        """Count a token that nobody holds.

        Raises:
            ResourceExhausted: Its sender had too many of them.
        """
        if not error.details.get("presented", True):
            return
        caller = caller_of(scope)
        try:
            self._guesses.check(caller)
        except ResourceExhausted:
            self._metrics.counter(API_FAILED_LOGINS, result="limited").inc()
            raise
        self._guesses.failed(caller)
        self._metrics.counter(API_FAILED_LOGINS, result="refused").inc()

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, named: FleetError) -> None:
        target = scope.get(TARGET)
        response = await json_response(status_of(named, target), status_code=named.http_status, headers=headers_of(named))
        await response(scope, receive, send)

    def _count(self, scope: Scope, code: int, started: float) -> None:
        target: Target | None = scope.get(TARGET)
        verb = scope.get(VERB, "")
        resource = target.kind.resource.name if target else ""
        self._metrics.counter(API_REQUESTS, verb=verb, resource=resource, code=str(code)).inc()
        if verb not in OPEN_ENDED:
            self._metrics.histogram(API_REQUEST_SECONDS, verb=verb).observe(self._clock.monotonic() - started)


def _is_refusal(code: int, refusal: FleetError | None) -> bool:
    return code in (401, 403) or (isinstance(refusal, ResourceExhausted) and bool(refusal.details.get("guessed")))


def _named(error: Exception, audit_id: str) -> FleetError:
    match error:
        case FleetError():
            return error
        case HTTPException(status_code=404):
            return no_such_path()
        case HTTPException(status_code=405):
            return MethodNotAllowed("the server does not allow this method on the requested resource")
        case HTTPException():
            return BadRequest(str(error.detail))
        case _:
            return Internal(f"internal error {audit_id}; the log of the controller says more under this id")
