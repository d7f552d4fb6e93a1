"""Workers without a model: they answer at the speed of a row of the benchmark table, and say with every answer that they are simulated.

In: a `WorkerSpec` whose file is a placeholder (`rkfleet model push --simulated`) and whose reference names a row. Out: a `Worker` that is a
task of the agent's own loop, behind a listener that keeps the contract of every worker. Called by the supervisor. It stands with the other
backends because it keeps their contract, and so that a board which does not exist is the shipped agent in everything but this.

What is simulated is time and memory, not language: the text is always the same sentence about the row, an answer always has as many tokens
as it may have, and sampling parameters, tools and stop words have no effect. Prompt tokens are counted as bytes / 4.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.workers import loopback, timing
from agent.workers.base import Exit, Listener, Worker, WorkerSpec
from rkfleet import simulated
from rkfleet.benchmarks import Row, Table
from rkfleet.clock import Clock, give_way
from rkfleet.disk import in_thread
from rkfleet.errors import BadRequest, FailedPrecondition, FleetError, NotFound, Unauthenticated
from rkfleet.kinds.board import Runtime
from rkfleet.kinds.replica import ExitReason

__all__ = ["RKLLM_VERSION", "Engine", "SimulatedBackend"]

# The library that a simulated board claims: the last release with the first protocol's figures, and what variants of either release accept.
RKLLM_VERSION: Final = "1.1.4"

# A third of the silence that counts as hung (supervisor). What it proves here is that the agent's loop still runs this worker.
BEAT_SECONDS: Final = 20.0
BYTES_PER_TOKEN: Final = 4  # English with the vocabularies of these models: 3.5 to 4.5.
MESSAGE_TOKENS: Final = 4  # What a chat template puts around each message.
JSON: Final = b"application/json"
EVENTS: Final = b"text/event-stream"

_CHAT: Final = "/v1/chat/completions"
_COMPLETION: Final = "/v1/completions"


class _Message(msgspec.Struct, frozen=True):
    content: Any = ""


class _Ask(msgspec.Struct, frozen=True):
    """A request body as the agent writes it."""

    messages: tuple[_Message, ...] = ()
    prompt: str = ""
    max_tokens: int = 16
    return_progress: bool = False


class _TooLong(BadRequest):
    """The prompt does not fit; carries what llama.cpp's error body carries."""


class SimulatedBackend:
    """Starts simulated workers of one board; implements `Backend`."""

    def __init__(self, soc: str, table: Table, *, clock: Clock, new_api_key: Callable[[], str], load_speedup: float = 1.0) -> None:
        """Take the chip that is simulated, the rows, and how much faster than the assumed storage models load."""
        self._soc: Final = soc
        self._table: Final = table
        self._clock: Final = clock
        self._new_api_key: Final = new_api_key
        self._load_speedup: Final = load_speedup
        self._npu: Final = timing.Npu()

    @property
    def runtime(self) -> Runtime:
        """Return the vendor's runtime with the backend that stands behind it here."""
        return Runtime(name="rkllm", version=RKLLM_VERSION, backend="simulated")

    async def start(self, spec: WorkerSpec, tasks: asyncio.TaskGroup, beat: Callable[[], None], log: Callable[[str], None]) -> Worker:
        """Start a worker; that there is no row or no placeholder is its exit."""
        words = (spec.reference_model, spec.dtype, self._soc, spec.reference_sdk_version)
        row = self._table.find(*words) or self._table.why_missing(*words)
        log(row if isinstance(row, str) else _sentence(row))
        worker = _Simulated(lambda: self._load(spec, row), self._clock, beat)
        tasks.create_task(worker.follow(), name=f"simulated worker of {spec.namespace}/{spec.name}")
        return worker

    async def _load(self, spec: WorkerSpec, row: Row | str) -> Engine:
        """Check the file and take the time that loading takes; a string says why there is no row.

        Raises:
            FailedPrecondition: The file is no placeholder, or there is no row.
        """
        await in_thread(_check_magic, Path(spec.model_path))
        if isinstance(row, str):
            raise FailedPrecondition(row)
        await self._clock.sleep(timing.load_seconds(row, self._load_speedup))
        return Engine(spec, row, self._soc, self._npu, self._clock, api_key=self._new_api_key())


class _Simulated:
    """One worker; `follow` must run for the rest to happen."""

    def __init__(self, load: Callable[[], Awaitable[Engine]], clock: Clock, beat: Callable[[], None]) -> None:
        self._load: Final = load
        self._clock: Final = clock
        self._beat: Final = beat
        loop = asyncio.get_running_loop()
        self._loaded: Final[asyncio.Future[Listener | None]] = loop.create_future()
        self._ended: Final[asyncio.Future[Exit]] = loop.create_future()  # told to, or failed
        self._exited: Final[asyncio.Future[Exit]] = loop.create_future()  # nothing of it is left

    @property
    def pid(self) -> int:
        """Return 0: it is no process."""
        return 0

    async def loaded(self) -> Listener | None:
        """Wait until it listens; None when it ended first."""
        return await asyncio.shield(self._loaded)

    async def exited(self) -> Exit:
        """Wait until its listener and its requests are gone."""
        return await asyncio.shield(self._exited)

    def stop(self) -> None:
        """End it."""
        self._end(Exit(reason=None, message="stopped"))

    def kill(self, reason: ExitReason | None, message: str) -> None:
        """End it with this reason."""
        self._end(Exit(reason=reason, message=message))

    def _end(self, exit: Exit) -> None:
        if not self._ended.done():
            self._ended.set_result(exit)

    async def follow(self) -> None:
        """Live until told to end; cancelled, end at once."""
        living = asyncio.ensure_future(self._live())
        try:
            await asyncio.wait((living, self._ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            living.cancel()
            await asyncio.wait((living,))
            self._end(Exit(reason=None, message="the agent stopped"))
            if not self._loaded.done():
                self._loaded.set_result(None)
            if not self._exited.done():
                self._exited.set_result(self._ended.result())

    async def _live(self) -> None:
        try:
            engine = await self._load()
            async with loopback.listen(engine.answer) as endpoint:
                if not self._loaded.done():
                    self._loaded.set_result(Listener(endpoint=endpoint, api_key=engine.api_key))
                while True:
                    self._beat()
                    await self._clock.sleep(BEAT_SECONDS)
        except (FleetError, OSError) as error:
            self._end(Exit(reason="LoadFailed", message=str(error)))
        except Exception as error:  # noqa: BLE001 (the edge of a worker: its crash is an exit reason, not the agent's)
            self._end(Exit(reason="Crashed", message=f"the simulated worker failed: {error!r}"))


class Engine:
    """What answers requests once the model is "loaded".

    Attributes:
        api_key: What a caller must send as bearer token.
    """

    def __init__(self, spec: WorkerSpec, row: Row, soc: str, npu: timing.Npu, clock: Clock, *, api_key: str) -> None:
        """Take what is loaded, the row that is its speed, the chip that every answer names, and the board's NPU, which all share."""
        self._spec: Final = spec
        self._row: Final = row
        self._clock: Final = clock
        self.api_key: Final = api_key
        self._bearer: Final = f"Bearer {api_key}".encode()
        self._places: Final = asyncio.Semaphore(spec.max_concurrent)
        self._npu: Final = npu
        self._numbers: Final = itertools.count(1)
        self._mark: Final = f"[simulated {soc} {row.dtype}]"
        self._words: Final = _sentence(row).split()

    async def answer(self, request: loopback.Request, answer: loopback.Answer) -> None:
        """Answer one request; every refusal has llama.cpp's form."""
        try:
            ask, prompt_tokens = self._understand(request)
        except FleetError as error:
            await answer.begin(error.http_status, JSON)
            await answer.piece(msgspec.json.encode({"error": {"code": error.http_status, "message": error.message, **error.details}}))
            await answer.end()
            return
        await answer.begin(200, EVENTS)
        async with self._places:
            await self._stream(ask, prompt_tokens, _Chunks(request.path == _CHAT, next(self._numbers), self._spec.reference_model), answer)
        await answer.end()

    def _understand(self, request: loopback.Request) -> tuple[_Ask, int]:
        """Return what is asked and the length of its prompt.

        Raises:
            FleetError: It cannot be answered.
        """
        if not hmac.compare_digest(request.headers.get(b"authorization", b""), self._bearer):
            raise Unauthenticated("this listener demands the key of its worker", type="authentication_error")
        if request.method != "POST" or request.path not in {_CHAT, _COMPLETION}:
            raise NotFound(f"{request.method} {request.path} is not served here", type="not_found_error")
        try:
            ask = msgspec.json.decode(request.body, type=_Ask)
        except msgspec.MsgspecError as error:
            raise BadRequest(f"request body: {error}", type="invalid_request_error") from error
        prompt_tokens = count_tokens(ask.prompt) + sum(MESSAGE_TOKENS + count_tokens(_text(one.content)) for one in ask.messages)
        context_tokens = self._spec.context_tokens
        if prompt_tokens >= context_tokens:
            raise _TooLong(
                f"the prompt has {prompt_tokens} tokens and the context holds {context_tokens}",
                type="exceed_context_size_error",
                n_prompt_tokens=prompt_tokens,
                n_ctx=context_tokens,
            )
        return ask, prompt_tokens

    async def _stream(self, ask: _Ask, prompt_tokens: int, chunks: _Chunks, answer: loopback.Answer) -> None:
        """Prefill, then decode on the schedule that the row gives."""
        due = self._clock.monotonic()
        steps = timing.prefill_steps(self._row, prompt_tokens)
        for number, seconds in enumerate(steps):
            if ask.return_progress:
                await answer.piece(chunks.progress(prompt_tokens, round(prompt_tokens * number / len(steps))))
            due = self._npu.reserve(due, seconds)
            await self._until(due)
        left = self._spec.context_tokens - prompt_tokens
        output_tokens = max(1, ask.max_tokens) if self._spec.shift else min(max(1, ask.max_tokens), left)
        step_seconds = timing.decode_step_seconds(self._row)
        for number, text in enumerate(itertools.islice(self._text(), output_tokens)):
            if number:
                due = self._npu.reserve(due, step_seconds)
                await self._until(due)
            await answer.piece(chunks.content(text))
        await answer.piece(chunks.ending(prompt_tokens, output_tokens))

    async def _until(self, due: float) -> None:
        """Wait for a moment of the schedule; one that has passed is caught up with, and others run meanwhile."""
        left = due - self._clock.monotonic()
        await (self._clock.sleep(left) if left > 0 else give_way())

    def _text(self) -> Iterator[str]:
        """Yield the words of the answer for ever, one per token."""
        yield self._mark
        for word in itertools.cycle(self._words):
            yield f" {word}"


class _Chunks:
    """The events of one answer, as OpenAI's clients and llama.cpp's know them."""

    def __init__(self, chat: bool, number: int, model: str) -> None:
        self._chat: Final = chat
        self._head: Final = {
            "id": f"simulated-{number}",
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": 0,
            "model": model,
        }

    def progress(self, total: int, done: int) -> bytes:
        return self._event({"choices": [self._choice("")], "prompt_progress": {"total": total, "processed": done, "cache": 0}})

    def content(self, text: str) -> bytes:
        return self._event({"choices": [self._choice(text)]})

    def ending(self, prompt_tokens: int, output_tokens: int) -> bytes:
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": output_tokens, "total_tokens": prompt_tokens + output_tokens}
        last = {**self._choice(""), "finish_reason": "length"}
        return self._event({"choices": [last]}) + self._event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"

    def _choice(self, text: str) -> dict[str, Any]:
        said: dict[str, Any] = {"delta": {"content": text} if text else {}} if self._chat else {"text": text}
        return {"index": 0, **said, "finish_reason": None}

    def _event(self, fields: dict[str, Any]) -> bytes:
        return b"data: " + msgspec.json.encode({**self._head, **fields}) + b"\n\n"


def count_tokens(text: str) -> int:
    """Return about how many tokens a text has."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def _text(content: Any) -> str:
    """Return the text of a message: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return " ".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def _sentence(row: Row) -> str:
    first, rate = row.time_to_first_token_seconds * 1000, row.tokens_per_second
    return (
        f"No model runs here: these words come at the speed that the vendor's table gives for {row.model} {row.dtype} on {row.soc.upper()} "
        f"with RKLLM {row.sdk_version}, {first:.0f} ms to the first token and {rate:g} tokens per second after it."
    )


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(len(simulated.MAGIC))
    except OSError as error:
        raise FailedPrecondition(f"model file {path} cannot be read: {error.strerror}") from error
    if head != simulated.MAGIC:
        raise FailedPrecondition(
            f"model file {path} is no placeholder: backend simulated runs what `rkfleet model push --simulated` makes, not real models"
        )
