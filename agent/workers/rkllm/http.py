"""The worker's HTTP listener: what the agent asks of a model on the NPU.

In: requests on loopback that have the worker's key. Out: streams of OpenAI's chunks, embeddings, logits. One thread with an event loop of
its own, so that a library that holds the runner's thread never holds a connection. Called by `worker.py`. HTTP itself is `loopback.py`'s:
a connection that closes cancels its handler, and with it the request by its number.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import math
import re
import threading
from array import array
from collections.abc import Callable
from typing import Any, Final

import msgspec

from agent.workers import loopback
from agent.workers.rkllm.answers import Chunks, error_body, error_event
from agent.workers.rkllm.asks import Ask, EmbeddingsAsk, parse
from agent.workers.rkllm.prompts import Prompts
from agent.workers.rkllm.runner import Runner, place_of
from agent.workers.rkllm.values import Tensor
from agent.workers.rkllm.work import Began, Done, Event, Failed, Numbers, Piece, Work
from rkfleet.clock import Clock
from rkfleet.errors import FailedPrecondition, FleetError, Internal, NotFound, Unauthenticated, Unavailable

__all__ = ["Front", "serve"]

JSON: Final = b"application/json"
EVENTS: Final = b"text/event-stream"

# How long the head of an answer waits for the library to refuse the request: what it refuses (a prompt that is too long, an adapter) it
# refuses at once, and then the answer has a status of its own. A token that comes sooner ends the wait.
REFUSAL_SECONDS: Final = 0.25

START_SECONDS_MAX: Final = 10.0  # For a thread to bind a port on loopback.
_NAME: Final = re.compile(rb"[\x21-\x7e]{1,64}")  # An id of a request that may stand in a log line.


class Front:
    """Answers requests for one model."""

    def __init__(self, runner: Runner, prompts: Prompts, *, api_key: str, clock: Clock, log: Callable[[str], None]) -> None:
        """Take what runs, what makes prompts, the key that callers must send, and where lines go."""
        self._runner: Final = runner
        self._prompts: Final = prompts
        self._bearer: Final = f"Bearer {api_key}".encode()
        self._clock: Final = clock
        self._log: Final = log
        self._count = 0

    async def answer(self, request: loopback.Request, answer: loopback.Answer) -> None:
        """Answer one request."""
        self._count += 1
        given = request.headers.get(b"x-request-id", b"")
        name = given.decode() if _NAME.fullmatch(given) else f"{self._count}"
        try:
            await self._route(request, answer, name)
        except FleetError as error:
            await answer.begin(error.http_status, JSON)
            await answer.piece(error_body(error, name))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # A mistake of ours. Its message may hold what a user wrote, so only its place is told; the connection breaks off.
            self._log(f"E rkfleet: request {name}: {place_of(error)}")
            raise ConnectionAbortedError from None
        await answer.end()

    async def _route(self, request: loopback.Request, answer: loopback.Answer, name: str) -> None:
        """Answer by path.

        Raises:
            FleetError: Nothing was sent yet, and this is the answer.
        """
        if not hmac.compare_digest(request.headers.get(b"authorization", b""), self._bearer):
            raise Unauthenticated("this listener demands the key of its worker", type="authentication_error")
        match request.method, request.path:
            case "POST", "/v1/chat/completions":
                ask = parse(request.body, Ask)
                await self._stream(ask, self._prompts.chat(ask), name, answer, chat=True)
            case "POST", "/v1/completions":
                ask = parse(request.body, Ask)
                await self._stream(ask, self._prompts.completion(ask), name, answer, chat=False)
            case "POST", "/v1/embeddings":
                await self._embeddings(parse(request.body, EmbeddingsAsk), name, answer)
            case "POST", "/v1/logits":
                await self._logits(parse(request.body, Ask), name, answer)
            case _:
                raise NotFound(f"{request.method} {request.path} is not served here", type="not_found_error")

    async def _stream(self, ask: Ask, work: Work, name: str, answer: loopback.Answer, *, chat: bool) -> None:
        id = f"{'chatcmpl' if chat else 'cmpl'}-{name}"
        chunks = Chunks(ask, work, chat=chat, id=id, created=int(self._clock.now().timestamp()))
        async with _Run(self._runner, work, name) as run:
            began = await run.next()
            if not isinstance(began, Began):
                raise _error_of(began)
            early = await run.next(seconds_max=REFUSAL_SECONDS)
            if isinstance(early, Failed):
                raise early.error
            await answer.begin(200, EVENTS)
            await answer.piece(chunks.begin(began, self._prompts.ignored(ask)))
            event = early or await run.next()
            while True:
                match event:
                    case Piece(text=text):
                        if data := chunks.feed(text):
                            await answer.piece(data)
                        if chunks.over:
                            run.cancel(answered=True)
                    case Done():
                        await answer.piece(chunks.end(event))
                        return
                    case Failed(error=error):
                        await answer.piece(error_event(error, name))
                        return
                    case _:
                        pass
                event = await run.next()

    async def _embeddings(self, ask: EmbeddingsAsk, name: str, answer: loopback.Answer) -> None:
        data: list[dict[str, Any]] = []
        prompt_tokens = 0
        for index, given in enumerate(ask.inputs()):
            last, done = await self._numbers(self._prompts.embedding(given, ask.adapter or "", ask.tenant or ""), name)
            prompt_tokens += done.prompt_tokens
            unit = _unit(last)
            embedding = base64.b64encode(unit.tobytes()).decode() if ask.encoding_format == "base64" else unit.tolist()
            data.append({"object": "embedding", "index": index, "embedding": embedding})
        usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
        await answer.begin(200, JSON)
        await answer.piece(msgspec.json.encode({"object": "list", "data": data, "model": "", "usage": usage}))

    async def _logits(self, ask: Ask, name: str, answer: loopback.Answer) -> None:
        last, done = await self._numbers(self._prompts.completion(ask, "logits"), name)
        body = {
            "object": "logits",
            "logits": base64.b64encode(last.data).decode(),
            "vocab_size": last.width,
            "usage": {"prompt_tokens": done.prompt_tokens, "total_tokens": done.prompt_tokens},
        }
        await answer.begin(200, JSON)
        await answer.piece(msgspec.json.encode(body))

    async def _numbers(self, work: Work, name: str) -> tuple[Tensor, Done]:
        """Run and return the last position's numbers.

        Raises:
            FleetError: The run failed, or gave none: there is never an older one in their place.
        """
        last: Tensor | None = None
        async with _Run(self._runner, work, name) as run:
            while True:
                match await run.next():
                    case Numbers(last=tensor):
                        last = tensor
                    case Done() as done if last is not None:
                        return last, done
                    case (Done() | Failed()) as event:
                        raise _error_of(event)
                    case _:
                        pass


class _Run:
    """A request in the runner; leaving the block cancels what is not over."""

    def __init__(self, runner: Runner, work: Work, name: str) -> None:
        self._runner: Final = runner
        self._loop: Final = asyncio.get_running_loop()
        # Bounded by the answer: a token for each place in the context.
        self._events: Final[asyncio.Queue[Event]] = asyncio.Queue()
        self._number: Final = runner.submit(work, name, self._post)

    async def __aenter__(self) -> _Run:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.cancel()

    def cancel(self, *, answered: bool = False) -> None:
        """End the run; what it has given already still comes, and then `Done`."""
        self._runner.cancel(self._number, answered=answered)

    async def next(self, seconds_max: float | None = None) -> Event | None:
        """Return the next event, or None if none came for `seconds_max`."""
        if seconds_max is None:
            return await self._events.get()
        try:
            async with asyncio.timeout(seconds_max):
                return await self._events.get()
        except TimeoutError:
            return None

    def _post(self, event: Event) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)


def serve(front: Front) -> str:
    """Listen in a thread that lives as long as the process; return the endpoint.

    Raises:
        FailedPrecondition: No port could be bound.
    """
    bound = threading.Event()
    endpoints: list[str] = []

    async def listen() -> None:
        async with loopback.listen(front.answer) as endpoint:
            endpoints.append(endpoint)
            bound.set()
            await asyncio.Event().wait()

    def run() -> None:
        try:
            asyncio.run(listen())
        finally:
            bound.set()

    threading.Thread(target=run, name="listener", daemon=True).start()
    bound.wait(START_SECONDS_MAX)
    if not endpoints:
        raise FailedPrecondition(f"the worker could not listen on {loopback.HOST}; its log has the cause")
    return endpoints[0]


def _error_of(event: Event | None) -> FleetError:
    if isinstance(event, Failed):
        return event.error
    if isinstance(event, Done):
        return Unavailable("the runtime ended the run and gave nothing")
    return Internal(f"the runner sent {type(event).__name__} first")


def _unit(tensor: Tensor) -> array[float]:
    """Return a vector of length 1 in the direction of this one; zeros stay zeros."""
    numbers = array("f", tensor.data)
    length = math.sqrt(math.fsum(one * one for one in numbers))
    return array("f", (one / length for one in numbers)) if length else numbers
