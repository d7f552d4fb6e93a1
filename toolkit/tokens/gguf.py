"""The tokenizer of a GGUF file.

In: its metadata. Out: a `Tokenizer`: byte-level BPE for `gpt2`, pieces by score for `llama`. Called by `open.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.tokens.base import Tokenizer
from toolkit.tokens.bpe import ByteLevelTokenizer
from toolkit.tokens.spm import ScoredTokenizer
from toolkit.tokens.vocabulary import Vocabulary, from_metadata

__all__ = ["tokenizer_from_metadata", "tokenizer_of"]


def tokenizer_from_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer that the metadata of a GGUF file describes.

    Raises:
        NotFound: The file has none.
        Invalid: Its keys do not fit each other, or name what is unknown.
    """
    return tokenizer_of(from_metadata(metadata))


def tokenizer_of(vocabulary: Vocabulary) -> Tokenizer:
    """Return a tokenizer of a vocabulary."""
    return ByteLevelTokenizer(vocabulary) if vocabulary.model == "gpt2" else ScoredTokenizer(vocabulary)
