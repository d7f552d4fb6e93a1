"""The seam behind which images become embeddings. A value and a protocol.

`runner.py` calls an `Encoder` while it holds the NPU; an encoder is a model of its own, in a process of its own.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

__all__ = ["Encoder", "ImageEmbedding"]


class ImageEmbedding(msgspec.Struct, frozen=True, kw_only=True):
    """One image as the language model reads it.

    Attributes:
        floats: float32[tokens, width of the model], little endian.
        tokens: Tokens that the image takes in the context.
        width: Pixels of the encoder's input, also `height`; 0 is not said.
    """

    floats: bytes
    tokens: int
    width: int = 0
    height: int = 0


class Encoder(Protocol):
    """Turns images into embeddings, one at a time."""

    def encode(self, image: bytes) -> ImageEmbedding:
        """Encode a JPEG or PNG file; blocks.

        Raises:
            FleetError: The bytes are no image that the encoder reads, or it failed.
        """
        ...
