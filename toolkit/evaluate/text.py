"""The text that models are judged by, as windows of token ids.

In: a text, a tokenizer, the length of a window. Out: `Window`s. As llama.cpp's `perplexity` and the vendor's example for wikitext-2 do it,
the text is one row of tokens, cut into windows that do not overlap; unlike both, the last window may be shorter, so that a short text
counts whole. In each window every token but the first is predicted from those before it. Where the model wants a token that begins texts,
every window begins with it, and it is not predicted.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/perplexity/README.md; RKLLM SDK user guide 1.1.0, get_logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from rkfleet.errors import Invalid, NotFound
from toolkit.tokens.base import Tokenizer

__all__ = ["WINDOW_TOKENS", "Window", "read_text", "windows"]

WINDOW_TOKENS: Final = 512  # The window of both sources.
WINDOW_TOKENS_MIN: Final = 2  # One to predict from, one to predict.
TEXT_BYTES_MAX: Final = 64 << 20  # Fifty times wikitext-2's test set.


class Window(msgspec.Struct, frozen=True):
    """Token ids that are run together; those from `first` on are predicted, each from all before it."""

    tokens: tuple[int, ...]
    first: int

    @property
    def predicted(self) -> int:
        """Number of tokens that are predicted."""
        return len(self.tokens) - self.first


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        NotFound: It cannot be read.
        Invalid: It is no UTF-8, too large or empty.
    """
    try:
        with path.open("rb") as file:
            content = file.read(TEXT_BYTES_MAX + 1)
    except OSError as error:
        raise NotFound(f"text {str(path)!r} cannot be read: {error.strerror or error}") from error
    if len(content) > TEXT_BYTES_MAX:
        raise Invalid(f"text {str(path)!r} has more than {TEXT_BYTES_MAX} bytes; some ten thousand words are enough")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise Invalid(f"text {str(path)!r} is not UTF-8: byte {error.start} is {content[error.start]:#04x}") from error
    if not text.strip():
        raise Invalid(f"text {str(path)!r} is empty")
    return text


def windows(text: str, tokenizer: Tokenizer, length: int = WINDOW_TOKENS, tokens_max: int = 0) -> tuple[Window, ...]:
    """Return the windows of a text.

    Args:
        text: Any text; names of special tokens in it are read as text.
        tokenizer: Of the model.
        length: Tokens of a window, with the beginning if there is one.
        tokens_max: Of the text; 0 takes all of it.

    Raises:
        Invalid: The window is too short, or the text has fewer than two tokens.
    """
    if length < WINDOW_TOKENS_MIN:
        raise Invalid(f"context {length} is too short; a window needs {WINDOW_TOKENS_MIN} tokens or more")
    begins = tokenizer.encode("", special=True)
    ids = tokenizer.encode(text, special=False)
    ids = ids[:tokens_max] if tokens_max else ids
    step = length - len(begins)
    if step < 1:
        raise Invalid(f"context {length} has no room beside the {len(begins)} tokens that begin every window of this model")
    found = tuple(Window((*begins, *ids[at : at + step]), max(len(begins), 1)) for at in range(0, len(ids), step))
    found = tuple(window for window in found if window.predicted > 0)
    if not found:
        raise Invalid(f"the text has {len(ids)} tokens; two or more are needed")
    return found
