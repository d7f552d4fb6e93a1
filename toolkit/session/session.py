"""A session: one network, one window of keys and values, and runs of generation over it, as a handle of the RKLLM runtime is.

In: a `Request`. Out: `Piece` after `Piece`, then one `Finish`; or the hidden states or logits of an input. Nothing is computed twice: a run
takes up the longest common prefix with what the window holds. With `keep_history` an input continues the window instead. When the window
is full it shifts (`shift.py`). Called by `conversation.py`, `rkfleet toolkit chat` and the evaluation.

Adapters and quantization are chosen where the network is built (`LinearFactory`); a session takes whatever network it gets.
Source of the modes: RKLLM SDK user guide 1.3.0, RKLLMInferParam.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from rkfleet.clock import Clock
from rkfleet.errors import Invalid
from toolkit.checkpoint.base import Array
from toolkit.session import prompt_cache
from toolkit.session.inputs import Encoded, Input, encode
from toolkit.session.sampling import PENALTY_TOKENS, Sampler, Sampling
from toolkit.session.shift import dropped, shift
from toolkit.session.words import Words
from toolkit.simulate.cache import KvCache
from toolkit.simulate.network import Network
from toolkit.tokens.base import Tokenizer

__all__ = ["Finish", "Piece", "Reason", "Request", "Session"]

Reason = Literal["end", "stop", "length"]

NEW_TOKENS_MAX: Final = 1 << 17  # Ends an answer that never ends by itself; no window in use is longer.
CONTEXT_MIN: Final = 8  # A shift keeps something and drops something.
CONTEXT_MAX: Final = 1 << 20  # Room for keys and values is taken at once; the longest context in use.
PREFILL_TOKENS: Final = 512  # At once: more gains no speed, and attention's scores grow with it (heads * 512 * context * 4 bytes).
LOGITS_BYTES_MAX: Final = 2 << 30  # Of all positions of one input; beyond it the caller wants them piece by piece.
_TAIL: Final = 4  # Tokens that a shift must be able to drop of; llama.cpp keeps at most the context less four.


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One run.

    Attributes:
        max_new_tokens: -1 goes on until the model ends.
        stops: Words at which the answer ends; they are not part of it.
        ignore_ends: Go on after the model's own ends (ignore_eos_token).
        keep_history: Continue what the window holds, as the runtime's keep_history; else the window becomes this input.
    """

    input: Input
    sampling: Sampling = Sampling()
    max_new_tokens: int = 256
    stops: Sequence[str] = ()
    ignore_ends: bool = False
    keep_history: bool = False


class Piece(msgspec.Struct, frozen=True):
    """One new token, and the text that it made certain, which may be none (the runtime's state RUN_WAITING) or several words."""

    token: int
    text: str


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended. Seconds are those of this machine.

    Attributes:
        text: What was held back until now, mostly nothing.
        reason: `end` by the model, `stop` at a stop word, `length` at max_new_tokens.
        prompt_tokens: Of the input; reused_tokens of them were in the window already.
        shifted_tokens: That the window dropped.
        first_token_seconds: From the request to the first new token.
        prefill_seconds: Of it, what running the input took.
        decode_seconds: From the first new token to the last.
    """

    text: str
    reason: Reason
    prompt_tokens: int
    reused_tokens: int
    shifted_tokens: int
    new_tokens: int
    first_token_seconds: float
    prefill_seconds: float
    decode_seconds: float

    @property
    def prefill_rate(self) -> float:
        """Tokens per second of what was run of the input."""
        return (self.prompt_tokens - self.reused_tokens) / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """New tokens per second, after the first; 0 if there is only that one."""
        return (self.new_tokens - 1) / self.decode_seconds if self.decode_seconds and self.new_tokens > 1 else 0.0


class Session:
    """A network at work.

    Attributes:
        network: What runs.
        tokenizer: None where inputs are never text.
        context: Tokens that the window holds.
    """

    def __init__(
        self, network: Network, tokenizer: Tokenizer | None, clock: Clock, *, context: int = 0, keep: int = 0, identity: str = ""
    ) -> None:
        """Take room for keys and values.

        Args:
            network: What runs.
            tokenizer: For inputs that have text, and for the text of answers.
            clock: For figures of time.
            context: Tokens of the window; 0 is the model's own, at most CONTEXT_MAX.
            keep: Tokens at the beginning that stay when the window shifts (n_keep); -1 is the whole first input.
            identity: Of the network's weights, for files of prompts (`prompt_cache.identity_of`); empty refuses them.

        Raises:
            Invalid: A number is outside its range.
        """
        context = context or max(CONTEXT_MIN, min(network.hyperparameters.context, CONTEXT_MAX))
        if not CONTEXT_MIN <= context <= CONTEXT_MAX:
            raise Invalid(f"context is {context}; take one from {CONTEXT_MIN} to {CONTEXT_MAX} tokens")
        if not -1 <= keep < context:
            raise Invalid(f"keep is {keep}; take one from -1 (the whole first input) to {context - 1}, below the context")
        self.network: Final = network
        self.tokenizer: Final = tokenizer
        self.context: Final = context
        self._clock: Final = clock
        self._identity: Final = identity
        self._keep: Final = keep
        self._cache: Final = KvCache(network.hyperparameters, context)
        self._held: list[int] = []  # A key for each position of the cache.
        self._pending: list[int] = []  # Tokens of the last answer that are not in the cache yet.
        self._kept = 0  # What -1 stands for, and never more than a shift can work with.
        self._exact = context  # Positions from here on were computed before a shift, so they are no prefix to take up.
        self._prompt = 0  # Positions of the last input.

    @property
    def held(self) -> int:
        """Tokens in the window."""
        return len(self._held)

    def clear(self, *, keep: int = 0) -> None:
        """Forget all but the first `keep` tokens of the window (rkllm_clear_kv_cache)."""
        self._truncate(min(keep, self.held))
        self._pending = []

    def generate(self, request: Request) -> Generator[Piece | Finish]:
        """Run a request; whoever stops reading stops it, and the window stays as far as it came.

        Raises:
            Invalid: A field of the request is outside its range, or the input does not fit into the window.
            FailedPrecondition: The input has text, and there is no tokenizer.
        """
        limit = request.max_new_tokens
        if not (limit == -1 or 1 <= limit <= NEW_TOKENS_MAX):
            raise Invalid(f"max_new_tokens is {limit}; take -1 (until the model ends), or one from 1 to {NEW_TOKENS_MAX}")
        limit = NEW_TOKENS_MAX if limit == -1 else limit
        began = self._clock.monotonic()
        words = None if self.tokenizer is None else Words(self.tokenizer, request.stops)
        ends = self.tokenizer.ends if self.tokenizer is not None and not request.ignore_ends else frozenset[int]()
        encoded = encode(request.input, self.network, self.tokenizer)
        encoded, reused, shifted = self._admit(encoded, keep_history=request.keep_history)
        filling = self._clock.monotonic()
        hidden = self._prefill(encoded, reused)
        filled = self._clock.monotonic()
        sampler = Sampler(request.sampling)
        made, first = 0, 0.0
        reason: Reason = "length"
        while True:
            token = sampler.sample(self.network.logits(hidden[-1:])[0], self._held[-PENALTY_TOKENS:])
            first = first or self._clock.monotonic()
            self._pending = [token]
            if token in ends:
                reason = "end"
                break
            made += 1
            text = "" if words is None else words.add(token)
            yield Piece(token, text)
            if made == limit or (words is not None and words.stopped):
                break
            shifted += self._make_room(1)
            hidden = self._run(self.network.embed([token]), [token])
            self._pending = []
        done = self._clock.monotonic()
        rest = "" if words is None or words.stopped else words.finish()
        if words is not None and words.stopped:
            reason = "stop"
        yield Finish(
            text=rest,
            reason=reason,
            prompt_tokens=len(encoded.keys),
            reused_tokens=reused,
            shifted_tokens=shifted,
            new_tokens=made,
            first_token_seconds=first - began,
            prefill_seconds=filled - filling,
            decode_seconds=done - first,
        )

    def last_hidden(self, asked: Input) -> Array:
        """Return (tokens, hidden) after the last norm (RKLLM_INFER_GET_LAST_HIDDEN_LAYER); the window becomes this input."""
        encoded = self._whole(asked)
        found = [self._run(encoded.embed(self.network, at, end), encoded.keys[at:end]) for at, end in _chunks(0, len(encoded.keys))]
        return np.concatenate(found)

    def logits(self, asked: Input) -> Array:
        """Return (tokens, vocabulary) (RKLLM_INFER_GET_LOGITS); the window becomes this input.

        Raises:
            Invalid: They would take more than LOGITS_BYTES_MAX, or the input does not fit.
        """
        encoded = self._whole(asked)
        vocabulary = self.network.hyperparameters.vocabulary
        needed = len(encoded.keys) * vocabulary * np.dtype(np.float32).itemsize
        if needed > LOGITS_BYTES_MAX:
            raise Invalid(f"logits of {len(encoded.keys)} tokens take {needed} bytes, more than {LOGITS_BYTES_MAX}; ask for fewer tokens")
        found = []
        for at, end in _chunks(0, len(encoded.keys)):
            found.append(self.network.logits(self._run(encoded.embed(self.network, at, end), encoded.keys[at:end])))
        return np.concatenate(found)

    def save_prompt(self, path: Path) -> int:
        """Write keys and values of the last input to a file, and return how many tokens that are.

        Raises:
            FailedPrecondition: The session has no identity, or nothing to keep.
            Unavailable: The file cannot be written.
        """
        length = min(self._prompt, self.held, self._exact)
        return prompt_cache.save(path, self._cache, self._held[:length], self._identity)

    def load_prompt(self, path: Path) -> int:
        """Fill the window from a file, and return how many tokens it has now; the next input takes up what it has in common.

        Raises:
            NotFound: There is no file.
            Invalid: It is none of these, is damaged, or was made by another model or with other weights.
        """
        tokens = prompt_cache.load(path, self._cache, self.network.hyperparameters, self._identity)
        self._held, self._pending, self._exact, self._prompt = tokens, [], self.context, len(tokens)
        return len(tokens)

    def _whole(self, asked: Input) -> Encoded:
        encoded = encode(asked, self.network, self.tokenizer)
        self._fit(len(encoded.keys), 0)
        self.clear()
        self._prompt = len(encoded.keys)
        return encoded

    def _admit(self, encoded: Encoded, *, keep_history: bool) -> tuple[Encoded, int, int]:
        """Make the window ready for an input; return what is to be run, how much of that is there already, and what was dropped."""
        keys, rows = encoded.keys, encoded.rows
        if not keep_history or not self._held:
            self._fit(len(keys) + 1, 0)
            common = next((at for at, (ours, theirs) in enumerate(zip(self._held, keys, strict=False)) if ours != theirs), None)
            common = min(self.held, len(keys)) if common is None else common
            reused = min(common, self._exact, len(keys) - 1)  # The last token is run: its logits are wanted.
            self._truncate(reused)
            self._pending = []
            self._kept = min(len(keys) if self._keep == -1 else self._keep, self.context - _TAIL)
            self._prompt = len(keys)
            return encoded, reused, 0
        first = self.tokenizer.beginning if self.tokenizer is not None else None
        if len(keys) > 1 and keys[0] == first and 0 not in rows:  # A text in the middle does not begin.
            keys, rows = keys[1:], {at - 1: row for at, row in rows.items()}
        ahead = len(self._pending)
        keys, rows = [*self._pending, *keys], {at + ahead: row for at, row in rows.items()}
        self._fit(len(keys) + 1, min(self._kept, self.held))
        shifted = self._make_room(len(keys))
        self._pending = []
        self._prompt = self.held + len(keys)
        return Encoded(keys, rows), 0, shifted

    def _fit(self, tokens: int, kept: int) -> None:
        if kept + tokens > self.context:
            beside = f" beside {kept} that are kept" if kept else ""
            raise Invalid(
                f"the input and one new token are {tokens} tokens{beside}; context is {self.context}: raise it, or shorten the input"
            )

    def _make_room(self, tokens: int) -> int:
        """Shift until that many tokens fit; return how many were dropped."""
        before = self.held
        while self.held + tokens > self.context:
            kept = min(self._kept, self.held - 1)
            drop = dropped(self.held, kept)
            shift(self.network, self._cache, kept, drop)
            del self._held[kept : kept + drop]
            self._exact = min(self._exact, kept)
        return before - self.held

    def _prefill(self, encoded: Encoded, start: int) -> Array:
        hidden: Array | None = None
        for at, end in _chunks(start, len(encoded.keys)):
            hidden = self._run(encoded.embed(self.network, at, end), encoded.keys[at:end])
        assert hidden is not None, "the last token is always run"
        return hidden

    def _run(self, x: Array, keys: Sequence[int]) -> Array:
        hidden = self.network.hidden(x, self._cache)
        self._held.extend(keys)  # After the network: a run that is broken off leaves both as they were.
        return hidden

    def _truncate(self, length: int) -> None:
        self._cache.truncate(length)
        del self._held[length:]
        if length <= self._exact:
            self._exact = self.context


def _chunks(start: int, end: int) -> Iterator[tuple[int, int]]:
    for at in range(start, end, PREFILL_TOKENS):
        yield at, min(at + PREFILL_TOKENS, end)
