"""SentencePiece's BPE over the pieces and scores of a `Vocabulary`: the neighbours whose joined piece scores best are joined first.

In: a vocabulary of model `llama`. Out: a `Tokenizer` that tokenizes as llama.cpp does from the same file. Characters without a piece become
the pieces of their bytes. Made by `toolkit.tokens.gguf`. Source: arXiv:1808.06226; https://github.com/google/sentencepiece,
`bpe_model.cc`.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from typing import Final

from toolkit.tokens.vocabulary import BYTE, CONTROL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

__all__ = ["SPACE", "ScoredTokenizer"]

SPACE: Final = "\u2581"
_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class ScoredTokenizer:
    """Text to pieces by their scores."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary: Final = vocabulary
        pieces, kinds = vocabulary.pieces, vocabulary.kinds
        self._ids: Final[dict[str, int]] = {}
        self._bytes: Final[dict[int, int]] = {}
        self._values: Final[dict[int, int]] = {}
        for at, piece in enumerate(pieces):
            self._ids.setdefault(piece, at)
            found = _BYTE.fullmatch(piece) if kinds[at] == BYTE else None
            if found:
                self._values[at] = int(found[1], 16)
                self._bytes.setdefault(int(found[1], 16), at)
        always = [piece for at, piece in enumerate(pieces) if kinds[at] == USER_DEFINED and piece]
        marked = [piece for at, piece in enumerate(pieces) if kinds[at] in (CONTROL, UNKNOWN) and piece]
        self._plain: Final = _any_of(always)
        self._special: Final = _any_of([*always, *marked])
        self._silent: Final = frozenset(at for at, kind in enumerate(kinds) if kind in (CONTROL, UNKNOWN, UNUSED))
        self._whole: Final = frozenset(at for at, kind in enumerate(kinds) if kind == USER_DEFINED)

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self._vocabulary.pieces)

    @property
    def beginning(self) -> int | None:
        """Id that begins a text."""
        return self._vocabulary.beginning

    @property
    def ends(self) -> frozenset[int]:
        """Ids at which generation stops."""
        return frozenset(self._vocabulary.ends)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of a text; see `Tokenizer`."""
        vocabulary, ids = self._vocabulary, list[int]()
        splitter = self._special if special else self._plain
        prefix = vocabulary.space_prefix  # Before the text, and again after every special token, as llama.cpp has it.
        for at, part in enumerate(splitter.split(text) if splitter else [text]):
            if at % 2:
                found = self._ids[part]
                ids.append(found)
                prefix = vocabulary.space_prefix and found not in self._whole
            elif part:
                self._join((SPACE if prefix else "") + part.replace(" ", SPACE), ids)
        first = vocabulary.beginning
        if special and vocabulary.add_beginning and first is not None and ids[:1] != [first]:
            ids.insert(0, first)
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ids, special ones left out, and without the space that `encode` put before it."""
        written = bytearray()
        for at in tokens:
            if not 0 <= at < self.size or at in self._silent:
                continue
            value = self._values.get(at)
            written += bytes((value,)) if value is not None else self._vocabulary.pieces[at].replace(SPACE, " ").encode()
        text = written.decode(errors="replace")
        return text[1:] if self._vocabulary.space_prefix and text.startswith(" ") else text

    def _join(self, text: str, ids: list[int]) -> None:
        """Append the ids of a text without special tokens."""
        known, scores = self._ids, self._vocabulary.scores
        symbols: list[str] = list(text)
        before, after = list(range(-1, len(symbols) - 1)), [*range(1, len(symbols)), -1]
        heap: list[tuple[float, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left < 0 or right < 0:
                return
            joined = symbols[left] + symbols[right]
            at = known.get(joined)
            if at is not None:
                heapq.heappush(heap, (-scores[at], left, right, len(joined)))

        for left in range(len(symbols) - 1):
            offer(left, left + 1)
        while heap:
            _, left, right, length = heapq.heappop(heap)
            if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != length:
                continue  # One of them has been joined with another since.
            symbols[left] += symbols[right]
            symbols[right] = ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        for symbol in symbols:
            if not symbol:
                continue
            at = known.get(symbol)
            if at is not None:
                ids.append(at)
                continue
            for byte in symbol.encode():
                piece = self._bytes.get(byte, self._vocabulary.unknown)
                if piece is not None:
                    ids.append(piece)


def _any_of(pieces: list[str]) -> re.Pattern[str] | None:
    """Return a pattern that finds any of the pieces, the longest first, in a group, so that `split` keeps what it found."""
    if not pieces:
        return None
    return re.compile("(" + "|".join(re.escape(piece) for piece in sorted(pieces, key=len, reverse=True)) + ")")
