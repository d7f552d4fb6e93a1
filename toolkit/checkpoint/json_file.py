"""JSON files beside a model, read within bounds: config.json, tokenizer.json, adapter_config.json.

In: a path that anybody may have filled. Out: an object as a dict. Used by `loading`, `tokens` and `adapters`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from rkfleet.errors import Invalid, NotFound

__all__ = ["CONFIG_BYTES_MAX", "read_json"]

CONFIG_BYTES_MAX: Final = 4 << 20  # A config.json has some 2 kB; a tokenizer_config.json with a thousand added tokens 200 kB.


def read_json(path: Path, bytes_max: int = CONFIG_BYTES_MAX) -> dict[str, Any]:
    """Return the object in a file.

    Raises:
        NotFound: There is no such file, or it cannot be read.
        Invalid: It is longer than the limit, no JSON, or no object.
    """
    try:
        with path.open("rb") as file:
            text = file.read(bytes_max + 1)
    except OSError as error:
        raise NotFound(f"file {str(path)!r} cannot be read: {error.strerror}") from error
    if len(text) > bytes_max:
        raise Invalid(f"file {str(path)!r} has more than {bytes_max} bytes, which no file of its kind has")
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"file {str(path)!r} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise Invalid(f"file {str(path)!r} holds no JSON object")
    return value
