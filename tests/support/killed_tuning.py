"""A process that sets clocks and is killed before one of its writes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.board import tuning


class _KilledError(BaseException):
    """The process is gone."""


@contextlib.contextmanager
def killed_before_write(number: int, patch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Kill what the block does before its write of this number, counted from 1; yields whether that came, known after the block."""
    real, left, killed = tuning._put, number, [False]

    def put(root: Path, path: str, text: str) -> str:
        nonlocal left
        left -= 1
        if not left:
            raise _KilledError
        return real(root, path, text)

    with patch.context() as patched:
        patched.setattr(tuning, "_put", put)
        try:
            yield killed
        except _KilledError:
            killed[0] = True
