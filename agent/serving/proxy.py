"""One request on its way through the agent: wait for a place, ask the worker, hand every event on at once.

In: a parsed request, the route that should answer it, and the client's connection. Out: the worker's answer under the served model's
name, or an error in OpenAI's format. Called by `agent/serving/app.py`.

Until the worker's first output exists nothing is sent to the client, so every failure before it has an HTTP status and whoever asks
may try another replica. After it a failure is the stream's last event. When the client leaves, the task is cancelled; that closes the
connection to the worker, which frees its place between two batches.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Final

from agent.demand import Demand
from agent.serving import listener, openai
from agent.serving.connection import SEND_SECONDS_MAX, Connection
from agent.serving.measure import Journey, Measurements, Outcome
from agent.serving.queue import Queue
from agent.serving.routes import Route, Routes
from agent.serving.waking import loading, wake
from rkfleet.errors import BadRequest, FleetError, ResourceExhausted, Unavailable

__all__ = ["Proxy"]

DRAINING_RETRY_SECONDS: Final = 1

_PATHS: Final[dict[openai.Kind, str]] = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}

_log = logging.getLogger(__name__)


class Proxy:
    """Forwards requests to the workers of this board."""

    def __init__(self, routes: Routes, queue: Queue, measurements: Measurements, demand: Demand) -> None:
        self._demand: Final = demand
        self._routes: Final = routes
        self._queue: Final = queue
        self._measurements: Final = measurements

    async def answer(self, request: openai.Request, route: Route, arrived_at: float, client: Connection) -> None:
        """Answer one request.

        Raises:
            FleetError: It failed; the caller tells the client.
        """
        journey = self._measurements.begin(route, arrived_at)
        outcome: Outcome = "cancelled"
        try:
            _refuse_unless_ready(route)
            self._demand.want(route.uid)
            async with self._queue.place(
                route.uid,
                max_concurrent=route.max_concurrent,
                max_queued=route.max_queued,
                seconds_per_request=self._measurements.seconds_per_request(route.uid),
            ):
                current = await self._current(route)
                self._measurements.sent(journey)
                outcome = await self._forward(request, current, journey, client)
        except FleetError as error:
            outcome = _outcome(error)
            if outcome == "failed":
                _log.warning("request failed", extra={"replica": f"{route.namespace}/{route.name}", "cause": error.message})
            raise
        except TimeoutError:
            _log.warning("client took nothing", extra={"replica": f"{route.namespace}/{route.name}", "seconds": SEND_SECONDS_MAX})
        finally:
            self._demand.touch(route.uid)
            self._measurements.end(journey, outcome)

    async def _current(self, route: Route) -> Route:
        """Return the route as it is now: the worker may have gone or come back while the request waited, or must be loaded first.

        Raises:
            Unavailable: No worker is there. A draining replica still answers whom it let in.
        """
        now = self._routes.find(route.namespace, route.name)
        if now is not None and now.uid == route.uid and now.on_demand and not now.endpoint:
            return await wake(now, self._routes, self._demand)
        if now is None or now.uid != route.uid or not now.endpoint:
            raise loading(now or route)
        return now

    async def _forward(self, request: openai.Request, route: Route, journey: Journey, client: Connection) -> Outcome:
        body = openai.worker_request(request, route.max_output_tokens)
        async with listener.ask(route.endpoint, route.api_key, _PATHS[request.kind], body) as reply:
            if reply.status != 200:
                raise openai.worker_error(await reply.body(), route.context_tokens)
            answer = openai.Streamed(request) if request.stream else openai.Gathered(request)
            reason = await self._relay(reply, route, journey, answer, client)
        if isinstance(answer, openai.Gathered):
            await client.json(answer.body())
        else:
            await client.send(openai.DONE, last=True)
        return reason

    async def _relay(self, reply: listener.Reply, route: Route, journey: Journey, answer: openai.Answer, client: Connection) -> Outcome:
        """Hand the worker's events on and return why the answer ended."""
        reason: str | None = None
        async with contextlib.aclosing(reply.events()) as events:
            async for data in events:
                if data == b"[DONE]":
                    break
                event = openai.decode_event(data)
                self._note(event, data, route, journey)
                reason = event.finish_reason or reason
                await _pass_on(answer.add(data, event), client)
                full = journey.prompt_tokens + journey.output_tokens >= route.context_tokens and not route.shifts
                if reason is None and full:
                    reason = await _end_by_length(data, journey, answer, client)
                    break
        if reason is None:
            raise Unavailable("the worker ended its answer without a finish reason", code="worker_exited")
        return "tool_calls" if reason == "tool_calls" else "length" if reason == "length" else "stop"

    def _note(self, event: openai.Event, data: bytes, route: Route, journey: Journey) -> None:
        """Count what the event says.

        Raises:
            FleetError: It says that the worker failed, or that the prompt does not fit.
        """
        if event.error is not None:
            raise openai.worker_error(data, route.context_tokens)
        if event.prompt_progress is not None:
            journey.prompt_tokens = event.prompt_progress.total
            if journey.prompt_tokens >= route.context_tokens:
                raise openai.context_exceeded(journey.prompt_tokens, route.context_tokens)
        if event.has_content:
            self._measurements.token(journey)
        if event.usage is not None:
            journey.prompt_tokens, journey.output_tokens = event.usage.prompt_tokens, event.usage.completion_tokens


async def _end_by_length(data: bytes, journey: Journey, answer: openai.Answer, client: Connection) -> str:
    """End an answer that filled its context: a runtime may round the context up, the contract does not."""
    total = journey.prompt_tokens + journey.output_tokens
    usage = openai.Usage(prompt_tokens=journey.prompt_tokens, completion_tokens=journey.output_tokens, total_tokens=total)
    for ending in openai.length_events(data, usage):
        await _pass_on(answer.add(ending, openai.decode_event(ending)), client)
    return "length"


async def _pass_on(piece: bytes, client: Connection) -> None:
    if not piece:
        return
    if not client.started:
        await client.start_stream()
    await client.send(piece)


def _outcome(error: FleetError) -> Outcome:
    match error:
        case BadRequest():
            return "invalid"
        case ResourceExhausted():
            return "rejected"
        case Unavailable(details={"code": "model_loading" | "replica_draining"}):
            return "rejected"
        case _:
            return "failed"


def _refuse_unless_ready(route: Route) -> None:
    """Let a new request pass to a route that takes new requests.

    Raises:
        Unavailable: It drains or has no worker; `details["code"]` says which, so that a gateway asks another replica.
    """
    if route.draining:
        raise Unavailable(
            f"replica {route.namespace}/{route.name} drains and takes nothing new; ask another one",
            retry_after_seconds=DRAINING_RETRY_SECONDS,
            code="replica_draining",
        )
    if not route.endpoint and not route.on_demand:
        raise loading(route)
