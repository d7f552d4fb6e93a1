"""Byte-level BPE of a `Vocabulary`, by the `tokenizers` library.

In: a vocabulary of model `gpt2`. Out: a `Tokenizer`. Made by `toolkit.tokens.gguf`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from rkfleet.errors import Invalid
from toolkit.tokens.pretokenizers import ignores_merges, patterns_of
from toolkit.tokens.vocabulary import CONTROL, UNKNOWN, USER_DEFINED, Vocabulary

__all__ = ["ByteLevelTokenizer"]


class ByteLevelTokenizer:
    """Byte-level BPE: every text can be written, and comes back as it was."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        pieces = vocabulary.pieces
        ids: dict[str, int] = {}
        for at, piece in enumerate(pieces):
            ids.setdefault(piece, at)
        try:
            model = models.BPE(ids, list(vocabulary.merges), ignore_merges=ignores_merges(vocabulary.pre))
        except Exception as error:  # (the library raises nothing narrower)
            raise Invalid(f"GGUF key tokenizer.ggml.merges does not fit tokenizer.ggml.tokens: {error}") from error
        self._tokenizer: Final = tokenizers.Tokenizer(model)
        splits = [pre_tokenizers.Split(tokenizers.Regex(one), "isolated") for one in patterns_of(vocabulary.pre)]
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_])
        self._tokenizer.decoder = decoders.ByteLevel()
        kinds = vocabulary.kinds
        for special, wanted in ((True, (CONTROL, UNKNOWN)), (False, (USER_DEFINED,))):
            added = [
                tokenizers.AddedToken(piece, special=special, normalized=False)
                for at, piece in enumerate(pieces)
                if kinds[at] in wanted and ids[piece] == at and piece
            ]
            (self._tokenizer.add_special_tokens if special else self._tokenizer.add_tokens)(added)
        self._vocabulary: Final = vocabulary
        self._silent: Final = frozenset(at for at, kind in enumerate(kinds) if kind in (CONTROL, UNKNOWN))

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
        self._tokenizer.encode_special_tokens = not special
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        first = self._vocabulary.beginning
        if special and self._vocabulary.add_beginning and first is not None and ids[:1] != [first]:
            ids.insert(0, first)
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ids, special ones left out."""
        known = [at for at in tokens if 0 <= at < self.size and at not in self._silent]
        text: str = self._tokenizer.decode(known, skip_special_tokens=False)
        return text
