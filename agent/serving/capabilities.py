"""What a loaded model can do beyond words, asked of its worker once per load.

In: a route with a worker. Out: whether its chat template has a place for tools. Called by `agent/serving/desk.py`. A template without one
drops tools without a word, and the client would take the answer for the model's choice not to call any; so the request is refused instead.

llama.cpp says so in `/props` (`chat_template_caps`). Workers of other runtimes refuse what they cannot do by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from agent.serving import listener
from agent.serving.routes import Route
from rkfleet.errors import FleetError

__all__ = ["Capabilities"]


class _Caps(msgspec.Struct, frozen=True):
    supports_tools: bool = True


class _Props(msgspec.Struct, frozen=True):
    chat_template_caps: _Caps = _Caps()


class Capabilities:
    """Answers of the workers that run now, by replica uid."""

    def __init__(self) -> None:
        self._known: Final[dict[str, tuple[str, _Caps]]] = {}  # with the endpoint, which is another one after each load

    async def tools(self, route: Route) -> bool:
        """Return whether the model can be given tools; True where nobody knows better."""
        if route.runtime != "llamacpp" or not route.endpoint:
            return True
        known = self._known.get(route.uid)
        if known is None or known[0] != route.endpoint:
            try:
                known = self._known[route.uid] = (route.endpoint, await _ask(route))
            except (FleetError, msgspec.MsgspecError):
                return True  # the request itself will meet the worker's trouble and say so
        return known[1].supports_tools

    def keep(self, routes: Iterable[Route]) -> None:
        """Forget workers that are not there any more."""
        for uid in self._known.keys() - {route.uid for route in routes}:
            del self._known[uid]


async def _ask(route: Route) -> _Caps:
    async with listener.ask(route.endpoint, route.api_key, "/props", b"", method="GET") as reply:
        return msgspec.json.decode(await reply.body(), type=_Props).chat_template_caps
