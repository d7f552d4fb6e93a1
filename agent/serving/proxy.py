"""One request on its way through the agent: wait for a place, ask the worker, hand every event on at once.

In: a request of any dialect, the route that should answer it, and the call it came with. Out: the worker's answer, made by the dialect's
`Answer`, or an error. Called by `agent/serving/desk.py`.

What can be refused is refused before a worker is asked: a replica that drains or has no worker, a full queue, a deadline that the prompt
alone exceeds. When the client leaves, the task is cancelled; that closes the connection to the worker, which frees its place between two
batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from agent.serving import events, listener
from agent.serving.call import Call
from agent.serving.connection import SEND_SECONDS_MAX
from agent.serving.demand import Demand
from agent.serving.forward import Forward
from agent.serving.measure import Journey, Measurements, Outcome
from agent.serving.prefill import Estimates
from agent.serving.queue import Queue, retry_after_seconds
from agent.serving.request import Answer, EmbeddingRequest, Logits, LogitsRequest, Request, Timing, named
from agent.serving.routes import Chosen, Route, Routes
from agent.serving.slots import Owner, Slots
from agent.serving.vectors import logits_of, shortened, vector_of, vector_request
from agent.serving.waking import loading, wake
from rkfleet.benchmarks import Row, load_table
from rkfleet.errors import BadRequest, DeadlineExceeded, FleetError, ResourceExhausted, Unavailable

__all__ = ["Proxy"]

DRAINING_RETRY_SECONDS: Final = 1

_log = logging.getLogger(__name__)


class _PromptTooLong(BadRequest):
    """The prompt takes longer than the client waits, even on an idle board."""

    http_status = 413


class Proxy:
    """Forwards requests to the workers of this board."""

    def __init__(self, routes: Routes, queue: Queue, measurements: Measurements, demand: Demand) -> None:
        self._routes: Final = routes
        self._queue: Final = queue
        self._measurements: Final = measurements
        self._demand: Final = demand
        self._slots: Final = Slots()
        self._estimates: Final = Estimates()
        routes.on_replace(self._keep)

    def _keep(self, routes: tuple[Route, ...]) -> None:
        uids = {route.uid for route in routes}
        self._slots.keep(uids)
        self._estimates.keep(uids)

    async def answer(self, request: Request, answer: Answer, chosen: Chosen, call: Call, keep_seconds: float | None = None) -> None:
        """Answer one request.

        Raises:
            FleetError: It failed; the caller tells the client.
        """
        journey = self._measurements.begin(chosen.route, call.arrived_at)
        owner = Owner(call.tenant, request.prompt_cache_key)

        async def work(limit: asyncio.Timeout) -> Outcome:
            estimate = self._check_deadline(request, chosen.route, owner, call)
            async with self._place(chosen.route, owner, request.prompt) as place:
                route = await self._current(chosen.route, journey)
                self._measurements.sent(journey)
                forward = Forward(self._measurements, request, answer, call, route=route, journey=journey, limit=limit, estimate=estimate)
                extra = self._extra(msgspec.structs.replace(chosen, route=route), owner, place, request.prompt)
                alone = len(self._queue.taken(route.uid)) == 1
                outcome = await forward.run(extra)
                if alone and not request.has_images:
                    self._learn(request, journey)
                return outcome

        await self._measured(journey, call, keep_seconds, work)

    async def embed(
        self, request: EmbeddingRequest, chosen: Chosen, call: Call, keep_seconds: float | None = None
    ) -> tuple[tuple[bytes, ...], Timing]:
        """Return a vector of little-endian float32 for each input, and what it took.

        Each is asked for by itself: the request holds one place, whatever its length, and a vector can only be the answer to its own text.

        Raises:
            FleetError: It failed; there are no vectors then.
        """
        journey = self._measurements.begin(chosen.route, call.arrived_at)
        self._measurements.ignored(journey, named(request.ignored))
        vectors: list[bytes] = []

        async def work(_limit: asyncio.Timeout) -> Outcome:
            async with self._place(chosen.route, Owner(call.tenant), b"") as place:
                now = await self._current(chosen.route, journey)
                self._measurements.sent(journey)
                extra = {"adapter": chosen.adapter} if chosen.adapter else {}
                for one in request.inputs:
                    self._slots.forget(now.uid, but=self._queue.taken(now.uid) - {place})
                    body = vector_request(one, {**extra, **self._tenant(now, Owner(call.tenant))})
                    vector, tokens = vector_of(await _ask_whole(now, "/v1/embeddings", body, call))
                    journey.prompt_tokens += tokens
                    vectors.append(shortened(vector, request.dimensions))
            return "stop"

        await self._measured(journey, call, keep_seconds, work)
        return tuple(vectors), self._measurements.timing(journey)

    async def logits(self, request: LogitsRequest, chosen: Chosen, call: Call) -> Logits:
        """Return the logits of the token that would come next.

        Raises:
            FleetError: It failed.
        """
        journey = self._measurements.begin(chosen.route, call.arrived_at)
        found: list[Logits] = []

        async def work(_limit: asyncio.Timeout) -> Outcome:
            async with self._place(chosen.route, Owner(call.tenant), b""):
                now = await self._current(chosen.route, journey)
                self._measurements.sent(journey)
                extra = {"adapter": chosen.adapter} if chosen.adapter else {}
                body = msgspec.json.encode({"prompt": request.prompt, **extra, **self._tenant(now, Owner(call.tenant))})
                found.append(logits_of(await _ask_whole(now, "/v1/logits", body, call)))
                journey.prompt_tokens = found[0].prompt_tokens
            return "stop"

        await self._measured(journey, call, None, work)
        if not found:
            raise Unavailable("the client left before its logits were there", code="client_left")
        return found[0]

    async def load(self, route: Route, call: Call, keep_seconds: float | None) -> float:
        """Wait until the replica's model is loaded, keep it so, and return how long that took, in seconds.

        Raises:
            FleetError: It will not be loaded now.
        """
        _refuse_unless_ready(route)
        journey = self._measurements.begin(route, call.arrived_at)
        self._demand.want(route.uid)
        try:
            async with self._place(route, Owner(call.tenant), b""):
                await self._current(route, journey)
        finally:
            self._measurements.drop(journey)
            self._demand.touch(route.uid, keep_seconds)
        return journey.load_seconds

    async def _measured(
        self, journey: Journey, call: Call, keep_seconds: float | None, work: Callable[[asyncio.Timeout], Awaitable[Outcome]]
    ) -> None:
        """Run `work` within the client's deadline and count what became of it."""
        outcome: Outcome = "cancelled"
        route = journey.route
        where = {"replica": f"{route.namespace}/{route.name}", "request_id": call.request_id}
        try:
            _refuse_unless_ready(route)
            self._demand.want(route.uid)
            limit = asyncio.timeout(self._measurements.left(journey, call.deadline_seconds))
            try:
                async with limit:
                    outcome = await work(limit)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise DeadlineExceeded(
                    f"there is no output after {call.deadline_seconds:g} s, the deadline of this request; give it more time",
                    code="deadline_exceeded",
                    deadline_seconds=call.deadline_seconds,
                ) from None
            _log.debug("request answered", extra={**where, "outcome": outcome})
        except FleetError as error:
            outcome = _outcome(error)
            if outcome == "failed":
                _log.warning("request failed", extra={**where, "cause": error.message})
            raise
        except TimeoutError:
            _log.warning("client took nothing", extra={**where, "seconds": SEND_SECONDS_MAX})
        finally:
            self._measurements.end(journey, outcome)
            self._demand.touch(route.uid, keep_seconds)

    def _place(self, route: Route, owner: Owner, prompt: bytes) -> contextlib.AbstractAsyncContextManager[int]:
        return self._queue.place(
            route.uid,
            max_concurrent=route.max_concurrent,
            max_queued=route.max_queued,
            seconds_per_request=self._measurements.seconds_per_request(route.uid),
            choose=lambda free: self._slots.choose(route.uid, free, owner, prompt),
        )

    async def _current(self, route: Route, journey: Journey) -> Route:
        """Return the route as it is now: the worker may have gone or come back while the request waited, or must be loaded first.

        Raises:
            Unavailable: No worker is there. A draining replica still answers whom it let in.
        """
        now, woken = self._routes.find(route.namespace, route.name), False
        if now is not None and now.uid == route.uid and now.on_demand and not now.endpoint:
            now, woken = await wake(now, self._routes, self._demand), True
        if now is None or now.uid != route.uid or not now.endpoint:
            raise loading(now or route)
        if woken or not route.endpoint:  # it was not loaded when the request came, or not any more
            journey.load_seconds = self._measurements.now() - journey.arrived_at
        return now

    def _check_deadline(self, request: Request, route: Route, owner: Owner, call: Call) -> float | None:
        """Return the estimated seconds of this prompt, None if nothing is known.

        Raises:
            BadRequest: 413, it takes longer than the client waits even if it began now.
            ResourceExhausted: 429, it does when those before it are through.
        """
        if request.has_images:
            return None  # its length says nothing about tokens
        self._estimates.start(route.uid, lambda: _row_of(route))
        known = self._slots.remembered_bytes(route.uid, owner, request.prompt)
        tokens = self._estimates.tokens(route.uid, len(request.prompt) - known)
        seconds = self._estimates.seconds(route.uid, tokens)
        deadline = call.deadline_seconds
        if deadline is None:
            return seconds
        needed = seconds or 0.0
        facts = {"estimate_seconds": round(needed, 1), "deadline_seconds": deadline, "estimate_tokens": tokens}
        if needed > deadline:
            raise _PromptTooLong(
                f"the prompt has about {tokens} tokens, which take this board about {needed:.0f} s before the first output, and this "
                f"request waits {deadline:g} s; shorten the prompt or give it more time",
                code="prompt_too_long_for_deadline",
                **facts,
            )
        if len(self._queue.taken(route.uid)) < route.max_concurrent:
            return seconds
        each = self._measurements.seconds_per_request(route.uid)
        queued = (self._queue.waiting(route.uid) + 1) / route.max_concurrent * each
        if needed + queued > deadline:
            raise ResourceExhausted(
                f"{self._queue.in_flight(route.uid)} requests are before this one, which takes about {queued:.0f} s, and its prompt about "
                f"{needed:.0f} s; it waits {deadline:g} s",
                retry_after_seconds=retry_after_seconds(self._queue.waiting(route.uid), route.max_concurrent, each),
                code="deadline_before_turn",
                queue_seconds=round(queued, 1),
                **facts,
            )
        return seconds

    def _learn(self, request: Request, journey: Journey) -> None:
        if journey.first_at is not None and journey.sent_at is not None:
            self._estimates.learn(
                journey.route.uid,
                prompt_bytes=len(request.prompt),
                prompt_tokens=journey.prompt_tokens,
                cached_tokens=journey.cached_tokens,
                seconds=journey.first_at - journey.sent_at,
            )

    def _extra(self, chosen: Chosen, owner: Owner, place: int, prompt: bytes) -> dict[str, Any]:
        """Return what the agent tells the worker besides the client's own fields."""
        route = chosen.route
        own = self._slots.take(route.uid, place, owner, prompt)
        extra: dict[str, Any] = {"adapter": chosen.adapter} if chosen.adapter else {}
        if route.runtime == "llamacpp":
            return {**extra, "id_slot": place, "cache_prompt": own}
        return {**extra, **self._tenant(route, owner)}

    def _tenant(self, route: Route, owner: Owner) -> dict[str, Any]:
        """Return whose request it is, for runtimes that keep prompts by themselves."""
        if route.runtime != "rkllm":
            return {}
        return {"tenant": owner.tenant, **({"prompt_cache_key": owner.conversation} if owner.conversation else {})}


async def _ask_whole(route: Route, path: str, body: bytes, call: Call) -> bytes:
    """Return the body of a worker's answer.

    Raises:
        FleetError: It refused, failed or ended.
    """
    async with listener.ask(route.endpoint, route.api_key, path, body, call.request_id) as reply:
        answered = await reply.body()
        if reply.status != 200:
            raise events.worker_error(answered, route.context_tokens)
    return answered


def _row_of(route: Route) -> Row | None:
    """Return the row of the benchmark table that a replica refers to, or None."""
    if not route.reference_model:
        return None
    return load_table().find(route.reference_model, route.dtype, route.soc, route.reference_sdk_version)


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
        Unavailable: It drains, or has no worker and is not loaded on demand; `details["code"]` says which, so that a gateway asks another
            replica.
    """
    if route.draining:
        raise Unavailable(
            f"replica {route.namespace}/{route.name} drains and takes nothing new; ask another one",
            retry_after_seconds=DRAINING_RETRY_SECONDS,
            code="replica_draining",
        )
    if not route.endpoint and not route.on_demand:
        raise loading(route)
