"""The board's APIs for clients, as an ASGI application.

In: HTTP requests of gateways (over mutual TLS) and of clients, let in by `agent/serving/access.py`. Out: answers of this board's workers.

    /v1/...                          OpenAI's API, by served model name, the least busy replica of this board
    /, /api/...                      Ollama's API, the same
    /replicas/<namespace>/<name>/... either, one replica; this is the base URL in `Replica.status.endpoint`

A framework would bring more memory than these routes need: the agent's is counted. `agent/app.py` serves it on every listener. A further
dialect is an `Api` in the tuple that `Serving` makes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from agent.serving import call as calls
from agent.serving.call import Call
from agent.serving.connection import Connection, Message, Receive, Send
from agent.serving.demand import Demand, Undemanding
from agent.serving.desk import Desk
from agent.serving.measure import Measurements
from agent.serving.ollama_api import OllamaApi
from agent.serving.openai_api import OpenAiApi
from agent.serving.queue import Queue
from agent.serving.request import Dialect
from agent.serving.routes import Route, Routes
from rkfleet.clock import Clock
from rkfleet.errors import FleetError, Internal, NotFound, Unavailable
from rkfleet.kinds.replica import Measured
from rkfleet.metrics import Metrics
from rkfleet.request_ids import new_request_id, request_id
from rkfleet.simulated import HEADER as SIMULATED_HEADER

__all__ = ["TENANT", "Api", "Serving"]

TENANT: Final = "rkfleet.tenant"  # Key of the ASGI scope under which `agent/serving/access.py` says whose request it is.

_log = logging.getLogger(__name__)


class Api(Protocol):
    """One dialect.

    Attributes:
        dialect: How its clients read errors.
    """

    dialect: Dialect

    def serves(self, path: str) -> bool:
        """Return whether a path is of this API."""
        ...

    async def answer(self, call: Call) -> None:
        """Answer one call.

        Raises:
            FleetError: It failed; nothing was sent, or a stream has begun.
        """
        ...


class Serving:
    """The application and what the agent's loop reads of it."""

    def __init__(
        self,
        routes: Routes,
        metrics: Metrics,
        clock: Clock,
        *,
        simulated: bool = False,
        demand: Demand | None = None,
        new_id: Callable[[], str] = new_request_id,
    ) -> None:
        """Take the routes, whether every answer must say that the board is simulated, and who is told of demand."""
        self._own_headers: Final = [(SIMULATED_HEADER.encode(), b"true")] if simulated else []
        self._routes: Final = routes
        self._clock: Final = clock
        self._new_id: Final = new_id
        self._queue: Final = Queue()
        self._measurements: Final = Measurements(metrics, clock)
        desk = Desk(routes, self._queue, self._measurements, demand or Undemanding(), now=clock.now, simulated=simulated)
        self._openai: Final = OpenAiApi(desk)
        self._apis: Final[tuple[Api, ...]] = (self._openai, OllamaApi(desk))
        routes.on_replace(self._measurements.keep)

    def in_flight(self, uid: str) -> int:
        """Return the requests that run or wait at this replica."""
        return self._queue.in_flight(uid)

    def measured(self, uid: str) -> Measured | None:
        """Return the replica's recent speed, or None before its first answer."""
        return self._measurements.measured(uid)

    def client(self, scope: Message, receive: Receive, send: Send) -> Connection:
        """Return a request's connection, with its id and the dialect that its path says."""
        client = Connection(receive, send, request_id(scope["headers"], self._new_id))
        client.headers = [(b"x-request-id", client.request_id.encode()), *self._own_headers]
        client.dialect = self._api(_below(scope["path"])).dialect
        return client

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        arrived_at = self._clock.monotonic()
        client = self.client(scope, receive, send)
        where = {"path": scope["path"], "request_id": client.request_id}
        try:
            path = _below(scope["path"])
            call = Call(
                method=scope["method"],
                path=path,
                whole_path=scope["path"],
                replica=self._replica(scope["path"]),
                client=client,
                arrived_at=arrived_at,
                tenant=scope.get(TENANT, calls.LOCAL_TENANT),
                deadline_seconds=calls.deadline_seconds(scope["headers"]),
            )
            await self._api(path).answer(call)
        except FleetError as error:
            await client.fail(error)
        except asyncio.CancelledError:  # only the listener's own end cancels this task
            await client.fail(Unavailable("the agent of this board stops", code="agent_stopping"))
        except Exception:  # noqa: BLE001 (the edge: a mistake of ours must still end in an answer)
            _log.exception("internal error", extra=where)
            await client.fail(
                Internal(f"internal error of the agent; its log has the cause under request {client.request_id}", code="internal_error")
            )

    def _api(self, path: str) -> Api:
        return next((api for api in self._apis if api.serves(path)), self._openai)

    def _replica(self, path: str) -> Route | None:
        """Return the replica that the path names, None for any.

        Raises:
            NotFound: No such path.
            Unavailable: The replica is not on this board (any more); whoever asks should look where it is now.
        """
        parts = path.split("/", 4)
        if parts[:2] != ["", "replicas"]:
            return None
        if len(parts) != 5:
            raise NotFound(f"{path[:256]} is not served here; paths of one replica are /replicas/NAMESPACE/NAME/v1/...", code="unknown_url")
        route = self._routes.find(parts[2], parts[3])
        if route is None:
            raise Unavailable(f"replica {parts[2]}/{parts[3]} is not on this board", code="replica_not_here")
        return route


def _below(path: str) -> str:
    """Return what is asked of the board or, below `/replicas/<namespace>/<name>`, of one replica."""
    parts = path.split("/", 4)
    return f"/{parts[4]}" if parts[:2] == ["", "replicas"] and len(parts) == 5 else path
