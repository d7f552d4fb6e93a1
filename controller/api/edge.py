"""The edge of the API: every request passes here once on its way in, every error becomes a Status object on its way out.

In: an ASGI application that raises. Out: one that does not. An error that has a name is answered and not logged, it is the client's
news; an error without one is logged with its chain under an id, and the client sees the id. Requests are counted and timed here, because
only here the final status code is known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controller.api.errors import MethodNotAllowed, headers_of, no_such_path, status_of
from controller.api.paths import Target
from controller.api.responses import json_response
from controller.api.scope import TARGET, VERB
from rkfleet.clock import Clock
from rkfleet.errors import BadRequest, FleetError, Internal
from rkfleet.metric_names import API_REQUEST_SECONDS, API_REQUESTS
from rkfleet.metrics import Metrics

__all__ = ["Edge"]

OPEN_ENDED: Final = ("watch", "log")  # Verbs that take as long as the client likes; their durations say nothing.

_log: Final = logging.getLogger(__name__)


class Edge:
    """Wraps the API's router."""

    def __init__(self, app: ASGIApp, clock: Clock, ids: Callable[[], str], metrics: Metrics) -> None:
        self._app: Final = app
        self._clock: Final = clock
        self._ids: Final = ids
        self._metrics: Final = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, whatever happens."""
        started = self._clock.monotonic()
        audit_id = self._ids()
        code = 0

        async def send_seen(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                MutableHeaders(scope=message)["audit-id"] = audit_id
            await send(message)

        scope["app"] = self._app  # Starlette raises what it refuses only inside an application; without one it answers plain text.
        try:
            await self._app(scope, receive, send_seen)
        except ClientDisconnect:
            code = 499  # The client left before its answer; nginx's number for it.
        except Exception as error:
            if code:  # The answer has begun; the server breaks it off and logs why.
                raise
            await self._refuse(scope, receive, send_seen, error, audit_id)
        finally:
            self._count(scope, code, started)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, error: Exception, audit_id: str) -> None:
        named = _named(error, audit_id)
        if isinstance(named, Internal):
            _log.error("%s %s failed", scope["method"], scope["path"], exc_info=error, extra={"auditId": audit_id})
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
