"""Asking a worker on the NPU everything that it answers, with the times at which the answer came.

In: a `Listener`, a request. Out: an `Answer` or JSON. Called by the checks. It asks as the agent does, one request for each connection,
closed to cancel; besides, each request has a name, by which the worker's log tells when its run ended.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from agent.workers.base import Listener
from rkfleet.clock import Clock
from rkfleet.errors import FleetError, Unavailable
from rkfleet.http1 import Connection

__all__ = ["Answer", "Asker", "Piece", "Refused", "Stream"]

CONNECT_SECONDS_MAX: Final = 5.0  # Loopback; a worker whose every thread is busy may take a moment.
SILENCE_SECONDS_MAX: Final = 120.0  # The check's own limit ends it sooner.
BODY_BYTES_MAX: Final = 16 << 20  # Logits of a vocabulary of 262,144 words are 1.4 MB in base64.


class Refused(FleetError):
    """The worker answered with another status than 200; `details` has its `status` and `type`."""


class Piece(msgspec.Struct, frozen=True, gc=False):
    """Text, and when it came: seconds since the request was sent."""

    seconds: float
    text: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole streamed answer.

    Attributes:
        pieces: Text in the order in which it came, thoughts included.
        content: The answer without thoughts, as it goes back with the next turn.
        ignored: Fields of the request that had no effect.
        finish_reason: stop or length.
        seconds: Until the last event.
    """

    pieces: tuple[Piece, ...]
    content: str
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    ignored: tuple[str, ...]
    seconds: float

    @property
    def text(self) -> str:
        """Return all text, thoughts included."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def first_seconds(self) -> float:
        """Return the time to the first token; that of the whole answer if it has none."""
        return self.pieces[0].seconds if self.pieces else self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Return the decode speed: tokens after the first, by the time from the first to the last; 0 if there are too few."""
        span = self.pieces[-1].seconds - self.pieces[0].seconds if self.pieces else 0.0
        return (self.output_tokens - 1) / span if self.output_tokens > 1 and span > 0 else 0.0


class Stream:
    """An answer that has begun; `pieces` gives its text as it comes."""

    def __init__(self, connection: Connection, clock: Clock, sent: float) -> None:
        self._connection: Final = connection
        self._clock: Final = clock
        self._sent: Final = sent
        self.content = ""
        self.finish_reason = ""
        self.usage: Mapping[str, Any] = {}
        self.ignored: tuple[str, ...] = ()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield text.

        Raises:
            Unavailable: The answer broke off, or ended in an error.
        """
        rest = b""
        async with contextlib.aclosing(self._connection.pieces(seconds_max=SILENCE_SECONDS_MAX)) as chunks:
            async for chunk in chunks:
                *events, rest = (rest + chunk).split(b"\n\n")
                for event in events:
                    data = event.removeprefix(b"data: ")
                    if data and data != b"[DONE]":
                        for text in self._texts(msgspec.json.decode(data)):
                            yield Piece(self._clock.monotonic() - self._sent, text)

    def _texts(self, event: Mapping[str, Any]) -> Iterator[str]:
        if "error" in event:
            raise Unavailable(str(event["error"].get("message", "the answer ended in an error")))
        self.usage = event.get("usage") or self.usage
        self.ignored = tuple(event.get("ignored", ())) or self.ignored
        for choice in event.get("choices", ()):
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            delta = choice.get("delta") or {"content": choice.get("text", "")}
            content = delta.get("content") or ""
            self.content += content
            if text := (delta.get("reasoning_content") or "") + content:
                yield text


class Asker:
    """Asks one worker."""

    def __init__(self, listener: Listener, clock: Clock) -> None:
        self._listener: Final = listener
        self._clock: Final = clock
        self._names: Final = itertools.count(1)

    async def complete(self, prompt: str | Sequence[int], **fields: Any) -> Answer:
        """Return the answer to a bare prompt: a text, or token ids.

        Raises:
            FleetError: It is refused, or fails.
        """
        return await self.ask("/v1/completions", {"prompt": prompt if isinstance(prompt, str) else list(prompt), **fields})

    async def chat(self, messages: Sequence[Mapping[str, Any]], **fields: Any) -> Answer:
        """Return the answer to messages.

        Raises:
            FleetError: It is refused, or fails.
        """
        return await self.ask("/v1/chat/completions", {"messages": list(messages), **fields})

    async def ask(self, path: str, body: Mapping[str, Any]) -> Answer:
        """Return a whole streamed answer.

        Raises:
            FleetError: It is refused, or fails.
        """
        began = self._clock.monotonic()
        async with self.stream(path, body) as stream:
            pieces = [piece async for piece in stream.pieces()]
            cached = stream.usage.get("prompt_tokens_details") or {}
            return Answer(
                pieces=tuple(pieces),
                content=stream.content,
                finish_reason=stream.finish_reason,
                prompt_tokens=int(stream.usage.get("prompt_tokens", 0)),
                cached_tokens=int(cached.get("cached_tokens", 0)),
                output_tokens=int(stream.usage.get("completion_tokens", 0)),
                ignored=stream.ignored,
                seconds=self._clock.monotonic() - began,
            )

    def new_name(self) -> str:
        """Return a name for a request, by which the worker's log speaks of it."""
        return f"self-test-{next(self._names)}"

    @contextlib.asynccontextmanager
    async def stream(self, path: str, body: Mapping[str, Any], name: str = "") -> AsyncIterator[Stream]:
        """Ask; the end of the block closes the connection, which cancels the request.

        Args:
            path: Of the worker's listener.
            body: The request.
            name: From `new_name`; empty makes one.

        Raises:
            Refused: The status is not 200.
            Unavailable: The worker went away.
        """
        async with self._asked(path, body, name or self.new_name()) as (connection, sent):
            yield Stream(connection, self._clock, sent)

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return an answer that is JSON.

        Raises:
            FleetError: It is refused, or fails.
        """
        async with self._asked(path, body, self.new_name()) as (connection, _):
            return msgspec.json.decode(await _whole(connection))

    @contextlib.asynccontextmanager
    async def _asked(self, path: str, body: Mapping[str, Any], name: str) -> AsyncIterator[tuple[Connection, float]]:
        address = urlsplit(self._listener.endpoint)
        assert address.hostname is not None
        assert address.port is not None
        connection = await Connection.open(address.hostname, address.port, seconds_max=CONNECT_SECONDS_MAX)
        headers = [
            (b"Authorization", b"Bearer " + self._listener.api_key.encode()),
            (b"Content-Type", b"application/json"),
            (b"Connection", b"close"),
            (b"X-Request-Id", name.encode()),
        ]
        try:
            sent = self._clock.monotonic()
            head = await connection.ask("POST", path, headers, msgspec.json.encode(body), seconds_max=SILENCE_SECONDS_MAX)
            if head.status != 200:
                raise _refused(head.status, await _whole(connection))
            yield connection, sent
        finally:
            connection.close()


async def _whole(connection: Connection) -> bytes:
    body = b""
    async with contextlib.aclosing(connection.pieces(seconds_max=SILENCE_SECONDS_MAX)) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > BODY_BYTES_MAX:
                raise Unavailable(f"the worker sent more than {BODY_BYTES_MAX} bytes")
    return body


def _refused(status: int, body: bytes) -> Refused:
    try:
        error: Mapping[str, Any] = msgspec.json.decode(body, type=dict[str, dict[str, Any]])["error"]
    except (msgspec.MsgspecError, KeyError):
        error = {}
    words = str(error.get("message", body[:200].decode(errors="replace")))
    return Refused(words, status=status, type=str(error.get("type", "")), n_prompt_tokens=error.get("n_prompt_tokens"))
