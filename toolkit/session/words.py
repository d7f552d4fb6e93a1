"""From tokens to text as it streams: no broken characters, nothing of a stop word.

In: token ids, one at a time. Out: text that is certain. A character of several tokens comes when it is whole; what may be the beginning of
a stop word comes when it is known not to be one. `session.py` has one `Words` for each answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rkfleet.errors import Invalid
from toolkit.tokens.base import Tokenizer

__all__ = ["STOPS_MAX", "STOP_CHARACTERS_MAX", "Words"]

STOPS_MAX: Final = 16  # As a board's listener takes them: each is looked for after every token.
STOP_CHARACTERS_MAX: Final = 256
_BROKEN: Final = "\N{REPLACEMENT CHARACTER}"
_TOKENS_OF_A_CHARACTER: Final = 4  # UTF-8 has at most four bytes; after as many tokens what is broken stays broken.


class Words:
    """The text of one answer.

    Attributes:
        stopped: The stop word that came, or empty.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        """Begin.

        Raises:
            Invalid: There are too many stop words, an empty or a long one.
        """
        if len(stops) > STOPS_MAX:
            raise Invalid(f"stop has {len(stops)} words; at most {STOPS_MAX} are taken")
        for stop in stops:
            if not 0 < len(stop) <= STOP_CHARACTERS_MAX:
                raise Invalid(f"stop has a word of {len(stop)} characters; from 1 to {STOP_CHARACTERS_MAX} are taken")
        self.stopped = ""
        self._tokenizer: Final = tokenizer
        self._stops: Final = tuple(stops)
        self._tokens: list[int] = []  # Those that are looked at: some that were said already, for their neighbours' sake, and new ones.
        self._said = 0  # How many of these were said.
        self._held = ""  # Text that may begin a stop word.

    def add(self, token: int) -> str:
        """Return what a token made certain; empty while a character or a stop word may be going on."""
        self._tokens.append(token)
        fresh = self._fresh()
        waiting = len(self._tokens) - self._said
        if fresh.endswith(_BROKEN) and waiting < _TOKENS_OF_A_CHARACTER:
            return ""
        return self._certain(self._take(fresh))

    def finish(self) -> str:
        """Return what was held back and is certain now, as nothing more will come."""
        text = self._certain(self._take(self._fresh()))
        held, self._held = self._held, ""
        return text + held

    def _fresh(self) -> str:
        """Return the text of the new tokens, as it is after those before: a tokenizer may treat the first word otherwise."""
        before = self._tokenizer.decode(self._tokens[: self._said])
        return self._tokenizer.decode(self._tokens)[len(before) :]

    def _take(self, fresh: str) -> str:
        self._tokens = self._tokens[self._said :]
        self._said = len(self._tokens)
        return fresh

    def _certain(self, fresh: str) -> str:
        text = self._held + fresh
        found = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if found:
            at, self.stopped = min(found)
            self._held = ""
            return text[:at]
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        keep = next((n for n in range(min(longest, len(text)), 0, -1) if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]
