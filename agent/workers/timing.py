"""How long a simulated NPU takes: a row of the benchmark table becomes moments. Pure.

In: a row, tokens, and the time as an argument. Out: when each step of a request ends. Called by `agent/workers/simulated.py`.

The rule. The time to the first token is the row's for prompts up to the length that it was measured with, and grows in proportion beyond.
After it one token follows every 1/rate seconds, counted from the first token and not from the one before: a schedule that adds up its
sleeps is 2% late, because every sleep ends a little after its time.

The table knows one request at a time, on all cores of the NPU. Requests that run together on a board, of one worker or of several, take
turns, step by step, so that a board never gives out more tokens per second than the table says.
"""

from __future__ import annotations

import math
from typing import Final

from rkfleet.benchmarks import Row

__all__ = ["STORAGE_BYTES_PER_SECOND", "Npu", "decode_step_seconds", "load_seconds", "prefill_steps"]

# Loading is reading the weights. Assumed, not measured: between the eMMC of a board (0.3 GB/s) and an NVMe disk on it (up to 3 GB/s). A
# model of 2.5 GiB loads in 2.5 s; who wants to watch a slow load asks for a smaller speed-up.
STORAGE_BYTES_PER_SECOND: Final = 1 << 30

PREFILL_STEP_SECONDS_MAX: Final = 0.1  # A cancelled request frees the NPU after at most one step; the contract allows a second.


def load_seconds(row: Row, speedup: float = 1.0) -> float:
    """Return how long a model takes to load; `speedup` makes it shorter (above 1) or longer."""
    return row.memory_bytes / STORAGE_BYTES_PER_SECOND / speedup


def prefill_steps(row: Row, prompt_tokens: int) -> tuple[float, ...]:
    """Return the seconds of each step from getting a place to the first token; together they are the time to the first token."""
    whole = row.time_to_first_token_seconds * max(1.0, prompt_tokens / row.protocol.prompt_tokens)
    count = math.ceil(whole / PREFILL_STEP_SECONDS_MAX)
    return (whole / count,) * count


def decode_step_seconds(row: Row) -> float:
    """Return the seconds of each further token."""
    return 1.0 / row.tokens_per_second


class Npu:
    """The NPU of one board: does one step after another, in the order in which they are asked for."""

    def __init__(self) -> None:
        self._free_at = -math.inf

    def reserve(self, not_before: float, seconds: float) -> float:
        """Return when a step ends that cannot begin before `not_before` (monotonic seconds), nor before the steps reserved so far end."""
        self._free_at = max(not_before, self._free_at) + seconds
        return self._free_at
