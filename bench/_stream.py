"""One streamed answer as its client saw it, on a connection that stays open: when each piece came, and what it said.

In: a URL and a prompt. Out: `Seen`. The client is `rkfleet/http1.py`, bare asyncio streams, because at a few milliseconds a general client
measures itself. `bench.seed_table` and `bench.cancel` ask with it; the leading underscore keeps it out of `make bench`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from rkfleet.clock import Clock
from rkfleet.http1 import Connection

__all__ = ["Client", "Piece", "Refused", "Seen"]

SILENCE_SECONDS_MAX: Final = 60.0  # No row of any table takes so long for a token.
HEADERS: Final = ((b"Content-Type", b"application/json"),)


class Refused(Exception):
    """The answer was none; `status` says which kind."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}: {body.decode(errors='replace')[:300]}")
        self.status: Final = status


class Piece(msgspec.Struct, frozen=True):
    """One event with text in it, and the monotonic second in which it came."""

    text: str
    at: float


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer.

    Attributes:
        asked_at: Monotonic second at which the request was sent.
        pieces: Its events with text; each is a token.
        usage: Tokens as the server counted them.
        headers: Those of the answer, in lower case.
    """

    asked_at: float
    pieces: tuple[Piece, ...]
    usage: Mapping[str, Any]
    headers: Mapping[bytes, bytes]

    @property
    def text(self) -> str:
        """What was said."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def first_token_seconds(self) -> float:
        """From sending the request to the first text."""
        return self.pieces[0].at - self.asked_at

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first, by the time from the first to the last."""
        return (len(self.pieces) - 1) / (self.pieces[-1].at - self.pieces[0].at)


class Client:
    """A client of one listener, which asks one thing at a time. Also an async context manager, which closes it."""

    def __init__(self, url: str, clock: Clock) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None, f"{url} has no host"
        assert parts.port is not None, f"{url} has no port"
        self._address: Final = (parts.hostname, parts.port)
        self._clock: Final = clock
        self._connection: Connection | None = None
        self.asked_at = 0.0
        self.headers: Mapping[bytes, bytes] = {}
        self.usage: Mapping[str, Any] = {}

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Close the connection, also in the middle of an answer."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def complete(self, model: str, prompt: str, tokens: int) -> Seen:
        """Ask for a completion of a bare prompt and read it to its end.

        Raises:
            Refused: It was refused.
            ConnectionLost: The other side went away.
        """
        pieces = tuple([piece async for piece in self.pieces(model, prompt, tokens)])
        return Seen(asked_at=self.asked_at, pieces=pieces, usage=self.usage, headers=self.headers)

    async def pieces(self, model: str, prompt: str, tokens: int) -> AsyncGenerator[Piece, None]:
        """Ask and yield the text as it comes; `asked_at` is set before the first piece, `headers` with it, `usage` at the end.

        Raises:
            Refused: It was refused, or broke off.
            ConnectionLost: The other side went away.
        """
        if self._connection is None or not self._connection.reusable:
            self.leave()
            self._connection = await Connection.open(*self._address, seconds_max=SILENCE_SECONDS_MAX)
        connection, body = self._connection, _body(model, prompt, tokens)
        self.usage = {}
        self.asked_at = self._clock.monotonic()
        head = await connection.ask("POST", "/v1/completions", HEADERS, body, seconds_max=SILENCE_SECONDS_MAX)
        self.headers = head.headers
        if head.status != 200:
            raise Refused(head.status, b"".join([piece async for piece in connection.pieces(seconds_max=SILENCE_SECONDS_MAX)]))
        rest = b""
        async for received in connection.pieces(seconds_max=SILENCE_SECONDS_MAX):
            at = self._clock.monotonic()
            *events, rest = (rest + received).split(b"\n\n")
            for event in events:
                if text := self._text_of(event):
                    yield Piece(text, at)

    def _text_of(self, event: bytes) -> str:
        if not event.startswith(b"data: ") or event == b"data: [DONE]":
            return ""
        fields = json.loads(event[6:])
        if "error" in fields:
            raise Refused(200, event)
        if fields.get("usage"):
            self.usage = fields["usage"]
        return "".join(choice.get("text", "") for choice in fields.get("choices", ()))


def _body(model: str, prompt: str, tokens: int) -> bytes:
    fields = {"model": model, "prompt": prompt, "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(fields).encode()
