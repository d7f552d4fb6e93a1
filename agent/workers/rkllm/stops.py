"""Stop words, cut out of a text that comes in pieces. Pure.

In: pieces of an answer. Out: what can be shown already, and whether a stop word came. Called by `answers.py`. The library knows no stop
words, so a word may lie across any number of pieces: text that could be its beginning is held back until it is decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["Stops", "open_tail"]


class Stops:
    """The stop words of one answer."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words: Final = tuple(words)
        self._rest = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Take a piece; return what can be shown and whether the answer is over, which leaves out the stop word itself."""
        text = self._rest + text
        found = [at for word in self._words if (at := text.find(word)) >= 0]
        if found:
            self._rest = ""
            return text[: min(found)], True
        cut = len(text) - open_tail(text, self._words)
        self._rest = text[cut:]
        return text[:cut], False

    def end(self) -> str:
        """Return what was held back and turned out to be no stop word."""
        rest, self._rest = self._rest, ""
        return rest


def open_tail(text: str, words: Sequence[str]) -> int:
    """Return the length of the longest end of `text` that one of `words` begins with, without being the whole word."""
    longest = min(len(text), max(map(len, words), default=1) - 1)
    return next((size for size in range(longest, 0, -1) if any(word.startswith(text[-size:]) for word in words)), 0)
