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
from agent.serving.request import Answer, EmbeddingRequest, Request, Timing
from agent.serving.routes import Chosen, Route, Routes
from agent.serving.slots import Owner, Slots
from agent.serving.vectors import shortened, vector_of, vector_request
from rkfleet.benchmarks import Row, load_table
from rkfleet.errors import BadRequest, DeadlineExceeded, FleetError, ResourceExhausted, Unavailable

__all__ = ["Proxy"]

LOADING_RETRY_SECONDS: Final = 2
DRAINING_RETRY_SECONDS: Final = 1

# How long a request waits for a model that is loaded for it. The largest models of these boards, 8 GB from an SD card at 40 MB/s, take
# longer than any client waits; from eMMC or NVMe half a minute is enough.
LOAD_SECONDS_MAX: Final = 300.0

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
        self._loading: Final[dict[str, int]] = {}  # requests that wait for a load, by replica uid
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
            now = await self._ready(chosen.route, journey)
            estimate = self._check_deadline(request, now, owner, call)
            async with self._place(now, owner, request.prompt) as place:
                self._measurements.sent(journey)
                route = self._current(now)
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
        vectors: list[bytes] = []

        async def work(_limit: asyncio.Timeout) -> Outcome:
            now = await self._ready(chosen.route, journey)
            async with self._place(now, Owner(call.tenant), b"") as place:
                self._measurements.sent(journey)
                now = self._current(now)
                extra = {"adapter": chosen.adapter} if chosen.adapter else {}
                self._slots.forget(now.uid, but=self._queue.taken(now.uid) - {place})
                for one in request.inputs:
                    body = vector_request(one, {**extra, **self._tenant(now, Owner(call.tenant))})
                    async with listener.ask(now.endpoint, now.api_key, "/v1/embeddings", body, call.request_id) as reply:
                        answered = await reply.body()
                        if reply.status != 200:
                            raise events.worker_error(answered, now.context_tokens)
                    vector, tokens = vector_of(answered)
                    journey.prompt_tokens += tokens
                    vectors.append(shortened(vector, request.dimensions))
            return "stop"

        await self._measured(journey, call, keep_seconds, work)
        return tuple(vectors), self._measurements.timing(journey)

    async def load(self, route: Route, call: Call, keep_seconds: float | None) -> float:
        """Wait until the replica's model is loaded, keep it so, and return how long that took, in seconds.

        Raises:
            FleetError: It will not be loaded now.
        """
        journey = self._measurements.begin(route, call.arrived_at)
        try:
            await self._ready(route, journey)
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

    async def _ready(self, route: Route, journey: Journey) -> Route:
        """Return the route once its model is loaded; one that loads on demand is loaded now.

        Raises:
            Unavailable: It drains, or has no worker and will not have one because of this request.
            ResourceExhausted: So many wait for it already.
        """
        _refuse_unless_ready(route)
        if route.endpoint:
            return route
        if self._loading.get(route.uid, 0) >= route.max_queued:
            raise ResourceExhausted(
                f"{route.max_queued} requests wait already until {route.namespace}/{route.name} is loaded (serving.maxQueued)",
                retry_after_seconds=LOADING_RETRY_SECONDS,
                code="queue_full",
            )
        self._loading[route.uid] = self._loading.get(route.uid, 0) + 1
        limit = asyncio.timeout(LOAD_SECONDS_MAX)
        try:
            async with limit:
                self._demand.want(route.uid)
                loaded = await self._routes.until(lambda: self._loaded(route))
        except TimeoutError:
            if not limit.expired():
                raise
            raise _loading(self._routes.find(route.namespace, route.name) or route) from None
        finally:
            self._loading[route.uid] -= 1
            if not self._loading[route.uid]:
                del self._loading[route.uid]
            self._measurements.waited_for_load(journey)
        return loaded

    def _loaded(self, route: Route) -> Route | None:
        """Return the route with a worker, None while it loads.

        Raises:
            Unavailable: It is gone or drains.
        """
        now = self._routes.find(route.namespace, route.name)
        if now is None or now.uid != route.uid:
            raise _loading(route)
        if now.draining:
            _refuse_unless_ready(now)
        return now if now.endpoint else None

    def _current(self, route: Route) -> Route:
        """Return the route as it is now: the worker may have gone or come back while the request waited.

        Raises:
            Unavailable: No worker is there. A draining replica still answers whom it let in.
        """
        now = self._routes.find(route.namespace, route.name)
        if now is None or now.uid != route.uid or not now.endpoint:
            raise _loading(now or route)
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
        raise _loading(route)


def _loading(route: Route) -> Unavailable:
    """Return the error of a replica that has no worker now."""
    why = route.waiting_reason or "its model is being loaded"
    return Unavailable(
        f"replica {route.namespace}/{route.name} does not answer yet: {why}",
        retry_after_seconds=LOADING_RETRY_SECONDS,
        code="model_loading",
    )
