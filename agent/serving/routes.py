"""Which replicas the board serves, as one value that is replaced whole.

`agent/loop.py` makes a `Route` from each assigned replica and its worker's state and replaces the tuple; the HTTP application reads
it per request. The table holds no requests: those are counted in `agent/serving/queue.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

__all__ = ["Chosen", "Route", "Routes"]


class Route(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One replica as clients can reach it.

    Attributes:
        uid: Uid of the Replica.
        served_model_name: What clients ask for, and the model name in every answer.
        model: Name of the Model object.
        variant: Name of its variant.
        board: Name of this board.
        endpoint: `http://127.0.0.1:<port>` of the worker; empty while none is ready, which clients see as 503 `model_loading`.
        api_key: Bearer token of the worker's listener.
        draining: Takes nothing new; what is running or queued finishes.
        waiting_reason: Sentence for clients and people while `endpoint` is empty.
        adapters: Names of its LoRAs; clients ask for `<served_model_name>:<adapter>`.
        runtime: Runtime of the variant: rkllm, rknn or llamacpp.
        dtype: Quantization of the variant.
        size_bytes: Bytes of its files.
        digest: Hex sha256 of its weights.
        memory_bytes: Memory that it takes while loaded.
        on_demand: A request may wait while the model is loaded for it (`agent/serving/waking.py`).
        shifts: The runtime goes on when the context is full.
        images: Whether it has an encoder for images.
        soc: Chip that the variant is for; with the next two, the row of the benchmark table that it refers to.
        reference_model: Model of that row; empty for none.
        reference_sdk_version: Release of that row; empty for the newest that has one.
        simulated: No model runs behind it; every answer says so.
    """

    uid: str
    namespace: str
    name: str
    served_model_name: str
    model: str = ""
    variant: str = ""
    board: str = ""
    endpoint: str = ""
    api_key: str = ""
    max_concurrent: int = 1
    max_queued: int = 8
    max_output_tokens: int = 512
    context_tokens: int = 1024
    draining: bool = False
    waiting_reason: str = ""
    adapters: tuple[str, ...] = ()
    runtime: str = ""
    dtype: str = ""
    size_bytes: int = 0
    digest: str = ""
    memory_bytes: int = 0
    on_demand: bool = False
    shifts: bool = False
    images: bool = False
    soc: str = ""
    reference_model: str = ""
    reference_sdk_version: str = ""
    simulated: bool = False


class Chosen(msgspec.Struct, frozen=True, gc=False):
    """The replica that answers a request, and the LoRA that it asks for; empty for the model itself."""

    route: Route
    adapter: str = ""


class Routes:
    """The latest routes of the board."""

    def __init__(self) -> None:
        self._routes: tuple[Route, ...] = ()
        self._listeners: Final[list[Callable[[tuple[Route, ...]], None]]] = []
        self._next = asyncio.Event()  # set at the next replacement

    def replace(self, routes: tuple[Route, ...]) -> None:
        """Put all routes in place of all before, sorted by namespace and name."""
        self._routes = tuple(sorted(routes, key=lambda route: (route.namespace, route.name, route.uid)))
        for listener in self._listeners:
            listener(self._routes)
        replaced, self._next = self._next, asyncio.Event()
        replaced.set()

    async def changed(self) -> None:
        """Wait for the next replacement."""
        await self._next.wait()

    def on_replace(self, listener: Callable[[tuple[Route, ...]], None]) -> None:
        """Call `listener` with the new routes after each replacement."""
        self._listeners.append(listener)

    def all(self) -> tuple[Route, ...]:
        """Return every route."""
        return self._routes

    def find(self, namespace: str, name: str) -> Route | None:
        """Return the route of one replica, or None."""
        return next((route for route in self._routes if route.namespace == namespace and route.name == name), None)

    def of_model(self, served_model_name: str) -> tuple[Route, ...]:
        """Return every route that serves this name."""
        return tuple(route for route in self._routes if route.served_model_name == served_model_name)
