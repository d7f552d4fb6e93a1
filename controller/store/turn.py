"""Let other tasks run: what loops over many objects do now and then, because nothing may hold the event loop for 20 ms."""

from __future__ import annotations

import types
from collections.abc import Generator

__all__ = ["turn"]


@types.coroutine
def turn() -> Generator[None, None, None]:
    """Give every other task that can run its turn, then go on."""
    yield
