"""The four inputs of the RKLLM runtime: a text, token ids, embeddings, and a text with images among its words.

In: one of `Prompt`, `Tokens`, `Embeddings`, `Multimodal`. Out: `Encoded`, which `session.py` runs: for every position a token id, or an
embedding with a negative key made of its digest, so that prefixes of all four can be compared.

Source: RKLLM SDK user guide 1.3.0, RKLLMInput; rkllm.h, RKLLMMultiModalInput (`<image>` stands for one image; markers around it).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from rkfleet.errors import FailedPrecondition, Invalid
from toolkit.checkpoint.base import Array
from toolkit.simulate.network import Network
from toolkit.tokens.base import Tokenizer

__all__ = ["IMAGE", "Embeddings", "Encoded", "Input", "Multimodal", "Prompt", "Tokens", "encode"]

IMAGE: Final = "<image>"
# A key must fit a JSON number of 64 bits with a sign. Two embeddings that differ share one by chance once in 2^62.
_KEY_BITS: Final = 62


class Prompt(msgspec.Struct, frozen=True):
    """A text as the model reads it: templates were applied before, by `Conversation`, or are not wanted."""

    text: str


class Tokens(msgspec.Struct, frozen=True):
    """Token ids."""

    ids: Sequence[int]


class Embeddings(msgspec.Struct, frozen=True):
    """What the first block reads, float32 (tokens, hidden); nothing is scaled any more."""

    rows: Array


class Multimodal(msgspec.Struct, frozen=True, kw_only=True):
    """A text with `<image>` for each image.

    Attributes:
        images: float32 (tokens of the image, hidden) each, in the order of the text.
        start: Marker before an image (img_start), `end` after it (img_end); empty for none.
        content: The one token that stands for a row of an image (img_content); empty for none.
    """

    text: str
    images: Sequence[Array]
    start: str = ""
    end: str = ""
    content: str = ""


Input = Prompt | Tokens | Embeddings | Multimodal


class Encoded(msgspec.Struct, frozen=True):
    """An input, position by position.

    Attributes:
        keys: Token ids, and a negative number for an embedding; two positions with one key hold the same.
        rows: Embeddings by their position.
    """

    keys: list[int]
    rows: Mapping[int, Array]

    def embed(self, network: Network, start: int, end: int) -> Array:
        """Return the embeddings of positions from `start` up to `end`, (tokens, hidden)."""
        keys = self.keys[start:end]
        x = network.embed([max(key, 0) for key in keys])
        for at, key in enumerate(keys):
            if key < 0:
                x[at] = self.rows[start + at]
        return x


def encode(asked: Input, network: Network, tokenizer: Tokenizer | None) -> Encoded:
    """Return the positions of an input.

    Raises:
        Invalid: It is empty, has a token that the network does not know, an embedding of another width or with values that are no numbers,
            or as many images as it has not places for; the message names field and value.
        FailedPrecondition: It has text, and there is no tokenizer.
    """
    hidden, vocabulary = network.hyperparameters.hidden, network.hyperparameters.vocabulary
    keys: list[int] = []
    rows: dict[int, Array] = {}
    match asked:
        case Prompt():
            keys = _tokenizer(tokenizer).encode(asked.text)
        case Tokens():
            keys = [int(one) for one in asked.ids]
        case Embeddings():
            _put(keys, rows, asked.rows, hidden, "embeddings")
        case Multimodal():
            words = asked.text.split(IMAGE)
            if len(words) - 1 != len(asked.images):
                raise Invalid(f"text has {len(words) - 1} {IMAGE}, images has {len(asked.images)}; each image takes one place")
            reader = _tokenizer(tokenizer)
            if asked.content and len(_inside(reader, asked.content)) != 1:
                raise Invalid(f"content is {asked.content!r}, which is not one token of this model; take the name of its image token")
            keys = reader.encode(words[0] + (asked.start if asked.images else ""))
            for at, image in enumerate(asked.images):
                _put(keys, rows, image, hidden, f"images[{at}]")
                start = asked.start if at + 1 < len(asked.images) else ""
                keys += _inside(reader, asked.end + words[at + 1] + start)
    if not keys:
        raise Invalid("the input has no token; give it at least one")
    for at, key in enumerate(keys):
        if key >= vocabulary or (key < 0 and at not in rows):
            raise Invalid(f"token {at} is {key}; the network knows those from 0 to {vocabulary - 1}")
    return Encoded(keys, rows)


def _put(keys: list[int], rows: dict[int, Array], given: Array, hidden: int, field: str) -> None:
    if given.ndim != 2 or given.shape[1] != hidden:
        raise Invalid(f"{field} has shape {given.shape}; the network takes (tokens, {hidden})")
    if not np.isfinite(given).all():
        raise Invalid(f"{field} has values that are no numbers; look at the encoder that made it")
    for row in np.ascontiguousarray(given, dtype=np.float32):
        digest = hashlib.blake2b(row.tobytes(), digest_size=8).digest()
        rows[len(keys)] = row
        keys.append(-1 - (int.from_bytes(digest, "big") >> (64 - _KEY_BITS)))


def _inside(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the tokens of a text that does not begin the prompt."""
    keys = tokenizer.encode(text) if text else []
    return keys[1:] if keys and keys[0] == tokenizer.beginning else keys


def _tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise FailedPrecondition("the input has text, but there is no tokenizer; give token ids, or a model that has one")
    return tokenizer
