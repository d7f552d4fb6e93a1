"""The paths of the OpenAI API below `/v1/`, and `logits`, one of rkfleet's own, beside them.

In: calls. Out: answers on the call's connection. Called by `agent/serving/app.py`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from agent.serving import openai
from agent.serving.call import Call
from agent.serving.desk import Desk
from agent.serving.methods import allow, unknown_path
from agent.serving.request import Dialect, Timing
from rkfleet.errors import NotFound

__all__ = ["PREFIX", "OpenAiApi"]

PREFIX: Final = "/v1/"

_KINDS: Final[dict[str, openai.Kind]] = {"chat/completions": "chat", "completions": "completion"}


class OpenAiApi:
    """Answers OpenAI's clients; implements `agent.serving.app.Api`."""

    dialect: Dialect = openai.OpenAi()

    def __init__(self, desk: Desk) -> None:
        self._desk: Final = desk

    def serves(self, path: str) -> bool:
        """Return whether a path is of this API."""
        return path.startswith(PREFIX)

    async def answer(self, call: Call) -> None:
        """Answer one call.

        Raises:
            FleetError: It failed; nothing was sent, or a stream has begun.
        """
        path = call.path.removeprefix(PREFIX)
        kind = _KINDS.get(path)
        if kind is not None:
            allow(call, "POST")
            request = openai.parse_request(kind, await call.client.body())
            await self._desk.generate(request, openai.Streamed(request) if request.stream else openai.Gathered(request), call)
        elif path == "embeddings":
            allow(call, "POST")
            asked = openai.parse_embeddings(await call.client.body())

            def finish(vectors: tuple[bytes, ...], timing: Timing) -> bytes:
                return openai.embeddings_body(asked, vectors, timing.prompt_tokens)

            await self._desk.embed(asked, call, finish)
        elif path == "logits":
            allow(call, "POST")
            wanted = openai.parse_logits(await call.client.body())
            await self._desk.logits(wanted, call, lambda logits: openai.logits_body(wanted, logits))
        elif path == "models" or path.startswith("models/"):
            allow(call, "GET", "HEAD")
            await call.client.json(msgspec.json.encode(self._models(path, call)))
        else:
            raise unknown_path(call)

    def _models(self, path: str, call: Call) -> dict[str, Any]:
        """Return the list of models, or one card."""
        cards = {card["id"]: card for card in self._cards(call)}
        if path == "models":
            return {"object": "list", "data": list(cards.values())}
        name = path.removeprefix("models/")
        if name not in cards:
            known = ", ".join(sorted(cards)) or "none"
            raise NotFound(f"model {name[:128]!r} is not served here; served are: {known}", code="model_not_found", param="model")
        return cards[name]

    def _cards(self, call: Call) -> list[dict[str, Any]]:
        return [
            openai.model_card(name, route.context_tokens, simulated=self._desk.simulated or route.simulated)
            for route in self._desk.models(call)
            for name in (route.served_model_name, *(f"{route.served_model_name}:{adapter}" for adapter in route.adapters))
        ]
