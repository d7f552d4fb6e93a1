"""The file format of SentencePiece, as far as a vocabulary needs it.

In: bytes of a `tokenizer.model`. Out: a `SentencePieceFile`. The format is a protobuf message; its few fields are read here because the
classes that the library brings demand a protobuf runtime of their own release.

Source: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto;
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from rkfleet.errors import Invalid
from toolkit.tokens.vocabulary import BYTE, NORMAL, PIECES_MAX

__all__ = ["BPE", "UNIGRAM", "Piece", "SentencePieceFile", "parse"]

UNIGRAM: Final = 1  # TrainerSpec.ModelType
BPE: Final = 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # Wire types.


class Piece(msgspec.Struct, frozen=True):
    """One piece; kinds are numbered as in GGUF."""

    text: str
    score: float
    kind: int


class SentencePieceFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says.

    Attributes:
        model_type: `UNIGRAM` or `BPE`, or another that language models do not use.
        dummy_prefix: A space is put before a text.
    """

    pieces: tuple[Piece, ...]
    model_type: int
    unknown: int
    beginning: int
    end: int
    padding: int
    dummy_prefix: bool


def parse(data: bytes) -> SentencePieceFile:
    """Read a file.

    Raises:
        Invalid: It is no model of SentencePiece.
    """
    try:
        return _parse(data)
    except (IndexError, ValueError, struct.error) as error:
        raise Invalid(f"it is no model of SentencePiece: {error}") from error


def _parse(data: bytes) -> SentencePieceFile:
    pieces: list[Piece] = []
    trainer: dict[int, int] = {}
    normalizer: dict[int, int] = {}
    for field, value in _fields(data):
        if not isinstance(value, bytes):
            continue
        if field == 1:
            pieces.append(_piece(value))
            if len(pieces) > PIECES_MAX:
                raise ValueError(f"it has more than {PIECES_MAX} pieces")
        elif field in (2, 3):
            numbers = {key: one for key, one in _fields(value) if isinstance(one, int)}
            (trainer if field == 2 else normalizer).update(numbers)
    if not pieces:
        raise ValueError("it has no pieces")
    return SentencePieceFile(
        pieces=tuple(pieces),
        model_type=trainer.get(3, UNIGRAM),
        unknown=_signed(trainer.get(40, 0)),
        beginning=_signed(trainer.get(41, 1)),
        end=_signed(trainer.get(42, 2)),
        padding=_signed(trainer.get(43, -1)),
        dummy_prefix=bool(normalizer.get(3, 1)),
    )


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            text = value.decode()
        elif field == 2 and isinstance(value, bytes) and len(value) == 4:
            score = float(struct.unpack("<f", value)[0])
        elif field == 3 and isinstance(value, int):
            kind = value
    if not NORMAL <= kind <= BYTE:
        raise ValueError(f"piece {text!r} is of kind {kind}")
    return Piece(text, score, kind)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of every field: numbers as such, everything else as its bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"a field has wire type {kind}")
        if size > len(data) - at:
            raise ValueError(f"a field of {size} bytes is cut short")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
    raise ValueError("a number has more than ten bytes")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
