"""One request at its worker: what is sent there, and every event of the answer handed on as it comes.

In: a request that has its place, and the dialect's `Answer`. Out: the answer on the client's connection, and why it ended. Called by
`agent/serving/proxy.py`.

Until the worker's first output exists nothing is sent to the client, so every failure before it has an HTTP status and whoever asks
may try another replica; only a stream whose prompt will take longer than HEARTBEAT_AFTER_SECONDS begins earlier, with comments that tell
how far its prompt is. After that a failure is the stream's last event.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final

from agent.serving import events, listener
from agent.serving.call import Call
from agent.serving.connection import Connection
from agent.serving.measure import Journey, Measurements, Outcome
from agent.serving.request import Answer, Kind, Request, named, worker_request
from agent.serving.routes import Route
from rkfleet.errors import Unavailable

__all__ = ["Forward"]

HEARTBEAT_AFTER_SECONDS: Final = 30.0  # Proxies and clients give up on silent connections after 60 s; shorter prompts stay retryable.
HEARTBEAT_SECONDS: Final = 5.0  # Between two of them.

_PATHS: Final[Mapping[Kind, str]] = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}


class Forward:
    """One request at its worker."""

    def __init__(
        self,
        measurements: Measurements,
        request: Request,
        answer: Answer,
        call: Call,
        *,
        route: Route,
        journey: Journey,
        limit: asyncio.Timeout,
        estimate: float | None,
    ) -> None:
        """Take the request, the dialect's answer, where it goes, its limit in time, and the estimated seconds of its prompt."""
        self._measurements: Final = measurements
        self._request: Final = request
        self._answer: Final = answer
        self.route: Final = route
        self._journey: Final = journey
        self._client: Final[Connection] = call.client
        self._call: Final = call
        self._limit: Final = limit
        self._beats: Final = not answer.whole and estimate is not None and estimate > HEARTBEAT_AFTER_SECONDS
        self._ignored: tuple[str, ...] = ()

    async def run(self, extra: Mapping[str, Any]) -> Outcome:
        """Ask the worker and hand its answer on."""
        route, request = self.route, self._request
        self._note_ignored(request.ignored)
        body = worker_request(request, route.max_output_tokens, extra)
        async with listener.ask(route.endpoint, route.api_key, _PATHS[request.kind], body, self._call.request_id) as reply:
            if reply.status != 200:
                raise events.worker_error(await reply.body(), route.context_tokens)
            reason = await self._relay(reply)
        ending = self._answer.ending(self._measurements.timing(self._journey))
        if self._answer.whole:
            self._tell_ignored()
            await self._client.json(ending)
        else:
            await self._begin()
            await self._client.send(ending, last=True)
        return reason

    async def _relay(self, reply: listener.Reply) -> Outcome:
        """Hand the worker's events on and return why the answer ended."""
        reason: str | None = None
        journey, route = self._journey, self.route
        async with contextlib.aclosing(reply.events()) as said:
            async for data in said:
                if data == b"[DONE]":
                    break
                event = events.decode_event(data)
                self._note(event, data)
                reason = event.finish_reason or reason
                await self._pass_on(self._answer.add(data, event))
                if event.prompt_progress is not None:
                    await self._beat(event.prompt_progress.processed, event.prompt_progress.total)
                full = journey.prompt_tokens + journey.output_tokens >= route.context_tokens and not route.shifts
                if reason is None and full:
                    reason = await self._end_by_length(data)
                    break
        if reason is None:
            raise Unavailable("the worker ended its answer without a finish reason", code="worker_exited")
        return "tool_calls" if reason == "tool_calls" else "length" if reason == "length" else "stop"

    def _note(self, event: events.Event, data: bytes) -> None:
        """Count what the event says.

        Raises:
            FleetError: It says that the worker failed, or that the prompt does not fit.
        """
        journey = self._journey
        if event.error is not None:
            raise events.worker_error(data, self.route.context_tokens)
        if event.ignored:
            self._note_ignored(tuple(self._request.spelled.get(name, name) for name in event.ignored))
        if event.prompt_progress is not None:
            journey.prompt_tokens, journey.cached_tokens = event.prompt_progress.total, event.prompt_progress.cache
            if journey.prompt_tokens >= self.route.context_tokens:
                raise events.context_exceeded(journey.prompt_tokens, self.route.context_tokens)
        if event.has_content:
            self._measurements.token(journey)
        if event.usage is not None:
            journey.prompt_tokens, journey.output_tokens = event.usage.prompt_tokens, event.usage.completion_tokens

    def _note_ignored(self, names: tuple[str, ...]) -> None:
        """Remember parameters without effect; the header that says so goes out with the first output."""
        new = tuple(name for name in named(names) if name not in self._ignored)
        self._measurements.ignored(self._journey, new)
        self._ignored += new

    def _tell_ignored(self) -> None:
        if self._ignored and not self._client.started:
            self._client.headers.append((b"x-rkfleet-ignored", ", ".join(self._ignored).encode()))

    async def _begin(self) -> None:
        if not self._client.started:
            self._tell_ignored()
            await self._client.start_stream(self._answer.stream_type)

    async def _pass_on(self, piece: bytes) -> None:
        if not piece:
            return
        self._limit.reschedule(None)
        await self._begin()
        await self._client.send(piece)

    async def _beat(self, done: int, total: int) -> None:
        """Tell a client that waits for a long prompt how far it is."""
        if not self._beats or not self._measurements.beat_due(self._journey, HEARTBEAT_SECONDS):
            return
        if comment := self._answer.heartbeat(done, total):
            await self._begin()
            await self._client.send(comment)

    async def _end_by_length(self, data: bytes) -> str:
        """End an answer that filled its context: a runtime may round the context up, the contract does not."""
        journey = self._journey
        total = journey.prompt_tokens + journey.output_tokens
        usage = events.Usage(prompt_tokens=journey.prompt_tokens, completion_tokens=journey.output_tokens, total_tokens=total)
        for ending in events.length_events(data, usage):
            await self._pass_on(self._answer.add(ending, events.decode_event(ending)))
        return "length"
