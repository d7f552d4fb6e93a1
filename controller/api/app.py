"""The HTTPS API as one ASGI application: routing, identity, limits.

In: everything the API needs, as arguments from the controller's `app.py`. Out: an ASGI app for the program's server. Paths of the
Kubernetes API are served here for every kind of the registry; routes of other parts (enrolment, registry tokens) come as `extra_routes`,
share the edge where errors become Status objects, and prove who asks in their own ways. `/version` and the health paths answer anybody,
as on a real cluster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import Receive, Scope, Send

from controller.api import auth, paths
from controller.api.admission import Admission
from controller.api.apply.ownership import Ownership
from controller.api.audit import Audit
from controller.api.deadlines import deadline
from controller.api.documents import Documents
from controller.api.edge import Edge
from controller.api.errors import no_such_path
from controller.api.event_view import WithEventView
from controller.api.limits import LOG_STREAMS_MAX, REQUESTS_MAX, WATCHES_MAX, Limit
from controller.api.logs import Logs, OpenLog, no_sessions
from controller.api.resources import Resources, verb_of
from controller.api.responses import json_response
from controller.api.reviews import find_review, serve_review
from controller.api.scope import TARGET, VERB
from controller.api.writes import Writes
from controller.store.base import Store
from rkfleet.clock import Clock
from rkfleet.kinds.base import Registry
from rkfleet.metric_names import API_WATCHES, LOG_STREAMS
from rkfleet.metrics import Metrics

__all__ = ["KUBERNETES_MINOR", "create_api"]

KUBERNETES_MINOR: Final = 32  # The wire format that is served; a kubectl that picks its own version by the server's picks this one.


def create_api(
    *,
    store: Store,
    registry: Registry,
    admission: Admission,
    identify: auth.Identify,
    clock: Clock,
    ids: Callable[[], str],
    metrics: Metrics,
    stopping: asyncio.Event,
    version: str,
    extra_routes: Sequence[BaseRoute] = (),
    open_log: OpenLog = no_sessions,
    requests_max: int = REQUESTS_MAX,
    watches_max: int = WATCHES_MAX,
    log_streams_max: int = LOG_STREAMS_MAX,
    audit: Audit | None = None,
) -> Edge:
    """Return the API.

    Args:
        store: Where objects live.
        registry: Kinds that are served.
        admission: Judges what clients write; made over the same registry.
        identify: From a bearer token to its holder.
        clock: Gives times, ages and the ends of watches.
        ids: Gives random UUIDs as text.
        metrics: Takes the API's metrics.
        stopping: Set by the program before it stops its listener, so that open watches end.
        version: Version of rkfleet, shown by `/version`.
        extra_routes: Routes of other parts; they come first.
        open_log: Asks boards for lines; by default there is no board to ask.
        requests_max: Requests that may be under way at once, watches and logs left out.
        watches_max: Watches that may be open at once.
        log_streams_max: Logs that may be read at once.
        audit: Is told of every write and every refusal; None for no audit log.
    """
    store = WithEventView(store)
    resources = Resources(store, Writes(store, admission, Ownership(registry), clock, ids), clock, stopping)
    requests, watches = Limit("requests", requests_max), Limit("watches", watches_max)
    log_streams = Limit("log streams", log_streams_max)
    metrics.gauge(API_WATCHES).set_function(lambda: watches.taken)
    metrics.gauge(LOG_STREAMS).set_function(lambda: log_streams.taken)
    logs = Logs(store, open_log, clock, metrics, stopping)
    kubernetes = _Kubernetes(registry, identify, resources, logs, clock, requests=requests, watches=watches, log_streams=log_streams)
    routes = [
        *extra_routes,
        *(Route(path, _version(version)) for path in ("/version", "/version/")),
        *(Route(path, _healthy) for path in ("/healthz", "/livez", "/readyz")),
        *(Route(path, kubernetes) for path in ("/api", "/api/{rest:path}", "/apis", "/apis/{rest:path}")),
        *(Route(path, kubernetes) for path in ("/openapi/v2", "/openapi/v3", "/openapi/v3/{rest:path}")),
    ]
    return Edge(Router(routes, redirect_slashes=False, default=_nothing_here), clock, ids, metrics, audit)


def _version(version: str) -> Callable[[Request], Awaitable[Response]]:
    body = {
        "major": "1",
        "minor": str(KUBERNETES_MINOR),
        "gitVersion": f"v1.{KUBERNETES_MINOR}.0+rkfleet.{version}",
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "",
        "platform": "",
    }

    async def answer(_request: Request) -> Response:
        return await json_response(body)

    return answer


async def _healthy(_request: Request) -> Response:
    return PlainTextResponse("ok")


async def _nothing_here(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise no_such_path()


class _Kubernetes:
    """Serves resources, discovery and schemas to callers with a token."""

    def __init__(
        self,
        registry: Registry,
        identify: auth.Identify,
        resources: Resources,
        logs: Logs,
        clock: Clock,
        *,
        requests: Limit,
        watches: Limit,
        log_streams: Limit,
    ) -> None:
        self._registry: Final = registry
        self._identify: Final = identify
        self._clock: Final = clock
        self._resources: Final = resources
        self._documents: Final = Documents(registry)
        self._requests: Final = requests
        self._watches: Final = watches
        self._logs: Final = logs
        self._log_streams: Final = log_streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            FleetError: Whatever is to be told to the client; the edge does.
        """
        request = Request(scope, receive)
        identity = auth.require_caller(self._identify, request)
        target = self._target(scope["path"])
        if target is None:
            with self._requests.place():
                async with deadline(request.query_params.get("timeout", "")):
                    response = await self._answer_about_itself(request, identity)
                await response(scope, receive, send)
            return
        scope[TARGET] = target
        scope[VERB] = verb = verb_of(request, target)
        auth.authorize(identity, verb, target)
        auth.end_with_token(self._identify, request, self._clock)
        if target.subresource == "log":
            scope[VERB] = "log"  # It is authorized as a read, and takes as long as a watch.
            with self._log_streams.place():
                response = await self._logs.serve(request, target)
                await response(scope, receive, send)
            return
        with (self._watches if verb == "watch" else self._requests).place():
            async with deadline(request.query_params.get("timeout", "")):  # A watch is open before it; its own end is another matter.
                response = await self._resources.serve(request, target, verb)
            await response(scope, receive, send)

    async def _answer_about_itself(self, request: Request, identity: auth.Identity) -> Response:
        """Return what the API is, or what the caller may do with it."""
        review = find_review(request.scope["path"])
        if review is not None:
            request.scope[VERB] = "review"
            return await serve_review(request, review, identity, self._registry)
        auth.authorize_path(identity, request.method, request.scope["path"])
        return await self._documents.serve(request)

    def _target(self, path: str) -> paths.Target | None:
        match path.strip("/").split("/"):
            case ["api", version, *rest] if rest:
                return paths.parse_path(self._registry, "", version, rest)
            case ["apis", group, version, *rest] if rest:
                return paths.parse_path(self._registry, group, version, rest)
            case _:
                return None
