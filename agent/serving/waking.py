"""A request for a model that is not in memory: ask for it and wait until it is.

In: the route of a replica that loads on demand. Out: the route with its worker, or an error that says why there is none. Called by
`agent/serving/proxy.py` for a request that has its place in the queue: the place counts, so the loop sees that somebody waits, and no more
wait than `serving.maxQueued` allows.
"""

from __future__ import annotations

import asyncio
from typing import Final

from agent.serving.demand import Demand
from agent.serving.routes import Route, Routes
from rkfleet.errors import Unavailable

__all__ = ["LOAD_SECONDS_MAX", "RETRY_SECONDS", "loading", "wake"]

# As long as the supervisor lets a load take, and less than a gateway waits for the first byte.
LOAD_SECONDS_MAX: Final = 600.0
RETRY_SECONDS: Final = 2


async def wake(route: Route, routes: Routes, demand: Demand) -> Route:
    """Return the replica's route once its model is loaded.

    Raises:
        Unavailable: It is not loaded within LOAD_SECONDS_MAX, cannot be loaded, or is not served any more.
    """
    demand.want(route.uid)
    now: Route | None = route
    try:
        async with asyncio.timeout(LOAD_SECONDS_MAX):
            while True:
                now = routes.find(route.namespace, route.name)
                if now is None or now.uid != route.uid or not (now.endpoint or now.on_demand):
                    raise loading(now or route)
                if now.endpoint:
                    return now
                await routes.changed()
    except TimeoutError as error:
        raise loading(now or route) from error


def loading(route: Route) -> Unavailable:
    """Return the error of a replica that has no worker now."""
    why = route.waiting_reason or "its model is being loaded"
    return Unavailable(
        f"replica {route.namespace}/{route.name} does not answer yet: {why}", retry_after_seconds=RETRY_SECONDS, code="model_loading"
    )
