"""Whether the library still makes progress, judged by what the run in progress explains. Keeps no thread and polls nothing.

In: the beginning and end of each run, each sign of life, each abort. Out: `check`, which `child.py` asks before every beat. Used by
`runner.py`.

The library says nothing during prefill, which takes a minute for 8,000 tokens on a slow board and milliseconds for ten on a fast one. So
the limit follows the prompt: its tokens at the slowest rate that this worker has measured lately, times a factor, plus a grace. Before the
first measurement the rate is a floor below every board.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

import msgspec

from rkfleet.clock import Clock
from rkfleet.errors import Unavailable
from rkfleet.kinds.replica import ExitReason

__all__ = ["Hung", "Limits", "Watch"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long the library may be silent.

    Attributes:
        grace_seconds: On top of every estimate: a board that swaps or throttles.
        prefill_tokens_per_second: Before anything was measured. The slowest row of the vendor's table (ChatGLM3-6B w8a8_g128 on RK3588, 64
            tokens in 2.19 s) has 29; a third of it leaves room for 8B models and for wrong governors.
            Source: https://github.com/airockchip/rknn-llm/blob/main/benchmark.md.
        factor: Times the estimate. Prefill of long prompts is slower for each token than of short ones, and boards throttle.
        token_seconds: Between two tokens: the slowest row has 0.4 s.
        prepare_seconds: For what comes with a run and is no run: an image encoder (45 s at most), a saved prompt that is read from or
            written to storage (500 MB at 20 MB/s take 25 s).
        abort_seconds: From an abort until the run has returned. A prefill that does not look up sooner is ended with its process: loading
            again takes less than the rest of it would.
    """

    grace_seconds: float = 10.0
    prefill_tokens_per_second: float = 10.0
    factor: float = 3.0
    token_seconds: float = 15.0
    prepare_seconds: float = 60.0
    abort_seconds: float = 10.0


RATES_KEPT: Final = 8  # The slowest of the last few runs counts: a board that throttles is slow again.
MEASURED_TOKENS_MIN: Final = 32  # Shorter prefills are mostly overhead and would say that the board is slow.


class Hung(Unavailable):
    """The library was silent for longer than the run explains; only a new process helps."""

    def __init__(self, message: str) -> None:
        reason: ExitReason = "Hung"
        super().__init__(message, reason=reason)


class Watch:
    """The deadline of the run in progress. Methods may be called from any thread."""

    def __init__(self, clock: Clock, limits: Limits) -> None:
        self._clock: Final = clock
        self._limits: Final = limits
        self._lock: Final = threading.Lock()
        self._rates: Final[deque[float]] = deque(maxlen=RATES_KEPT)
        self._deadline: float | None = None  # None while nothing runs
        self._doing = ""
        self._aborted = False
        self._saves = False
        self._prefill_from = 0.0
        self._prefill_tokens = 0

    def preparing(self) -> None:
        """Note that a run is prepared: an image is encoded, a saved prompt is read."""
        with self._lock:
            self._expect(self._limits.prepare_seconds, "preparing a run")

    def prefilling(self, tokens: int, *, saves: bool = False) -> None:
        """Note that a run begins which has to read about this many prompt tokens first.

        Args:
            tokens: About how many.
            saves: It writes the prompt's state to a file, before its first token or after its last.
        """
        limits = self._limits
        self._saves = saves
        with self._lock:
            rate = min(self._rates, default=limits.prefill_tokens_per_second)
            self._prefill_from, self._prefill_tokens = self._clock.monotonic(), tokens
            seconds = limits.grace_seconds + limits.factor * tokens / rate + (limits.prepare_seconds if saves else 0)
            self._expect(seconds, f"reading a prompt of about {tokens} tokens")

    def sign(self) -> None:
        """Note that the library called back."""
        with self._lock:
            if self._prefill_tokens:
                seconds = self._clock.monotonic() - self._prefill_from
                if self._prefill_tokens >= MEASURED_TOKENS_MIN and seconds > 0:
                    self._rates.append(self._prefill_tokens / seconds)
                self._prefill_tokens = 0
            if not self._aborted:
                self._expect(self._limits.prepare_seconds if self._saves else self._limits.token_seconds, "between two tokens")

    def aborting(self) -> None:
        """Note that the run in progress was told to end; the first time counts."""
        with self._lock:
            if self._deadline is not None and not self._aborted:
                self._expect(min(self._limits.abort_seconds, self._deadline - self._clock.monotonic()), "ending an aborted run")
                self._aborted = True

    def idle(self) -> None:
        """Note that nothing runs any more."""
        with self._lock:
            self._deadline, self._aborted, self._prefill_tokens = None, False, 0

    def check(self) -> None:
        """Return if nothing runs, or what runs is within its limit.

        Raises:
            Hung: It is not.
        """
        with self._lock:
            if self._deadline is None or self._clock.monotonic() < self._deadline:
                return
            doing = self._doing
        raise Hung(f"the runtime hangs: no sign of life for longer than {doing} explains")

    def _expect(self, seconds: float, doing: str) -> None:
        self._deadline = self._clock.monotonic() + seconds
        self._doing = f"{doing} ({seconds:.0f} s)"
