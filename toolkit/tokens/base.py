"""The seam of tokenizers.

Out: the `Tokenizer` protocol. Files beside this one make it of a Hugging Face `tokenizer.json`, a SentencePiece `tokenizer.model`, or the
vocabulary of a GGUF file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Tokenizer"]


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def size(self) -> int:
        """Number of ids."""

    @property
    def beginning(self) -> int | None:
        """Id that begins a text, or None if the model has none."""

    @property
    def ends(self) -> frozenset[int]:
        """Ids at which generation stops."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of a text.

        Args:
            text: Any text.
            special: Put the beginning (where the model wants it) before, and read the names of special tokens as those tokens.
        """

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ids, special ones left out."""
