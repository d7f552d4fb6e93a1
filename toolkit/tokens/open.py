"""From a path, or an opened model, to its tokenizer: `open_tokenizer`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rkfleet.errors import NotFound
from toolkit.checkpoint.gguf import GgufCheckpoint
from toolkit.checkpoint.quantized import METADATA, QuantizedCheckpoint
from toolkit.tokens.base import Tokenizer
from toolkit.tokens.gguf import tokenizer_from_metadata
from toolkit.tokens.hugging_face import tokenizer_from_directory

__all__ = ["Described", "open_tokenizer"]


class Described(Protocol):
    """An opened model: where it is, and the metadata of its GGUF file."""

    @property
    def path(self) -> Path:
        """File or directory."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Key-value pairs as in a GGUF file."""


def open_tokenizer(source: Path | Described) -> Tokenizer:
    """Return the tokenizer of a GGUF file, a directory of a Hugging Face or a quantized model, or an opened model.

    Raises:
        NotFound: There is nothing at the path, or no tokenizer in it.
        Invalid: Its files do not fit each other, or name what is unknown.
    """
    path = source if isinstance(source, Path) else source.path
    if not path.exists():
        raise NotFound(f"model {str(path)!r} does not exist")
    if (path / METADATA).is_file():
        return tokenizer_from_metadata(QuantizedCheckpoint(path).metadata if isinstance(source, Path) else source.metadata)
    if path.is_dir():
        return tokenizer_from_directory(path)
    return tokenizer_from_metadata(GgufCheckpoint(path).metadata if isinstance(source, Path) else source.metadata)
