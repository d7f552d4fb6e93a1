"""Checks that load another worker: a second model beside the first, and the first one anew with a window that shifts.

In: a `Setup`, and how to load it. Out: a `Verdict`. Called by `running.py`, which has the time that is left. Domains of the NPU are given
as the agent gives them (`agent/planning/domains.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

import msgspec

from agent.planning.domains import Claim, pack
from agent.selftest.subject import Setup, Subject, peak_memory_bytes, size_of
from agent.selftest.values import Verdict, failed, passed, skipped

__all__ = ["Loader", "beside", "shift", "unload"]

Loader = Callable[[Setup], AbstractAsyncContextManager[Subject]]

SHIFT_WINDOW: Final = 256  # A quarter of a minute's tokens on a board of the table's middle.
SHIFT_PROMPT: Final = 224
SHIFT_KEEP: Final = 16
BEYOND: Final = 16  # Tokens that come after the window is full; the shift itself is done by then.
ANSWER_TOKENS: Final = 12


async def beside(first: Subject, second: Path, load: Loader) -> Verdict:
    """Load a second model in IOMMU domains of its own, and ask both at once."""
    claims = [
        Claim(uid="first", name="first", memory_bytes=size_of(first.setup.model), held=first.setup.domain),
        Claim(uid="second", name="second", memory_bytes=size_of(second)),
    ]
    packing = pack(claims)
    if "second" not in packing.spans:
        return skipped(f"the second model has no place: {packing.refused['second']}")
    setup = msgspec.structs.replace(first.setup.plain, model=second, domain=packing.spans["second"].first, cache_dir="")
    text = first.text_of(32)
    before = await first.asker.complete(text, max_tokens=ANSWER_TOKENS, tenant="neighbour")
    async with load(setup) as other:
        answers = await asyncio.gather(
            first.asker.complete(text, max_tokens=ANSWER_TOKENS, tenant="neighbour"),
            other.asker.complete(text, max_tokens=ANSWER_TOKENS, tenant="neighbour"),
        )
        memory = peak_memory_bytes(other.worker.pid) or 0
        load_seconds = other.load_seconds
    figures = {
        "domain": setup.domain,
        "load_seconds": round(load_seconds, 2),
        "peak_memory_bytes": memory,
        "alone_seconds": round(before.seconds, 3),
        "beside_seconds": round(answers[0].seconds, 3),
    }
    if not all(answer.text for answer in answers):
        which = "first" if not answers[0].text else "second"
        return failed(f"asked at once, the {which} model answered with nothing", figures)
    after = await first.asker.complete(text, max_tokens=ANSWER_TOKENS, tenant="neighbour")
    if not after.text:
        return failed("after the second model was unloaded the first one answers with nothing", figures)
    return passed(f"in IOMMU domain {setup.domain} beside the first; both answered at once, and the first one afterwards", figures)


async def shift(first: Setup, load: Loader) -> Verdict:
    """Load the model with a small window that forgets its oldest tokens, and have it answer beyond."""
    setup = msgspec.structs.replace(
        first.plain,
        template=first.template,
        cache_dir="",
        context_tokens=SHIFT_WINDOW,
        shift=True,
        keep_tokens=SHIFT_KEEP,
    )
    async with load(setup) as subject:
        text = f"{subject.text_of(SHIFT_PROMPT - 16)} Tell a very long story about it, and never end it."
        answer = await subject.asker.complete(text, max_tokens=SHIFT_WINDOW - SHIFT_PROMPT + BEYOND, tenant="shift")
        whole = answer.prompt_tokens + answer.output_tokens
        after = await subject.asker.complete(subject.text_of(8), max_tokens=4, tenant="after")
    keeps = "keep_tokens" in subject.supports
    figures = {"window_tokens": SHIFT_WINDOW, "keep_tokens": SHIFT_KEEP if keeps else 0, "reached_tokens": whole}
    if whole <= SHIFT_WINDOW and answer.finish_reason == "stop":
        return skipped(f"the model ended its answer at {whole} tokens, before its window of {SHIFT_WINDOW} was full", figures)
    if whole <= SHIFT_WINDOW:
        return failed(f"the answer was ended at {whole} tokens, by a window of {SHIFT_WINDOW} that should shift", figures)
    if not after.text:
        return failed("after the window had shifted the next answer is empty", figures)
    kept = f"keeping {SHIFT_KEEP}" if keeps else f"keeping none, as {subject.generation} cannot be told to"
    return passed(f"{whole} tokens went through a window of {SHIFT_WINDOW}, {kept}", figures)


async def unload(subject: Subject) -> Verdict:
    """Ask the worker to end, and wait until its process is gone, and with it all memory of the NPU."""
    memory = peak_memory_bytes(subject.worker.pid) or 0
    began = subject.clock.monotonic()
    subject.worker.stop()
    try:
        async with asyncio.timeout(subject.limits.unload):
            await subject.worker.exited()
    except TimeoutError:
        why = f"process {subject.worker.pid} still holds the model {subject.limits.unload:g} s after it was asked to end"
        return failed(why, remedy=f"kill -9 {subject.worker.pid}; if that does not end it: reboot")
    seconds = subject.clock.monotonic() - began
    return passed(f"the process was gone after {seconds * 1000:.0f} ms", {"unload_seconds": round(seconds, 4), "peak_memory_bytes": memory})
