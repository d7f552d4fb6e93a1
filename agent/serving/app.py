"""The board's OpenAI endpoint, as an ASGI application.

In: HTTP requests of gateways (over mutual TLS) and of local clients (over loopback). Out: answers of this board's workers.

    /v1/...                          by served model name, the least busy replica of this board
    /replicas/<namespace>/<name>/v1/...  one replica; this is the base URL in `Replica.status.endpoint`

with `models`, `models/<id>`, `chat/completions` and `completions` below each. A framework would bring more memory than these routes
need: the agent's is counted. `agent/app.py` serves it on both listeners.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import msgspec

from agent.demand import Demand
from agent.serving import openai
from agent.serving.connection import Connection, Message, Receive, Send
from agent.serving.measure import Measurements
from agent.serving.proxy import Proxy
from agent.serving.queue import Queue
from agent.serving.routes import Route, Routes
from rkfleet.clock import Clock
from rkfleet.errors import BadRequest, FleetError, Internal, NotFound, Unavailable
from rkfleet.kinds.replica import Measured
from rkfleet.metrics import Metrics
from rkfleet.simulated import HEADER as SIMULATED_HEADER

__all__ = ["Serving"]

_KINDS: Final[dict[str, openai.Kind]] = {"chat/completions": "chat", "completions": "completion"}

_log = logging.getLogger(__name__)


class _NoSuchMethod(BadRequest):
    """The path exists, the method does not."""

    http_status = 405


class Serving:
    """The application and what the agent's loop reads of it."""

    def __init__(self, routes: Routes, metrics: Metrics, clock: Clock, *, demand: Demand | None = None, simulated: bool = False) -> None:
        """Take the routes, who is told what is wanted, and whether every answer must say that the board is simulated."""
        self._own_headers: Final = [(SIMULATED_HEADER.encode(), b"true")] if simulated else []
        self._simulated: Final = simulated
        self._routes: Final = routes
        self._clock: Final = clock
        self._queue: Final = Queue()
        self._measurements: Final = Measurements(metrics, clock)
        self._proxy: Final = Proxy(routes, self._queue, self._measurements, demand or Demand(clock, lambda: None))
        routes.on_replace(self._measurements.keep)

    def in_flight(self, uid: str) -> int:
        """Return the requests that run or wait at this replica."""
        return self._queue.in_flight(uid)

    def measured(self, uid: str) -> Measured | None:
        """Return the replica's recent speed, or None before its first answer."""
        return self._measurements.measured(uid)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        arrived_at = self._clock.monotonic()
        client = Connection(receive, send)
        client.headers = [*self._own_headers]
        try:
            await self._dispatch(scope, client, arrived_at)
        except FleetError as error:
            await client.fail(error)
        except asyncio.CancelledError:  # only the listener's own end cancels this task
            await client.fail(Unavailable("the agent of this board stops", code="agent_stopping"))
            raise
        except Exception:  # noqa: BLE001 (the edge: a mistake of ours must still end in an answer)
            _log.exception("internal error", extra={"path": scope["path"]})
            await client.fail(Internal("internal error of the agent; its log has the cause", code="internal_error"))

    async def _dispatch(self, scope: Message, client: Connection, arrived_at: float) -> None:
        replica, path = self._split(scope["path"])
        kind = _KINDS.get(path)
        if kind is not None:
            _allow(scope, "POST")
            await self._generate(kind, replica, client, arrived_at)
        elif path == "models":
            _allow(scope, "GET", "HEAD")
            cards = [self._card(route) for route in self._models(replica)]
            await client.json(msgspec.json.encode({"object": "list", "data": cards}))
        elif path.startswith("models/"):
            _allow(scope, "GET", "HEAD")
            name = path.removeprefix("models/")
            route = next((one for one in self._models(replica) if one.served_model_name == name), None)
            if route is None:
                raise self._unknown_model(name, replica)
            await client.json(msgspec.json.encode(self._card(route)))
        else:
            raise _unknown_path(scope["path"])

    def _split(self, path: str) -> tuple[Route | None, str]:
        """Return the replica that the path names, None for any, and what is asked of it.

        Raises:
            NotFound: No such path.
            Unavailable: The replica is not on this board (any more); whoever asks should look where it is now.
        """
        if path.startswith("/v1/"):
            return None, path.removeprefix("/v1/")
        parts = path.split("/", 5)
        if len(parts) != 6 or parts[:2] != ["", "replicas"] or parts[4] != "v1":
            raise _unknown_path(path)
        route = self._routes.find(parts[2], parts[3])
        if route is None:
            raise Unavailable(f"replica {parts[2]}/{parts[3]} is not on this board", code="replica_not_here")
        return route, parts[5]

    def _models(self, replica: Route | None) -> tuple[Route, ...]:
        """Return one route per served model that answers now, or loads when it is asked for."""
        routes = (replica,) if replica else self._routes.all()
        return tuple({route.served_model_name: route for route in routes if _takes_requests(route)}.values())

    async def _generate(self, kind: openai.Kind, replica: Route | None, client: Connection, arrived_at: float) -> None:
        request = openai.parse_request(kind, await client.body())
        route = self._choose(request.model, replica)
        client.headers += [
            (b"x-rkfleet-board", route.board.encode()),
            (b"x-rkfleet-replica", f"{route.namespace}/{route.name}".encode()),
            (b"x-rkfleet-variant", route.variant.encode()),
        ]
        await client.while_connected(self._proxy.answer(request, route, arrived_at, client))

    def _card(self, route: Route) -> dict[str, Any]:
        return openai.model_card(route.served_model_name, route.context_tokens, simulated=self._simulated)

    def _choose(self, model: str, replica: Route | None) -> Route:
        """Return the route that should answer: ready before not ready, then the least busy.

        Raises:
            NotFound: Nothing here serves that name.
        """
        candidates = (replica,) if replica else self._routes.of_model(model)
        candidates = tuple(route for route in candidates if route.served_model_name == model)
        if not candidates:
            raise self._unknown_model(model, replica)
        return min(candidates, key=lambda route: (route.draining, not route.endpoint, self._queue.in_flight(route.uid)))

    def _unknown_model(self, name: str, replica: Route | None) -> NotFound:
        routes = (replica,) if replica else self._routes.all()
        known = ", ".join(sorted({route.served_model_name for route in routes})) or "none"
        return NotFound(f"model {name[:128]!r} is not served here; served are: {known}", code="model_not_found", param="model")


def _takes_requests(route: Route) -> bool:
    return bool(route.endpoint or route.on_demand) and not route.draining


def _allow(scope: Message, *methods: str) -> None:
    if scope["method"] not in methods:
        raise _NoSuchMethod(f"{scope['path']} takes {' or '.join(methods)}, not {scope['method']}", code="method_not_allowed")


def _unknown_path(path: str) -> NotFound:
    return NotFound(f"{path[:256]} is not served here; see GET /v1/models and POST /v1/chat/completions", code="unknown_url")
