"""What the head of a GGUF file says about its model, as far as loading needs it.

In: a path. Out: the context that the model was trained for. Called by `agent/standalone/models.py`, which has nobody to ask: in a fleet the
Model says it. Only the head is read, up to the key that is looked for, which stands before the megabytes of the vocabulary.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, Final

from rkfleet.errors import FailedPrecondition

__all__ = ["MAGIC", "context_length"]

MAGIC: Final = b"GGUF"
HEAD_BYTES_MAX: Final = 64 << 20  # Vocabularies take up to 10 MB; whoever claims more is no model file.
KEYS_MAX: Final = 4096
TEXT_BYTES_MAX: Final = 1 << 20

_CONTEXT_SUFFIX: Final = b".context_length"
_STRING: Final = 8
_ARRAY: Final = 9
_FORMATS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


class _Spoiled(Exception):
    """The head is not what the format says."""


def context_length(path: Path) -> int:
    """Return the tokens of the largest context that the model was trained for; 0 if the file does not say.

    Raises:
        FailedPrecondition: The file cannot be read or its head is spoiled.
    """
    try:
        with path.open("rb") as file:
            return _context_length(file)
    except OSError as error:
        raise FailedPrecondition(f"model file {path} cannot be read: {error.strerror or error}") from error
    except (_Spoiled, struct.error) as error:
        raise FailedPrecondition(f"model file {path} has a spoiled head ({error}); copy it again") from error


def _context_length(file: BinaryIO) -> int:
    if _read(file, 4) != MAGIC:
        raise _Spoiled("it does not begin with GGUF")
    version: int = _number(file, "<I")
    if version not in (2, 3):
        raise _Spoiled(f"version {version} is neither 2 nor 3")
    _number(file, "<Q")  # tensors
    for _ in range(min(_number(file, "<Q"), KEYS_MAX)):
        key = _text(file)
        kind = _number(file, "<I")
        if key.endswith(_CONTEXT_SUFFIX) and kind in _FORMATS:
            return int(_number(file, _FORMATS[kind]))
        _skip(file, kind)
        if file.tell() > HEAD_BYTES_MAX:
            raise _Spoiled(f"it has more than {HEAD_BYTES_MAX} bytes")
    return 0


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        _text(file)
    elif kind == _ARRAY:
        item, count = _number(file, "<I"), _number(file, "<Q")
        if item in _FORMATS:
            file.seek(struct.calcsize(_FORMATS[item]) * count, 1)
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
    return data
