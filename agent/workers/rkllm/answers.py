"""A worker's answer as OpenAI's chunks: bytes of tokens become events of a stream. Pure.

In: what `runner.py` posts. Out: server-sent events. Called by `http.py`. Text passes three stages, each of which may hold some back:
whole characters (`codecs`), stop words (`stops.py`), and what is thought, said or called (`tools.py`).
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from agent.workers.rkllm.asks import Ask
from agent.workers.rkllm.stops import Stops
from agent.workers.rkllm.tools import Parser
from agent.workers.rkllm.work import Began, Done, Work
from rkfleet.errors import FleetError

__all__ = ["Chunks", "error_body", "error_event", "event"]

DONE: Final = b"data: [DONE]\n\n"


class Chunks:
    """The events of one answer.

    Attributes:
        over: A stop word came: what the model says now is not part of the answer.
    """

    def __init__(self, ask: Ask, work: Work, *, chat: bool, id: str, created: int) -> None:
        """Take the request, and what every event begins with."""
        self._chat: Final = chat
        self._head: Final = {"id": id, "object": "chat.completion.chunk" if chat else "text_completion", "created": created, "model": ""}
        self._characters: Final = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops: Final = Stops(ask.stops)
        self._parser: Final = Parser(tools=work.callable, thinking=work.thinking_open, new_id=lambda index: f"call_{id}_{index}")
        self.over = False

    def begin(self, began: Began, ignored: tuple[str, ...]) -> bytes:
        """Return the first event: the request has its place, and these fields of it have no effect."""
        progress = {"total": began.prompt_tokens, "processed": began.cached_tokens, "cache": began.cached_tokens}
        return self._event([self._choice({})], prompt_progress=progress, **({"ignored": ignored} if ignored else {}))

    def feed(self, text: bytes) -> bytes:
        """Return what a token adds; empty for nothing yet."""
        if self.over:
            return b""
        shown, self.over = self._stops.feed(self._characters.decode(text))
        return self._said(shown)

    def end(self, done: Done) -> bytes:
        """Return what was held back, the reason and the usage."""
        shown = "" if self.over else self._stops.feed(self._characters.decode(b"", final=True))[0] + self._stops.end()
        rest = self._said(shown) + self._deltas(self._parser.end() if self._chat else ())
        reason = "tool_calls" if self._parser.calls else "length" if done.end == "length" and not self.over else "stop"
        usage = {
            "prompt_tokens": done.prompt_tokens,
            "completion_tokens": done.output_tokens,
            "total_tokens": done.prompt_tokens + done.output_tokens,
            "prompt_tokens_details": {"cached_tokens": done.cached_tokens},
        }
        ending = {**self._choice({}), "finish_reason": reason}
        return rest + self._event([ending]) + self._event([], usage=usage) + DONE

    def _said(self, text: str) -> bytes:
        if not self._chat:
            return self._event([{"index": 0, "text": text, "finish_reason": None}]) if text else b""
        return self._deltas(self._parser.feed(text))

    def _deltas(self, deltas: Iterable[Mapping[str, Any]]) -> bytes:
        return b"".join(self._event([self._choice(delta)]) for delta in deltas)

    def _choice(self, delta: Mapping[str, Any]) -> dict[str, Any]:
        said: dict[str, Any] = {"delta": delta} if self._chat else {"text": ""}
        return {"index": 0, **said, "finish_reason": None}

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return event({**self._head, "choices": choices, **more})


def event(fields: Mapping[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def error_body(error: FleetError, request_id: str) -> bytes:
    """Return an error as llama.cpp's listener writes it, with the request's id."""
    kind = "invalid_request_error" if error.http_status < 500 else "server_error"
    fields = {"code": error.http_status, "message": error.message, "type": kind, **error.details, "request_id": request_id}
    return msgspec.json.encode({"error": {**fields, "code": error.http_status}})


def error_event(error: FleetError, request_id: str) -> bytes:
    """Return an error as the last event of a stream that has begun."""
    return b"data: " + error_body(error, request_id) + b"\n\n"
