"""The paths of the Ollama API: `/`, and `version`, `tags`, `ps`, `show`, `chat`, `generate`, `embed` and `embeddings` below `/api/`.

In: calls. Out: answers on the call's connection. Called by `agent/serving/app.py`. What changes the models of a machine (`pull`, `create`,
`delete`, ...) is the fleet's business here; each says which command does it. Model names are shown with `:latest`, as Ollama's clients
know them, and taken with or without.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from agent.serving import ollama
from agent.serving.call import Call
from agent.serving.desk import LATEST, Desk
from agent.serving.methods import allow, unknown_path
from agent.serving.request import Dialect, Timing, read_body
from agent.serving.routes import Route
from rkfleet import __version__
from rkfleet.errors import BadRequest

__all__ = ["PREFIX", "OllamaApi"]

PREFIX: Final = "/api/"
ROOT: Final = b"Ollama is running"  # Word for word what clients look for to find a server.
UNKNOWN_TIME: Final = "0001-01-01T00:00:00Z"  # Go's zero time: a board does not know when a model was made.
NEVER: Final = "9999-12-31T23:59:59Z"  # It stays loaded for as long as it is assigned.

_ELSEWHERE: Final = {
    "pull": "models come to this board when a ModelDeployment needs them: rkfleet apply -f deployment.yaml",
    "push": "models are pushed to the fleet's registry: rkfleet model push FILE",
    "create": "models are made from files: rkfleet model push FILE, then rkfleet apply -f deployment.yaml",
    "copy": "a model gets another name by a deployment with servedModelName: rkfleet apply -f deployment.yaml",
    "delete": "models leave a board with their deployment: rkfleet delete modeldeployment NAME",
}
_FORMATS: Final = {"llamacpp": "gguf", "rkllm": "rkllm", "rknn": "rknn"}


class _Named(msgspec.Struct, frozen=True):
    model: str = ""
    name: str = ""  # as older clients call it


class _NotHere(BadRequest):
    """The fleet does this, not the board."""

    http_status = 501


class OllamaApi:
    """Answers Ollama's clients; implements `agent.serving.app.Api`."""

    dialect: Dialect = ollama.Ollama()

    def __init__(self, desk: Desk) -> None:
        self._desk: Final = desk

    def serves(self, path: str) -> bool:
        """Return whether a path is of this API."""
        return path == "/" or path.startswith(PREFIX)

    async def answer(self, call: Call) -> None:
        """Answer one call.

        Raises:
            FleetError: It failed; nothing was sent, or a stream has begun.
        """
        if call.path == "/":
            allow(call, "GET", "HEAD")
            await call.client.text(ROOT)
            return
        path = call.path.removeprefix(PREFIX)
        match path:
            case "version" | "tags" | "ps":
                allow(call, "GET", "HEAD")
                await call.client.json(msgspec.json.encode(self._listed(path, call)))
            case "show":
                allow(call, "POST")
                _, named = read_body(await call.client.body(), _Named)
                await call.client.json(msgspec.json.encode(await self._shown(named.model or named.name, call)))
            case "chat" | "generate":
                allow(call, "POST")
                await self._asked("chat" if path == "chat" else "generate", call)
            case "embed" | "embeddings":
                allow(call, "POST")
                await self._embed(path == "embeddings", call)
            case "pull" | "push" | "create" | "copy" | "delete":
                raise _NotHere(f"/api/{path} is not served by a board: {_ELSEWHERE[path]}", code="not_served")
            case _ if path.startswith("blobs/"):
                raise _NotHere(f"/api/blobs is not served by a board: {_ELSEWHERE['create']}", code="not_served")
            case _:
                raise unknown_path(call)

    async def _asked(self, question: ollama.Question, call: Call) -> None:
        asked = ollama.parse_asked(question, await call.client.body())
        if asked.request is not None:
            answer = ollama.OllamaAnswer(asked.request, question, self._desk.now)
            await self._desk.generate(asked.request, answer, call, asked.keep_seconds)
            return

        def nothing(reason: str, load_seconds: float) -> bytes:
            said: dict[str, Any] = {"message": {"role": "assistant", "content": ""}} if question == "chat" else {"response": ""}
            head = {"model": asked.model, "created_at": ollama.rfc3339(self._desk.now()), **said, "done": True, "done_reason": reason}
            measured = {"load_duration": round(load_seconds * ollama.NANOSECONDS)} if reason == "load" else {}
            return msgspec.json.encode({**head, **measured})

        if asked.keep_seconds == 0:
            self._desk.unload(asked.model, call)
            await call.client.json(nothing("unload", 0.0))
        else:
            await self._desk.load(asked.model, call, asked.keep_seconds, lambda seconds: nothing("load", seconds))

    async def _embed(self, one: bool, call: Call) -> None:
        request, keep_seconds = ollama.parse_embed(await call.client.body(), "prompt" if one else "input")

        def finish(vectors: tuple[bytes, ...], timing: Timing) -> bytes:
            return ollama.embedded_body(request, vectors, timing, one=one)

        await self._desk.embed(request, call, finish, keep_seconds)

    def _listed(self, path: str, call: Call) -> dict[str, Any]:
        if path == "version":
            return {"version": f"{__version__}-rkfleet"}
        if path == "ps":
            return {"models": [_running(route) for route in self._desk.models(call) if route.endpoint]}
        return {"models": [card for route in self._desk.models(call) for card in _cards(route)]}

    async def _shown(self, name: str, call: Call) -> dict[str, Any]:
        if not name:
            raise BadRequest("request body has no field model", code="missing_required_parameter", param="model")
        route = self._desk.choose(name, call).route
        tools = ["tools"] if await self._desk.knows_tools(route) else []
        capabilities = ["completion", *tools, *(["vision"] if route.images else []), *([] if self._desk.simulated else ["embedding"])]
        return {
            "modified_at": UNKNOWN_TIME,
            "parameters": f"num_ctx {route.context_tokens}\nnum_predict {route.max_output_tokens}",
            "template": "",
            "details": _details(route),
            "model_info": {
                "general.architecture": route.runtime,
                "general.name": route.model or route.served_model_name,
                f"{route.runtime or 'model'}.context_length": route.context_tokens,
            },
            "capabilities": capabilities,
        }


def _names(route: Route) -> tuple[str, ...]:
    return tuple(f"{route.served_model_name}:{tag}" for tag in (LATEST, *route.adapters))


def _cards(route: Route) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "model": name,
            "modified_at": UNKNOWN_TIME,
            "size": route.size_bytes,
            "digest": route.digest,
            "details": _details(route),
        }
        for name in _names(route)
    ]


def _running(route: Route) -> dict[str, Any]:
    name = _names(route)[0]
    return {
        "name": name,
        "model": name,
        "size": route.memory_bytes,
        "size_vram": 0,  # boards have one memory
        "digest": route.digest,
        "details": _details(route),
        "context_length": route.context_tokens,
        **({} if route.on_demand else {"expires_at": NEVER}),  # the loop decides when a model goes that is loaded on demand
    }


def _details(route: Route) -> dict[str, Any]:
    """Return what is known; families and parameter counts are not."""
    return {
        "parent_model": "",
        "format": _FORMATS.get(route.runtime, route.runtime),
        "family": "",
        "families": [],
        "parameter_size": "",
        "quantization_level": route.dtype,
    }
