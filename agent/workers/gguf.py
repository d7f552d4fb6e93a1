"""What the head of a GGUF file says about its model, as far as loading needs it.

In: a path. Out: the context that the model was trained for, for `agent/standalone/models.py`, which has nobody to ask (in a fleet the Model
says it), and how the vectors of an embedding model are pooled, for `agent/workers/llamacpp.py` in the worker process. The metadata is a
list of key, type and value; only the head is read, up to the key that is looked for. Keys of the architecture stand before the megabytes
of the vocabulary.

Sources: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian; llama.cpp include/llama.h, enum
llama_pooling_type.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, Final

from rkfleet.errors import FailedPrecondition

__all__ = ["MAGIC", "POOLING_LAST", "POOLING_NONE", "context_length", "declared_pooling"]

MAGIC: Final = b"GGUF"
POOLING_NONE: Final = 0
POOLING_LAST: Final = 3

HEAD_BYTES_MAX: Final = 64 << 20  # Vocabularies take up to 10 MB; whoever claims more is no model file.
KEYS_MAX: Final = 4096  # Files have some dozens.
TEXT_BYTES_MAX: Final = 1 << 20  # A chat template has some kilobytes.

_STRING: Final = 8
_ARRAY: Final = 9
_FORMATS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_WHOLE: Final = _FORMATS.keys() - {6, 7, 12}


class _Spoiled(Exception):
    """The head is not what the format says."""


def context_length(path: Path) -> int:
    """Return the tokens of the largest context that the model was trained for; 0 if the file does not say.

    Raises:
        FailedPrecondition: The file cannot be read or its head is spoiled.
    """
    try:
        with path.open("rb") as file:
            return _find_number(file, b".context_length") or 0
    except OSError as error:
        raise FailedPrecondition(f"model file {path} cannot be read: {error.strerror or error}") from error
    except _Spoiled as error:
        raise FailedPrecondition(f"model file {path} has a spoiled head ({error}); copy it again") from error


def declared_pooling(path: Path) -> int | None:
    """Return the pooling that the file declares, or None; a file that cannot be read so far is left to the runtime to refuse."""
    try:
        with path.open("rb") as file:
            return _find_number(file, b".pooling_type", end=b"tokenizer.")
    except (OSError, _Spoiled):
        return None


def _find_number(file: BinaryIO, suffix: bytes, end: bytes = b"\0") -> int | None:
    """Return the number of the first key with this suffix, or None if there is none before a key that begins with `end`.

    Raises:
        _Spoiled: The file is not GGUF, or longer before that key than a head can be.
    """
    if _read(file, 4) != MAGIC:
        raise _Spoiled("it does not begin with GGUF")
    version = _number(file, "<I")
    if version not in (2, 3):
        raise _Spoiled(f"version {version} is neither 2 nor 3")
    _number(file, "<Q")  # tensors
    for _ in range(min(_number(file, "<Q"), KEYS_MAX)):
        key = _text(file)
        kind = _number(file, "<I")
        if key.endswith(suffix) and kind in _WHOLE:
            return _number(file, _FORMATS[kind])
        if key.startswith(end):
            return None
        _skip(file, kind)
    return None


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        _text(file)
    elif kind == _ARRAY:
        item, count = _number(file, "<I"), _number(file, "<Q")
        if item in _FORMATS:
            _read_past(file, struct.calcsize(_FORMATS[item]) * count)
        elif item == _STRING:
            for _ in range(count):
                _text(file)
        else:
            raise _Spoiled(f"array of type {item}")
    elif kind in _FORMATS:
        _number(file, _FORMATS[kind])
    else:
        raise _Spoiled(f"type {kind}")


def _text(file: BinaryIO) -> bytes:
    length = _number(file, "<Q")
    if length > TEXT_BYTES_MAX:
        raise _Spoiled(f"a text of {length} bytes")
    return _read(file, length)


def _number(file: BinaryIO, format: str) -> int:
    found: int = struct.unpack(format, _read(file, struct.calcsize(format)))[0]
    return found


def _read(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise _Spoiled("it ends too early")
    _check(file.tell())
    return data


def _read_past(file: BinaryIO, count: int) -> None:
    _check(file.tell() + count)
    file.seek(count, 1)


def _check(position: int) -> None:
    if position > HEAD_BYTES_MAX:
        raise _Spoiled(f"it has more than {HEAD_BYTES_MAX} bytes")
