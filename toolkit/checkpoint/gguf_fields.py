"""Key-value pairs of GGUF: their types, their bytes, and values that are decoded when they are asked for.

In: bytes of a head, or values to write. Out: `Field`, which keeps type and bytes as they are in the file, so that what is read is written
again bit by bit; and `Fields`, the same as a mapping of values. Called by the reader and the writer beside this file.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, `gguf_metadata_value_type`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, Final

import msgspec
import numpy as np

from rkfleet.errors import Invalid

__all__ = ["FORMATS", "Field", "FieldType", "Fields", "field_of"]


class FieldType(IntEnum):
    """Type of a value."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


FORMATS: Final[Mapping[FieldType, str]] = {
    FieldType.UINT8: "<u1",
    FieldType.INT8: "<i1",
    FieldType.UINT16: "<u2",
    FieldType.INT16: "<i2",
    FieldType.UINT32: "<u4",
    FieldType.INT32: "<i4",
    FieldType.FLOAT32: "<f4",
    FieldType.BOOL: "<u1",
    FieldType.UINT64: "<u8",
    FieldType.INT64: "<i8",
    FieldType.FLOAT64: "<f8",
}
_LENGTH: Final = struct.Struct("<Q")
_ARRAY_HEAD: Final = struct.Struct("<IQ")


class Field(msgspec.Struct, frozen=True):
    """One value.

    Attributes:
        item: Type of the items of an array; None for what is none.
        raw: The value as it is in the file, after its type.
    """

    type: FieldType
    item: FieldType | None
    raw: bytes

    def decode(self) -> Any:
        """Return the value; arrays as lists.

        Raises:
            Invalid: A string is not UTF-8.
        """
        try:
            if self.type == FieldType.STRING:
                return self.raw[_LENGTH.size :].decode()
            if self.type != FieldType.ARRAY:
                return _numbers(self.type, self.raw)[0]
            items = self.raw[_ARRAY_HEAD.size :]
            return _strings(items) if self.item == FieldType.STRING else _numbers(self.item or FieldType.UINT8, items)
        except UnicodeDecodeError as error:
            raise Invalid(
                f"a text of the model file is not UTF-8: {error.reason} at byte {error.start} of {error.object[:80]!r}"
            ) from error


class Fields(Mapping[str, Any]):
    """Values by key in the order of the file, each decoded once, when it is asked for."""

    def __init__(self, fields: Mapping[str, Field]) -> None:
        self._fields: Final = fields
        self._values: Final[dict[str, Any]] = {}

    def __getitem__(self, key: str) -> Any:
        """Return a value."""
        if key not in self._values:
            self._values[key] = self._fields[key].decode()
        return self._values[key]

    def __contains__(self, key: object) -> bool:
        """Return whether the file has the key; nothing is decoded."""
        return key in self._fields

    def __iter__(self) -> Iterator[str]:
        """Return the keys."""
        return iter(self._fields)

    def __len__(self) -> int:
        """Return how many keys there are."""
        return len(self._fields)


def field_of(key: str, value: Any, kind: FieldType | None = None) -> Field:
    """Return a value in the form of the file.

    Args:
        key: For the error.
        value: bool, int, float, str, or a sequence of one of them.
        kind: Type of the value, or of the items of a sequence. None takes bool, string, float32, and for whole numbers uint32, or int64
            where a number does not fit; of sequences int32, or int64, as llama.cpp's converter writes them.

    Raises:
        Invalid: The value has no such type.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        item = kind if kind is not None else _item_type(key, value)
        body = b"".join(_encoded(key, one, item) for one in value) if item == FieldType.STRING else _packed(key, value, item)
        return Field(FieldType.ARRAY, item, _ARRAY_HEAD.pack(item, len(value)) + body)
    chosen = kind if kind is not None else _scalar_type(key, value)
    return Field(chosen, None, _encoded(key, value, chosen))


def _scalar_type(key: str, value: Any) -> FieldType:
    if isinstance(value, bool):
        return FieldType.BOOL
    if isinstance(value, int):
        return FieldType.UINT32 if 0 <= value < 1 << 32 else FieldType.INT64
    if isinstance(value, float):
        return FieldType.FLOAT32
    if isinstance(value, str):
        return FieldType.STRING
    raise Invalid(f"key {key!r} has a value of type {type(value).__name__}; GGUF has bool, int, float, str and arrays of them")


def _item_type(key: str, values: Sequence[Any]) -> FieldType:
    if not values:
        return FieldType.INT32
    first = _scalar_type(key, values[0])
    if first in (FieldType.UINT32, FieldType.INT64):
        fits = all(isinstance(one, int) and -(1 << 31) <= one < 1 << 31 for one in values)
        return FieldType.INT32 if fits else FieldType.INT64
    return first


def _encoded(key: str, value: Any, kind: FieldType) -> bytes:
    if kind == FieldType.STRING:
        if not isinstance(value, str):
            raise Invalid(f"key {key!r} has {value!r:.80}, which is no text")
        text = value.encode()
        return _LENGTH.pack(len(text)) + text
    return _packed(key, [value], kind)


def _packed(key: str, values: Sequence[Any], kind: FieldType) -> bytes:
    form = FORMATS.get(kind)
    if form is None:
        raise Invalid(f"key {key!r}: an array has no items of type {kind.name.lower()}")
    try:
        wide = np.asarray(values)
        if wide.dtype.kind not in "biuf" and len(values):
            raise Invalid(f"key {key!r} has {values!r:.80}, which are no numbers of type {kind.name.lower()}")
        with np.errstate(over="ignore", invalid="ignore"):
            packed = wide.astype(form)
        if np.dtype(form).kind in "iu" and not np.array_equal(packed, wide):
            raise Invalid(f"key {key!r} has {values!r:.80}, which does not fit into {kind.name.lower()}")
        return packed.tobytes()
    except (ValueError, OverflowError, TypeError) as error:
        raise Invalid(f"key {key!r} has {values!r:.80}, which are no numbers of type {kind.name.lower()}") from error


def _numbers(kind: FieldType, raw: bytes) -> list[Any]:
    values = np.frombuffer(raw, FORMATS[kind])
    return [bool(one) for one in values.tolist()] if kind == FieldType.BOOL else values.tolist()


def _strings(raw: bytes) -> list[str]:
    found, at = [], 0
    while at < len(raw):
        begin = at + _LENGTH.size
        at = begin + int.from_bytes(raw[at:begin], "little")
        found.append(raw[begin:at].decode())
    return found
