"""The head of a GGUF file, held against the file before anything is taken from it.

In: a path. Out: `Head`: keys as they are in the file, and where each tensor lies. Every count, length and offset is checked against a named
limit and the size of the file first, so that a head that lies costs neither time nor memory.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn

import gguf
import msgspec

from rkfleet.errors import Invalid, NotFound
from toolkit.checkpoint.base import TensorInfo
from toolkit.checkpoint.gguf_fields import FORMATS, Field, FieldType

__all__ = ["ALIGNMENT", "ALIGNMENT_KEY", "MAGIC", "NAME_BYTES_MAX", "VERSIONS", "Head", "Place", "aligned", "read_head"]

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
ALIGNMENT_KEY: Final = "general.alignment"
ALIGNMENT: Final = 32  # Where the key is missing.
ALIGNMENT_MAX: Final = 1 << 16  # A page of the largest page size of arm64.
KEYS_MAX: Final = 4096  # Models have some 40.
KEY_BYTES_MAX: Final = 65535  # Source: the format's description, `gguf_string_t key`.
STRING_BYTES_MAX: Final = 16 << 20  # A chat template has some 10 kB; a tokenizer that is kept as JSON some MB.
STRINGS_MAX: Final = 4 << 20  # In all arrays together; the largest vocabularies have 0.26 million tokens and 0.5 million merges.
NUMBERS_MAX: Final = 16 << 20  # In one array.
TENSORS_MAX: Final = 65536  # The largest mixtures of experts have some thousand.
DIMENSIONS_MAX: Final = 4  # Source: ggml.h, GGML_MAX_DIMS.
NAME_BYTES_MAX: Final = 64  # Source: the format's description, `gguf_tensor_info_t`.
HEAD_BYTES_MAX: Final = 512 << 20  # The head is kept in memory.
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_KEY_BYTES_MIN: Final = 8 + 4 + 1  # Length, type, the smallest value.
_TENSOR_BYTES_MIN: Final = 8 + 4 + 4 + 8  # Length, dimensions, type, offset.


class Place(msgspec.Struct, frozen=True):
    """Where a tensor is.

    Attributes:
        offset: From the begin of the file.
    """

    file: Path
    offset: int
    info: TensorInfo


class Head(msgspec.Struct, frozen=True):
    """What a file says of itself."""

    version: int
    alignment: int
    fields: Mapping[str, Field]
    places: Mapping[str, Place]


def aligned(offset: int, alignment: int) -> int:
    """Return the next multiple of the alignment."""
    return -(-offset // alignment) * alignment


def read_head(path: Path) -> Head:
    """Read and check the head of a file.

    Raises:
        NotFound: The file cannot be read.
        Invalid: It is no GGUF file, of another version or byte order, or its head does not fit it.
    """
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) < len(MAGIC) + _U32.size + 2 * _U64.size:
                raise Invalid(f"model file {str(path)!r} is not GGUF: it has {file.tell()} bytes, the shortest head has 24")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return _Cursor(path, mapped).head()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL.
        raise NotFound(f"model file {str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error


class _Cursor:
    """Walks through a head."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._size = len(data)
        self._at = 0
        self._strings = 0

    def head(self) -> Head:
        if self._data[:4] != MAGIC:
            self._refuse(f"it begins with {self._data[:4]!r}, not with {MAGIC!r}")
        self._at = 4
        version = self._u32()
        if version not in VERSIONS:
            if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
                self._refuse("it is big-endian; convert it on a little-endian machine with gguf's gguf_convert_endian.py")
            self._refuse(f"version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} are read. Convert the model anew")
        tensors = self._count("tensors", TENSORS_MAX, _TENSOR_BYTES_MIN)
        keys = self._count("keys", KEYS_MAX, _KEY_BYTES_MIN)
        fields: dict[str, Field] = {}
        for _ in range(keys):
            key = self._name("key", KEY_BYTES_MAX)
            if key in fields:
                self._refuse(f"key {key!r:.80} stands twice in it")
            fields[key] = self._field(key)
        alignment = self._alignment(fields.get(ALIGNMENT_KEY))
        found = [self._tensor() for _ in range(tensors)]
        begin = aligned(self._at, alignment)
        return Head(version, alignment, fields, self._places(found, begin, alignment))

    def _alignment(self, field: Field | None) -> int:
        if field is None:
            return ALIGNMENT
        value = field.decode() if field.type == FieldType.UINT32 else 0
        if not 0 < value <= ALIGNMENT_MAX or value & (value - 1):
            self._refuse(f"{ALIGNMENT_KEY} is {value!r}, no power of two up to {ALIGNMENT_MAX} as uint32")
        return int(value)

    def _tensor(self) -> tuple[str, tuple[int, ...], str, int, int]:
        """Return name, shape, type, bytes and offset in the data of the next tensor."""
        name = self._name("tensor", NAME_BYTES_MAX)
        count = self._u32()
        if count > DIMENSIONS_MAX:
            self._refuse(f"tensor {name!r} has {count} dimensions; up to {DIMENSIONS_MAX} are read")
        shape = tuple(self._u64() for _ in range(count))[::-1]
        number = self._u32()
        offset = self._u64()
        try:
            kind = gguf.GGMLQuantizationType(number)
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            self._refuse(f"tensor {name!r} has type {number}, which is unknown")
        elements = math.prod(shape)
        if elements > self._size * block:  # A block has a byte at least.
            self._refuse(f"tensor {name!r} has shape {shape}, more than the file's {self._size} bytes can hold")
        if (shape[-1] if shape else 1) % block:
            self._refuse(f"tensor {name!r} has rows of {shape[-1] if shape else 1}, {kind.name} has blocks of {block}")
        return name, shape, kind.name, elements // block * block_bytes, offset

    def _places(self, found: list[tuple[str, tuple[int, ...], str, int, int]], begin: int, alignment: int) -> Mapping[str, Place]:
        places: dict[str, Place] = {}
        for name, shape, kind, size, offset in found:
            if name in places:
                self._refuse(f"tensor {name!r} stands twice in it")
            if offset % alignment:
                self._refuse(f"tensor {name!r} has offset {offset}, which is no multiple of {alignment}")
            if size and begin + offset + size > self._size:
                self._refuse(f"tensor {name!r} ends at byte {begin + offset + size}, the file at {self._size}; it may have been cut short")
            places[name] = Place(self._path, begin + offset, TensorInfo(name, shape, kind, size))
        last, owner = begin, ""
        for place in sorted(places.values(), key=lambda one: (one.offset, one.info.size_bytes)):
            if place.info.size_bytes and place.offset < last:
                self._refuse(f"tensors {owner!r} and {place.info.name!r} overlap at byte {place.offset}")
            last, owner = max(last, place.offset + place.info.size_bytes), place.info.name
        return places

    def _field(self, key: str) -> Field:
        kind = self._type(key)
        begin = self._at
        item = None
        if kind == FieldType.STRING:
            self._string(key)
        elif kind == FieldType.ARRAY:
            item = self._array(key)
        else:
            self._skip(int(FORMATS[kind][2:]))
        if self._at > HEAD_BYTES_MAX:
            self._refuse(f"its head is longer than {HEAD_BYTES_MAX} bytes at key {key!r:.80}")
        return Field(kind, item, self._data[begin : self._at])

    def _array(self, key: str) -> FieldType:
        item = self._type(key)
        count = self._u64()
        if item == FieldType.ARRAY:
            self._refuse(f"key {key!r:.80} is an array of arrays, which no model has")
        if item != FieldType.STRING:
            if count > NUMBERS_MAX:
                self._refuse(f"key {key!r:.80} has {count} items; up to {NUMBERS_MAX} are read")
            self._skip(count * int(FORMATS[item][2:]))
            return item
        self._strings += count
        if self._strings > STRINGS_MAX or count * _U64.size > self._size - self._at:
            self._refuse(f"key {key!r:.80} has {count} texts; up to {STRINGS_MAX} are read, and the file has {self._size} bytes")
        # The loop over a vocabulary is most of what opening costs, so it is written out.
        at, size, data, unpack = self._at, self._size - _U64.size, self._data, _U64.unpack_from
        for _ in range(count):
            if at > size:
                self._refuse(f"it ends within key {key!r:.80}")
            length = unpack(data, at)[0]
            if length > STRING_BYTES_MAX:
                self._refuse(f"key {key!r:.80} has a text of {length} bytes; up to {STRING_BYTES_MAX} are read")
            at += _U64.size + length
        self._at = at
        self._skip(0)
        return item

    def _type(self, key: str) -> FieldType:
        number = self._u32()
        try:
            return FieldType(number)
        except ValueError:
            self._refuse(f"key {key!r:.80} has type {number}, which is unknown")

    def _name(self, what: str, limit: int) -> str:
        length = self._u64()
        if not 0 < length <= limit:
            self._refuse(f"the name of a {what} has {length} bytes; from 1 to {limit} are read")
        begin = self._at
        self._skip(length)
        raw = self._data[begin : self._at]
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            self._refuse(f"the name of a {what} is not UTF-8: {raw[:80]!r}")
        if "\0" in name:
            self._refuse(f"the name of a {what} has a NUL: {name!r:.80}")
        return name

    def _string(self, key: str) -> None:
        length = self._u64()
        if length > STRING_BYTES_MAX:
            self._refuse(f"key {key!r:.80} has a text of {length} bytes; up to {STRING_BYTES_MAX} are read")
        self._skip(length)

    def _count(self, what: str, limit: int, least: int) -> int:
        count = self._u64()
        if count > limit or count * least > self._size:
            self._refuse(f"it has {count} {what}; up to {limit} are read, and the file has {self._size} bytes")
        return count

    def _u32(self) -> int:
        begin = self._at
        self._skip(_U32.size)
        return int(_U32.unpack_from(self._data, begin)[0])

    def _u64(self) -> int:
        begin = self._at
        self._skip(_U64.size)
        return int(_U64.unpack_from(self._data, begin)[0])

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > self._size:
            self._refuse(f"its head would go to byte {self._at}, the file ends at {self._size}; it may have been cut short")

    def _refuse(self, why: str) -> NoReturn:
        raise Invalid(f"model file {str(self._path)!r} is not GGUF that can be read: {why}")
