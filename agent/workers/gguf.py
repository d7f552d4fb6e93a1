"""The head of a GGUF file, as far as a load depends on it: how the vectors of an embedding model are pooled.

In: a path. Out: a number of llama.cpp's `llama_pooling_type`. Called by `agent/workers/llamacpp.py` in the worker process. The metadata is
a list of key, type and value; keys of the architecture come before the tokenizer's long lists, at which reading ends.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, Final

__all__ = ["POOLING_LAST", "POOLING_NONE", "declared_pooling"]

# Source: llama.cpp include/llama.h, enum llama_pooling_type.
POOLING_NONE: Final = 0
POOLING_LAST: Final = 3

HEAD_BYTES: Final = 24  # magic, version, counts of tensors and of metadata
KEYS_MAX: Final = 4096  # Files have some dozens.
TEXT_BYTES_MAX: Final = 1 << 20  # A chat template has some kilobytes.

_STRING: Final = 8
_ARRAY: Final = 9
_UINT32: Final = 4
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by its type


def declared_pooling(path: Path) -> int | None:
    """Return the pooling that the file declares, or None; a file that cannot be read so far is left to the runtime to refuse."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            (count,) = struct.unpack_from("<Q", head, 16)
            for _ in range(min(count, KEYS_MAX)):
                key = _text(file)
                (kind,) = struct.unpack("<I", file.read(4))
                if key.endswith(b".pooling_type") and kind == _UINT32:
                    return int(struct.unpack("<I", file.read(4))[0])
                if key.startswith(b"tokenizer."):
                    return None
                _skip(file, kind)
    except (OSError, struct.error, KeyError, ValueError):
        return None
    return None


def _skip(file: BinaryIO, kind: int) -> None:
    """Pass over a value.

    Raises:
        KeyError: Its type is unknown.
        ValueError: It is a list of more than KEYS_MAX texts, or of lists.
    """
    if kind == _STRING:
        _text(file)
    elif kind == _ARRAY:
        kind, count = struct.unpack("<IQ", file.read(12))
        if kind in _SIZES:
            file.seek(_SIZES[kind] * count, 1)
        elif kind == _STRING and count <= KEYS_MAX:
            for _ in range(count):
                _text(file)
        else:
            raise ValueError(f"a list of {count} values of type {kind}")
    else:
        file.seek(_SIZES[kind], 1)


def _text(file: BinaryIO) -> bytes:
    """Read a string.

    Raises:
        ValueError: It is longer than TEXT_BYTES_MAX.
    """
    (length,) = struct.unpack("<Q", file.read(8))
    if length > TEXT_BYTES_MAX:
        raise ValueError(f"a string of {length} bytes")
    return file.read(length)
