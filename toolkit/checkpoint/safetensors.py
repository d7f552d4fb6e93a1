"""Safetensors files: one, or several with an index.

In: a path. Out: a `Checkpoint`. The head is checked against the file before anything is taken from it: offsets, sizes and shapes that do
not fit each other are refused, and shards are those of `shard_index`.

Source: https://huggingface.co/docs/safetensors/index#format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from rkfleet.errors import Invalid, NotFound
from toolkit.checkpoint.base import Array, TensorInfo
from toolkit.checkpoint.shard_index import check_index, read_index, shards

__all__ = ["INDEX", "SafetensorsCheckpoint", "open_index"]

INDEX: Final = "model.safetensors.index.json"
HEAD_BYTES_MAX: Final = 8 << 20  # A head has some 100 bytes for a tensor; the largest models in use have ten thousand.
DIMENSIONS_MAX: Final = 8
_LENGTH_BYTES: Final = 8

_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
}


def _eight_bits() -> Mapping[str, Array]:
    """Return what each byte of the types of eight bits is. Source: https://arxiv.org/abs/2209.05433, table 1."""
    codes = np.arange(256)
    sign = np.where(codes < 128, 1.0, -1.0)
    exponent, fraction = codes >> 3 & 15, codes & 7
    narrow = sign * np.where(exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent - 7))
    narrow[codes & 127 == 127] = np.nan
    wide = (codes << 8).astype("<u2").view("<f2")  # The upper half of a float16.
    return {"F8_E4M3": narrow.astype(np.float32), "F8_E5M2": wide.astype(np.float32)}


_TABLES: Final = _eight_bits()


class _Place(msgspec.Struct, frozen=True):
    file: Path
    offset: int
    info: TensorInfo


class SafetensorsCheckpoint:
    """Safetensors files."""

    def __init__(self, path: Path, files: list[Path]) -> None:
        """Read the heads.

        Args:
            path: What the checkpoint is called.
            files: That it is made of.

        Raises:
            NotFound: A file cannot be read.
            Invalid: A file is not what its head says, or two have a tensor of one name.
        """
        self._path: Final = path
        self._places: Final[dict[str, _Place]] = {}
        self._metadata: Final[dict[str, Any]] = {}
        for file in files:
            metadata, places = _head(file)
            self._metadata.update(metadata)
            for name, place in places.items():
                if name in self._places:
                    raise Invalid(f"model file {str(file)!r} has tensor {name!r}, which another one of the model has too")
                self._places[name] = place
        self._tensors: Final = {name: place.info for name, place in self._places.items()}

    @property
    def path(self) -> Path:
        """File or directory."""
        return self._path

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The `__metadata__` of all files."""
        return self._metadata

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in the order of the files."""
        return self._tensors

    def read(self, name: str) -> Array:
        """Return a tensor as float32; see `Checkpoint.read`."""
        raw = self.read_raw(name)
        info = self._tensors[name]
        if info.dtype == "BF16":  # The upper half of a float32.
            wide = raw.view("<u2").astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32).reshape(info.shape)
        if info.dtype in _TABLES:
            return _TABLES[info.dtype][raw].reshape(info.shape)
        values: Array = raw.view(_DTYPES[info.dtype]).astype(np.float32, copy=False).reshape(info.shape)
        return values

    def read_raw(self, name: str) -> NDArray[np.uint8]:
        """Return the bytes of a tensor; they are read, not mapped, so that what was read does not stay in memory."""
        place = self._places.get(name)
        if place is None:
            raise NotFound(f"model {str(self._path)!r} has no tensor {name!r}")
        with _opened(place.file) as file:
            file.seek(place.offset)
            raw = np.fromfile(file, np.uint8, place.info.size_bytes)
        if len(raw) != place.info.size_bytes:
            raise Invalid(f"model file {str(place.file)!r} ends within tensor {name!r}; it was cut while it was open")
        return raw


def open_index(index: Path) -> SafetensorsCheckpoint:
    """Open the files that an index names.

    Raises:
        NotFound: A file is missing.
        Invalid: The index names a file outside of its directory, or tensors and files do not fit it.
    """
    named = read_index(index, ".safetensors")
    checkpoint = SafetensorsCheckpoint(index.parent, shards(index, named))
    check_index(index, named, checkpoint.tensors)
    return checkpoint


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise NotFound(f"model file {str(path)!r} cannot be read: {error.strerror}") from error


def _head(path: Path) -> tuple[dict[str, Any], dict[str, _Place]]:
    """Return `__metadata__` and where tensors are."""
    with _opened(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, HEAD_BYTES_MAX):
            raise Invalid(f"model file {str(path)!r} of {size} bytes is no safetensors file: its head would have {length}")
        text = file.read(length)
    try:
        head = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"model file {str(path)!r}: its head is no JSON: {error}") from error
    if not isinstance(head, dict):
        raise Invalid(f"model file {str(path)!r}: its head is no JSON object")
    metadata = head.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise Invalid(f"model file {str(path)!r}: __metadata__ is no JSON object")
    begin = _LENGTH_BYTES + length
    places = {name: _place(path, name, entry, begin, size) for name, entry in head.items()}
    at = begin
    for place in sorted(places.values(), key=lambda one: (one.offset, one.info.size_bytes)):
        if place.offset != at:
            raise Invalid(
                f"model file {str(path)!r}: tensor {place.info.name!r} begins at byte {place.offset}, the one before it ends at {at}"
            )
        at += place.info.size_bytes
    if at != size:
        raise Invalid(f"model file {str(path)!r} has {size} bytes, its tensors end at {at}")
    return metadata, places


def _place(path: Path, name: str, entry: Any, begin: int, size: int) -> _Place:
    where = f"model file {str(path)!r}: tensor {name[:200]!r}"
    if not isinstance(entry, dict):
        raise Invalid(f"{where} is described by {entry!r:.80}, no object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise Invalid(f"{where} has dtype {dtype!r:.80}; known are {', '.join(_DTYPES)}")
    if not isinstance(shape, list) or len(shape) > DIMENSIONS_MAX or not all(_count(one) for one in shape):
        raise Invalid(f"{where} has shape {shape!r:.80}, not up to {DIMENSIONS_MAX} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_count(one) for one in offsets):
        raise Invalid(f"{where} has data_offsets {offsets!r:.80}, not two")
    first, last = offsets
    if not first <= last <= size - begin:
        raise Invalid(f"{where} has data_offsets {offsets!r:.80}, the file {size - begin} bytes of data")
    if math.prod(shape) * _DTYPES[dtype].itemsize != last - first:
        raise Invalid(f"{where} of {dtype} and shape {shape!r:.80} cannot have {last - first} bytes")
    return _Place(path, begin + first, TensorInfo(name, tuple(shape), dtype, last - first))


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in it")
    return found
