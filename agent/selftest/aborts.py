"""Checks of how soon the NPU is free when a client leaves: while tokens come, and while the prompt is read.

Each takes a loaded `Subject` and returns a `Verdict`. Called by `checks.py`. The time is from closing the connection to the worker's line
that says that the run has returned; a board whose library does not look up during prefill loses that time to each client that leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping
from typing import Any, Final

from agent.selftest.subject import OUTPUT_TOKENS_MAX, Subject
from agent.selftest.values import Verdict, failed, passed, skipped

__all__ = ["in_decode", "in_prefill"]

PIECES_BEFORE: Final = 3  # Then tokens come at their rate.
PREFILL_SECONDS_BEFORE: Final = 0.1  # The run has begun by then, and the prompt is long enough to be read for longer.
WINDOW_SHARE: Final = 0.8  # Of the window, for the prompt: the longest that leaves room for some of an answer.
# Beyond the limit, to learn how long it really takes: the worker ends a run that does not look up in ten seconds, and its process with it.
PATIENCE_SECONDS: Final = 12.0


async def in_decode(subject: Subject) -> Verdict:
    """Leave after some tokens."""
    name, came = subject.asker.new_name(), 0
    body = {"prompt": f"{subject.text_of(24)} Tell a long story.", "max_tokens": OUTPUT_TOKENS_MAX, "tenant": "abort"}
    async with subject.asker.stream("/v1/completions", body, name) as stream, contextlib.aclosing(stream.pieces()) as pieces:
        async for _ in pieces:
            came += 1
            if came == PIECES_BEFORE:
                break
    if came < PIECES_BEFORE:
        return skipped(f"the model ended its answer after {came} tokens")
    return await _freed(subject, name, subject.clock.monotonic(), "in the middle of an answer")


async def in_prefill(subject: Subject) -> Verdict:
    """Leave while a long prompt is read."""
    name = subject.asker.new_name()
    text = subject.text_of(round(subject.setup.context_tokens * WINDOW_SHARE))
    asking = asyncio.ensure_future(_ask(subject, {"prompt": text, "max_tokens": OUTPUT_TOKENS_MAX, "tenant": "abort"}, name))
    try:
        await subject.clock.sleep(PREFILL_SECONDS_BEFORE)
    finally:
        asking.cancel()
        await asyncio.wait((asking,))
    return await _freed(subject, name, subject.clock.monotonic(), "while a prompt was read", prefill=True)


async def _ask(subject: Subject, body: Mapping[str, Any], name: str) -> None:
    async with subject.asker.stream("/v1/completions", body, name) as stream:
        async for _ in stream.pieces():
            pass


async def _freed(subject: Subject, name: str, left: float, when: str, *, prefill: bool = False) -> Verdict:
    """Return how long after `left` the run of a request returned, and whether the next one is answered."""
    limit = subject.limits.abort
    try:
        async with asyncio.timeout(limit + PATIENCE_SECONDS):
            line, found = await subject.log.find(re.compile(rf"request {name} \(\d+\) (?:ran [\d.]+ s and has (\d+) tokens|was cancelled)"))
    except TimeoutError:
        return failed(f"{limit + PATIENCE_SECONDS:.0f} s after the client left {when} the run had not returned")
    if found[1] is None:
        return skipped("the client left before the run had begun")
    seconds, tokens = max(0.0, line.seconds - left), int(found[1])
    figures = {"abort_seconds": round(seconds, 4), "tokens_before": tokens}
    if prefill and tokens:
        return skipped(f"the prompt was read within {PREFILL_SECONDS_BEFORE:g} s, before the client left", figures)
    if seconds > limit:
        return failed(f"{seconds:.1f} s went by until the NPU was free after a client left {when}; the limit is {limit:g} s", figures)
    after = await subject.asker.complete(subject.text_of(8), max_tokens=4, tenant="after")
    if not after.text:
        return failed(f"after a client left {when} the next answer is empty", figures)
    return passed(f"the NPU was free {seconds * 1000:.0f} ms after a client left {when}, and the next prompt was answered", figures)
