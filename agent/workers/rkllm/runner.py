"""The one thread that owns the library's handle: requests queue up for it, and each gets its own results back.

In: `Work`, and a function that takes its events. Out: those events, of exactly that request. Called by `http.py` from its thread.

What is kept here:

- One run at a time, in the order of arrival, holding the board's lock. A request that was cancelled while it waited never runs.
- A request has a number, which the library hands back with every result; a result with another number is dropped.
- Cancelling names a number. The abort goes out from a thread of its own, because it may block, and again with every token that still comes,
  because one that meets the library before it has begun is lost there. A late one finds another number running, or none, and does nothing.
- The cache: what a request may go on with is decided in `conversation.py`. Everything else is cleared before the run, and after one that
  was aborted, failed or went beyond its window.
- What the library prints during a run decides with its return code whether the run failed (`output.py`).
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from agent.workers.rkllm.caches import Caches
from agent.workers.rkllm.conversation import End, Held, held_after, reusable_bytes
from agent.workers.rkllm.errors import AbortFailed, CallFailed, KvCacheFailed, PromptCacheFailed, RunFailed, Unsupported
from agent.workers.rkllm.library import Model
from agent.workers.rkllm.lock import BoardLock
from agent.workers.rkllm.output import Lines, Output, too_long_in
from agent.workers.rkllm.prompts import RESPONSE_TAG
from agent.workers.rkllm.tokens import Counts, Guess, count
from agent.workers.rkllm.values import Input, Perf, Result, RunOptions, Tensor
from agent.workers.rkllm.vision import Encoder, ImageEmbedding
from agent.workers.rkllm.watch import Watch
from agent.workers.rkllm.work import Began, Done, Event, Failed, Functions, Numbers, Piece, Work
from rkfleet.clock import Clock
from rkfleet.errors import BadRequest, FleetError, Internal, ResourceExhausted, Unavailable

__all__ = ["Runner", "Settings", "place_of"]

WAITING_MAX: Final = 64  # The agent lets one request through at a time; more are those that were cancelled just now, and direct callers.
REQUEST_NUMBER_MAX: Final = (1 << 31) - 1  # What the library carries as userdata (library.REQUEST_MAX).
FLOAT_BYTES: Final = 4

# What the runtime's own template is told between the functions of one request and those, or none, of the next.
NOBODYS: Final = Functions(
    "You are a helpful assistant.",
    '[{"type": "function", "function": {"name": "none", "description": "", "parameters": {"type": "object", "properties": {}}}}]',
)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the model was loaded with.

    Attributes:
        context_tokens: The window.
        output_tokens_max: Where the library ends an answer by itself.
        shift: A full window forgets its oldest tokens instead of ending the answer.
    """

    context_tokens: int
    output_tokens_max: int
    shift: bool


class _Job:
    """One request on its way."""

    def __init__(self, number: int, name: str, work: Work, post: Callable[[Event], None]) -> None:
        self.number: Final = number
        self.name: Final = name
        self.work: Final = work
        self.post: Final = post
        self.cancelled = False  # nobody wants more of it
        self.answered = False  # ... because it has said enough
        self.full = False  # it has as many tokens as it may have
        self.broken = ""  # what the library printed, which makes all that it says worthless
        self.tokens_max = work.tokens_max
        self.ends_by_itself = False  # the library knows `tokens_max`
        self.text = bytearray()
        self.ids: list[int] = []
        self.numbers: Tensor | None = None
        self.perf: Perf | None = None

    @property
    def unwanted(self) -> bool:
        """Return whether the run should end."""
        return self.cancelled or self.full or bool(self.broken)


class Runner:
    """The owner of a loaded model. `start` it once; its threads live as long as the process."""

    def __init__(
        self,
        settings: Settings,
        *,
        output: Output,
        lock: BoardLock,
        caches: Caches,
        watch: Watch,
        clock: Clock,
        encoder: Encoder | None,
    ) -> None:
        """Take what a run needs besides the model."""
        self._settings: Final = settings
        self._output: Final = output
        self._board: Final = lock
        self._caches: Final = caches
        self._watch: Final = watch
        self._clock: Final = clock
        self._encoder: Final = encoder
        self._changed: Final = threading.Condition()
        self._waiting: Final[deque[_Job]] = deque()
        self._current: _Job | None = None
        self._numbers: Final = itertools.cycle(range(1, REQUEST_NUMBER_MAX))
        self._aborts: Final[queue.SimpleQueue[int]] = queue.SimpleQueue()
        self._model: Model | None = None
        self._held: Held | None = None
        self._functions: Functions | None = None
        self._guess: Final = Guess()
        self._refusals = 0

    def start(self, model: Model) -> None:
        """Begin to run what waits, with this model."""
        self._model = model
        threading.Thread(target=self._run_all, name="runner", daemon=True).start()
        threading.Thread(target=self._abort_all, name="aborts", daemon=True).start()

    def submit(self, work: Work, name: str, post: Callable[[Event], None]) -> int:
        """Queue a request and return its number.

        Args:
            work: What to run.
            name: The request's id, for the log.
            post: Takes its events, in the runner's thread; must not block.

        Raises:
            ResourceExhausted: Too many wait.
        """
        with self._changed:
            if len(self._waiting) >= WAITING_MAX:
                raise ResourceExhausted(f"{WAITING_MAX} requests wait for this model; try again later")
            job = _Job(next(self._numbers), name, work, post)
            self._waiting.append(job)
            self._changed.notify_all()
        return job.number

    def cancel(self, number: int, *, answered: bool = False) -> None:
        """End a request, wherever it is; one that is over is left alone.

        Args:
            number: Which.
            answered: It has said enough, a stop word came; otherwise nobody waits for it any more.
        """
        with self._changed:
            for job in self._waiting:
                if job.number == number:
                    self._waiting.remove(job)
                    return
            if self._current is None or self._current.number != number:
                return
            self._current.answered = answered and not self._current.cancelled
            self._current.cancelled = True
        self._abort(number)

    def on_result(self, result: Result) -> None:
        """Take a result of the library, in the runner's thread, from within `Model.run`."""
        job = self._current
        if job is None or result.request != job.number:  # what an earlier request left behind
            return
        self._watch.sign()
        if result.state == "finish":
            job.perf = result.perf
            return
        if job.unwanted:
            self._abort(job.number)
            return
        for tensor in (result.hidden, result.logits):
            if tensor is not None:
                size = tensor.width * FLOAT_BYTES
                job.numbers = Tensor(tensor.data[-size:], tensor.width, 1)
        if result.state == "error" or job.work.mode != "generate" or not (result.text or result.token_id > 0):
            return
        job.text += result.text
        job.ids.append(result.token_id)
        job.post(Piece(result.text))
        if len(job.ids) >= job.tokens_max:
            job.full = True
            if not job.ends_by_itself:
                self._abort(job.number)

    # ---- threads

    def _run_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                job = self._current = self._waiting.popleft()
            try:
                event = self._take_turn(job)
            except FleetError as error:
                event = Failed(error)
            except Exception as error:  # noqa: BLE001 (the edge of a request: a mistake in one must not end the worker)
                self._output.log(f"E rkfleet: request {job.name}: {place_of(error)}")
                event = Failed(Internal("internal error in the worker; its log has the cause"))
            if self._held is None:
                self._clear()
            with self._changed:
                self._current = None
            self._watch.idle()
            job.post(event)

    def _abort(self, number: int) -> None:
        self._watch.aborting()
        self._aborts.put(number)

    def _abort_all(self) -> None:
        while True:
            number = self._aborts.get()
            assert self._model is not None
            try:
                self._model.abort(number)
            except AbortFailed as error:  # the watch ends a run that goes on all the same
                self._output.log(f"E rkfleet: {error.message}")

    # ---- one request

    def _take_turn(self, job: _Job) -> Event:
        """Run a job and return its last event.

        Raises:
            FleetError: It failed.
        """
        with self._board.hold():
            if job.cancelled:
                return Done("abort", 0, 0, 0)
            self._watch.preparing()
            reused = self._reusable(job.work)
            images = [] if reused else self._encode(job.work)
            held, self._held = self._held, None  # unknown, until the run has ended well
            if not reused or held is None:
                self._begin_empty(job.work)
                cached_tokens = 0
            else:
                cached_tokens = held.tokens
            return self._run(job, images, reused, cached_tokens)

    def _run(self, job: _Job, images: list[ImageEmbedding], reused: int, cached_tokens: int) -> Event:
        work, model = job.work, self._require_model()
        new_tokens = self._guess.tokens(work, images, reused)
        total = cached_tokens + new_tokens
        job.tokens_max = min(work.tokens_max, self._settings.output_tokens_max)
        if not self._settings.shift:
            job.tokens_max = max(1, min(job.tokens_max, self._settings.context_tokens - total))
        job.ends_by_itself = "max_new_tokens" in model.supports or job.tokens_max == self._settings.output_tokens_max
        input = work.compose(reused, images)
        with self._saved_prompt(work, reused) as saved:
            options = self._options(job, str(self._caches.temporary) if saved == "save" else "")
            job.post(Began(min(total, self._settings.context_tokens - 1), cached_tokens))
            lines = self._call(job, input, options, new_tokens)
        end = self._end_of(job)
        counted = self._counted()
        counts = count(
            Counts(total, cached_tokens, exact=False),
            job.perf,
            lines.kept,
            held_tokens=counted if end == "stop" else None,
            output_tokens=len(job.ids),
            loaded=saved == "loaded",
        )
        if counts.exact and not (reused and work.images):
            self._guess.learn(work, images, counts.prompt_tokens)
        if saved == "save":
            self._save(work, end)
        if work.mode == "generate" and "keep_history" in model.supports:
            self._held = held_after(
                work.wanted,
                work.answered(bytes(job.text), job.ids),
                end=end,
                tokens=counts.prompt_tokens + len(job.ids),
                tokens_counted=counted,
                context_tokens=self._settings.context_tokens,
            )
        if job.numbers is not None:
            job.post(Numbers(job.numbers))
        return Done(end, counts.prompt_tokens, counts.cached_tokens, len(job.ids))

    def _call(self, job: _Job, input: Input, options: RunOptions, new_tokens: int) -> Lines:
        """Run the library and return what it printed.

        Raises:
            BadRequest: The input cannot be given to the library, or the prompt does not fit.
            Unavailable: The run failed.
        """

        def break_off(words: str) -> None:
            job.broken = words
            self._abort(job.number)

        model, lines, failure, began = self._require_model(), self._output.collect(break_off), "", self._clock.monotonic()
        self._watch.prefilling(new_tokens, saves=bool(options.save_prompt_cache))
        if job.cancelled:  # an abort from before the run is lost in the library
            self._output.settle(f"request {job.name} ({job.number}) was cancelled before it began")
            return lines
        try:
            model.run(input, options, job.number)
        except RunFailed as error:
            failure = error.message
        except Unsupported as error:
            raise BadRequest(error.message) from error
        finally:
            seconds = self._clock.monotonic() - began
            self._output.settle(f"request {job.name} ({job.number}) ran {seconds:.3f} s and has {len(job.ids)} tokens")
        if (failure or job.broken) and options.save_prompt_cache:
            self._caches.drop(self._caches.temporary)
        for line in lines.kept:
            if failure and (long := too_long_in(line)) is not None:
                raise BadRequest(
                    f"the prompt has {long.prompt_tokens} tokens and the context holds {self._settings.context_tokens}",
                    type="exceed_context_size_error",
                    n_prompt_tokens=long.prompt_tokens,
                    n_ctx=self._settings.context_tokens,
                )
        if failure or job.broken:
            raise Unavailable(f"the runtime failed: {lines.error.removeprefix('rkllm: ') or failure}")
        return lines

    def _encode(self, work: Work) -> list[ImageEmbedding]:
        """Return the images as embeddings.

        Raises:
            FleetError: An image cannot be encoded.
        """
        embeddings = []
        for image in work.images:
            if isinstance(image, bytes):
                assert self._encoder is not None, "prompts refuse images without an encoder"
                self._watch.preparing()
                embeddings.append(self._encoder.encode(image))
            else:
                embeddings.append(image)
        return embeddings

    def _reusable(self, work: Work) -> int:
        """Return how much of the prompt the cache has, 0 to begin empty."""
        if work.mode != "generate":
            return 0
        reused = reusable_bytes(self._held, work.wanted)
        if not reused or self._held is None or self._settings.shift:
            return reused
        # The library would shift to make room; begun empty, it says how long the prompt is.
        fits = self._held.tokens + self._guess.tokens(work, (), reused) < self._settings.context_tokens
        return reused if fits else 0

    def _begin_empty(self, work: Work) -> None:
        """Forget everything, and tell the runtime's own template which functions there are.

        Raises:
            BadRequest: The system prompt or the functions cannot be given to the library.
            Unavailable: The library does not forget; then nothing may be run, or it would go on with another's conversation.
        """
        model = self._require_model()
        if "clear_kv_cache" in model.supports:
            try:
                model.clear_kv_cache()
            except KvCacheFailed as error:
                self._refused(error)
                raise Unavailable(f"the cache of the last request cannot be cleared, so no other is answered: {error.message}") from error
        if work.functions != self._functions:
            self._tell_functions(work.functions)

    def _tell_functions(self, functions: Functions | None) -> None:
        """Tell the runtime's own template which functions there are; None for none.

        Nobody knows whether a library takes an empty text for none or for no change. So what one request had told it is first overwritten
        with words that are nobody's, as any next request with functions would do: at worst those stay.

        Raises:
            BadRequest: The system prompt or the functions cannot be given to the library.
            Unavailable: The library refused; it is told again before the next run.
        """
        told = (NOBODYS,) if self._functions is not None else ()
        before, self._functions = self._functions, NOBODYS  # also when a call fails: what the library has then is not known
        try:
            for one in (*told, functions or Functions("", "")):
                self._require_model().set_function_tools(one.system, one.tools, RESPONSE_TAG if one.tools else "")
        except Unsupported as error:  # a text that no C string can hold; the library was not called with it
            self._functions = NOBODYS if told else before
            raise BadRequest(error.message) from error
        except CallFailed as error:
            self._refused(error)
            raise Unavailable(f"the runtime did not take the tools: {error.message}") from error
        self._functions = functions

    def _clear(self) -> None:
        """Forget what is not known for certain; a failure is met again, and told, by the next request."""
        model = self._require_model()
        if "clear_kv_cache" not in model.supports:
            return
        try:
            model.clear_kv_cache()
        except KvCacheFailed as error:
            self._refused(error)

    @contextlib.contextmanager
    def _saved_prompt(self, work: Work, reused: int) -> Iterator[Literal["", "loaded", "save"]]:
        """Load the saved prompt of this request for the block, or say that it is to be saved anew; empty for neither."""
        if not work.cache_key or reused or not self._caches.enabled:
            yield ""
            return
        with contextlib.ExitStack() as stack:
            if not self._load_saved(work, stack):
                yield "save" if self._has_room() else ""
                return
            try:
                yield "loaded"
            finally:
                try:
                    self._require_model().release_prompt_cache()
                except PromptCacheFailed as error:
                    self._refused(error)

    def _load_saved(self, work: Work, stack: contextlib.ExitStack) -> bool:
        path = self._caches.find(work.wanted.identity, work.cache_key, work.wanted.text)
        if path is None:
            return False
        try:
            path = stack.enter_context(self._caches.using(path))
            self._require_model().load_prompt_cache(str(path))
        except OSError as error:
            self._output.log(f"W rkfleet: a saved prompt was not used: {error}")
            return False
        except PromptCacheFailed as error:
            self._refused(error)
            self._caches.drop(path)
            return False
        return True

    def _has_room(self) -> bool:
        if self._caches.has_room():
            return True
        self._output.log("W rkfleet: a prompt was not saved: the disk has less room than serving.promptCache may take")
        return False

    def _save(self, work: Work, end: End) -> None:
        if end == "abort":
            self._caches.drop(self._caches.temporary)
            return
        try:
            self._caches.keep(work.wanted.identity, work.cache_key, work.wanted.text)
        except OSError as error:
            self._output.log(f"W rkfleet: a prompt was not saved: {error}")

    def _options(self, job: _Job, save_to: str) -> RunOptions:
        work, supports = job.work, self._require_model().supports
        return RunOptions(
            mode=work.mode,
            keep_history=work.mode == "generate" and "keep_history" in supports,
            adapter=work.adapter,
            save_prompt_cache=save_to,
            sampling=work.sampling,
            max_new_tokens=job.tokens_max if "max_new_tokens" in supports and work.mode == "generate" else None,
        )

    def _refused(self, error: CallFailed) -> None:
        """Note that the library refused a call, and wait for what it printed about it, which must not count for the next run."""
        self._refusals += 1
        self._output.settle(f"refusal {self._refusals}: {error.message}")

    # ---- counting

    def _end_of(self, job: _Job) -> End:
        if job.cancelled:
            return "cut" if job.answered else "abort"
        return "length" if job.full else "stop"

    def _counted(self) -> int | None:
        try:
            return self._require_model().kv_cache_tokens()
        except KvCacheFailed:
            return None

    def _require_model(self) -> Model:
        assert self._model is not None, "start comes first"
        return self._model


def place_of(error: BaseException) -> str:
    """Return what an error is and where it was raised, without its message, which may hold what a user wrote."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
