"""What every dialect asks the board for: its models, the replica that should answer, an answer, vectors, loading.

In: requests and names as clients write them. Out: the proxy's work, on the replica chosen here. Called by `agent/serving/openai_api.py` and
`agent/serving/ollama_api.py`; it stands between them and the proxy so that a name means the same in every dialect.

A name is a served name, or a served name with `:latest`, or `<served name>:<adapter>` for one of its LoRAs. A served name that is written
exactly so comes first, so names with colons stay names.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from agent.serving.call import Call
from agent.serving.capabilities import Capabilities
from agent.serving.demand import Demand
from agent.serving.measure import Measurements
from agent.serving.proxy import Proxy
from agent.serving.queue import Queue
from agent.serving.request import Answer, EmbeddingRequest, Logits, LogitsRequest, Request, Timing, named
from agent.serving.routes import Chosen, Route, Routes
from rkfleet.errors import BadRequest, NotFound
from rkfleet.simulated import HEADER as SIMULATED_HEADER

__all__ = ["LATEST", "Desk"]

LATEST: Final = "latest"


class Desk:
    """The services of one board.

    Attributes:
        simulated: Every answer must say that the board is simulated.
        now: Time of day, for dialects whose answers carry one.
    """

    def __init__(
        self,
        routes: Routes,
        queue: Queue,
        measurements: Measurements,
        demand: Demand,
        *,
        now: Callable[[], datetime],
        simulated: bool,
    ) -> None:
        self._routes: Final = routes
        self._queue: Final = queue
        self._demand: Final = demand
        self._capabilities: Final = Capabilities()
        routes.on_replace(self._capabilities.keep)
        self._proxy: Final = Proxy(routes, queue, measurements, demand)
        self.now: Final = now
        self.simulated: Final = simulated

    def models(self, call: Call) -> tuple[Route, ...]:
        """Return one route per served model that answers now, or would once it is loaded."""
        routes = (call.replica,) if call.replica else self._routes.all()
        answering = (route for route in routes if (route.endpoint or route.on_demand) and not route.draining)
        return tuple({route.served_model_name: route for route in sorted(answering, key=lambda route: bool(route.endpoint))}.values())

    def choose(self, model: str, call: Call) -> Chosen:
        """Return who should answer: ready before not ready, then the least busy.

        Raises:
            NotFound: Nothing here serves that name.
        """
        routes = (call.replica,) if call.replica else self._routes.all()
        served, adapter = model, ""
        candidates = [route for route in routes if route.served_model_name == served]
        if not candidates and ":" in model:
            served, _, adapter = model.rpartition(":")
            candidates = [route for route in routes if route.served_model_name == served and adapter in (LATEST, *route.adapters)]
        if not candidates:
            raise _unknown_model(model, routes)
        adapter = "" if adapter == LATEST else adapter
        return Chosen(min(candidates, key=lambda route: (route.draining, not route.endpoint, self._queue.in_flight(route.uid))), adapter)

    async def generate(self, request: Request, answer: Answer, call: Call, keep_seconds: float | None = None) -> None:
        """Answer a request on the client's connection, until the end or until the client leaves.

        Raises:
            FleetError: It failed.
        """
        chosen = self._chosen(request.model, call)
        if request.has_images and not chosen.route.images:
            raise BadRequest(
                f"model {request.model!r} reads no images: its variant {chosen.route.variant or chosen.route.name} has no image encoder",
                code="images_not_supported",
                param="messages",
            )

        async def work() -> None:
            if bytes(request.passed.get("tools", b"[]")) != b"[]" and not await self._capabilities.tools(chosen.route):
                raise BadRequest(
                    f"model {request.model!r} knows no tools: its chat template has no place for them; ask without tools",
                    code="tools_not_supported",
                    param="tools",
                )
            await self._proxy.answer(request, answer, chosen, call, keep_seconds)

        await call.client.while_connected(work())

    async def knows_tools(self, route: Route) -> bool:
        """Return whether a replica's model can be given tools; True where nobody knows better."""
        return await self._capabilities.tools(route)

    async def embed(
        self, request: EmbeddingRequest, call: Call, finish: Callable[[tuple[bytes, ...], Timing], bytes], keep_seconds: float | None = None
    ) -> None:
        """Answer with vectors; `finish` writes them down.

        Raises:
            FleetError: It failed.
        """
        chosen = self._chosen(request.model, call)

        async def work() -> None:
            vectors, timing = await self._proxy.embed(request, chosen, call, keep_seconds)
            if ignored := named(request.ignored):
                call.client.headers.append((b"x-rkfleet-ignored", ", ".join(ignored).encode()))
            await call.client.json(finish(vectors, timing))

        await call.client.while_connected(work())

    async def logits(self, request: LogitsRequest, call: Call, finish: Callable[[Logits], bytes]) -> None:
        """Answer with the logits of the token that would come next; `finish` writes them down.

        Raises:
            FleetError: It failed.
        """
        chosen = self._chosen(request.model, call)
        if chosen.route.runtime != "rkllm":
            raise BadRequest(
                f"model {request.model!r} runs on {chosen.route.runtime or 'another runtime'}, which gives no logits; runtime rkllm does, "
                "and chat completions have logprobs",
                code="not_supported",
            )

        async def work() -> None:
            await call.client.json(finish(await self._proxy.logits(request, chosen, call)))

        await call.client.while_connected(work())

    async def load(self, model: str, call: Call, keep_seconds: float | None, finish: Callable[[float], bytes]) -> None:
        """Load a model and say when it is; `finish` is told the seconds.

        Raises:
            FleetError: It cannot be loaded now.
        """
        chosen = self._chosen(model, call)

        async def work() -> None:
            seconds = await self._proxy.load(chosen.route, call, keep_seconds)
            await call.client.json(finish(seconds))

        await call.client.while_connected(work())

    def unload(self, model: str, call: Call) -> None:
        """Unload a model once nothing runs there.

        Raises:
            BadRequest: Its deployment declares that it stays loaded.
        """
        chosen = self._chosen(model, call)
        if not chosen.route.on_demand:
            raise BadRequest(
                f"model {model!r} stays loaded, as its deployment declares; serving.load: OnDemand lets it be unloaded",
                code="not_on_demand",
                param="keep_alive",
            )
        self._demand.unload(chosen.route.uid)

    def _chosen(self, model: str, call: Call) -> Chosen:
        """Choose, and have the answer say who gives it."""
        chosen = self.choose(model, call)
        route = chosen.route
        call.client.headers += [
            (b"x-rkfleet-board", route.board.encode()),
            (b"x-rkfleet-replica", f"{route.namespace}/{route.name}".encode()),
            (b"x-rkfleet-variant", route.variant.encode()),
        ]
        if route.simulated and not self.simulated:  # a simulated board says it with every answer already
            call.client.headers.append((SIMULATED_HEADER.encode(), b"true"))
        return chosen


def _unknown_model(name: str, routes: tuple[Route, ...]) -> NotFound:
    names = {route.served_model_name for route in routes} | {
        f"{route.served_model_name}:{one}" for route in routes for one in route.adapters
    }
    known = ", ".join(sorted(names)) or "none"
    return NotFound(f"model {name[:128]!r} is not served here; served are: {known}", code="model_not_found", param="model")
