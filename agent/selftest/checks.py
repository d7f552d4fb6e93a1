"""The checks of a loaded model, in the order in which they are made.

What is most likely to go wrong comes first, what teaches the others something (length of text, width of embeddings) before those, and what
may take the worker with it last. `running.py` goes through them; `tests/hardware` has one test for each name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from agent.selftest import aborts, history, inputs, outputs
from agent.selftest.subject import Subject
from agent.selftest.values import Verdict

__all__ = ["AFTER", "BEFORE", "CHECKS", "Check"]


class Check(msgspec.Struct, frozen=True):
    """One check: its name for programs, its title for people, and what it does."""

    name: str
    title: str
    run: Callable[[Subject], Awaitable[Verdict]]


CHECKS: Final[tuple[Check, ...]] = (
    Check("prompt", "Text in", inputs.prompt),
    Check("hidden-layer", "Last hidden layer", outputs.hidden),
    Check("logits", "Logits", outputs.logits),
    Check("tokens", "Token ids in", inputs.tokens),
    Check("embedding", "Embeddings in", inputs.embedding),
    Check("streaming", "Streamed text, whole characters", outputs.streaming),
    Check("sampling", "Sampling parameters of a request", outputs.sampling),
    Check("overflow", "A prompt longer than the window", history.overflow),
    Check("reuse", "Later turns reuse the cache", history.reuse),
    Check("isolation", "Two tenants do not meet", history.isolation),
    Check("prompt-cache", "Saved prompts", history.prompt_cache),
    Check("abort-decode", "A client leaves while tokens come", aborts.in_decode),
    Check("abort-prefill", "A client leaves while a prompt is read", aborts.in_prefill),
    Check("adapter", "LoRA", inputs.adapter),
    Check("multimodal", "Images in", inputs.multimodal),
)

# Those that `running.py` makes itself, around the ones above.
BEFORE: Final = (("library", "Runtime library"), ("load", "Loading"), ("model-memory", "Memory of the model"))
AFTER: Final = (
    ("speed", "Speed beside the vendor's table"),
    ("second-model", "A second model beside the first"),
    ("unload", "Unloading"),
    ("shift", "A window that shifts"),
)
