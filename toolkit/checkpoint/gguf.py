"""GGUF files: head, metadata and tensors; one file, or the parts that llama.cpp's gguf-split makes.

In: a path. Out: a `Checkpoint`. Tensors of all types that the `gguf` package can decode become float32. Heads are read by `gguf_head`,
values are decoded when they are asked for, and tensors are read, not mapped, so that they do not stay in memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rkfleet.errors import Invalid, NotFound
from toolkit.checkpoint import gguf_blocks
from toolkit.checkpoint.base import Array, TensorInfo
from toolkit.checkpoint.gguf_fields import Field, Fields
from toolkit.checkpoint.gguf_head import Head, Place, read_head

__all__ = ["GgufCheckpoint"]

PARTS_MAX: Final = 1000  # Of one model.
_PART: Final = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")
_SPLIT: Final = "split."  # Keys of parts; those of the first part are left as they are.


class GgufCheckpoint:
    """One GGUF file, or all parts of a split one.

    Attributes:
        fields: Keys with their types and bytes as they are in the (first) file, for `gguf_writer`.
        version: Of the format.
        alignment: Of tensors, in bytes.
    """

    def __init__(self, path: Path) -> None:
        """Read the head, or those of all parts.

        Args:
            path: The file; of a split model any part.

        Raises:
            NotFound: The file or a part of it cannot be read.
            Invalid: It is not GGUF, or its head does not fit it, or parts do not fit each other.
        """
        files = _files(path)
        heads = [read_head(file) for file in files]
        self._path: Final = path
        self.version: Final = heads[0].version
        self.alignment: Final = heads[0].alignment
        self.fields: Final[Mapping[str, Field]] = heads[0].fields
        self._metadata: Final = Fields(self.fields)
        self._places: Final = _joined(files, heads)
        self._tensors: Final = {name: place.info for name, place in self._places.items()}

    @property
    def path(self) -> Path:
        """The file; of a split model the one that was asked for."""
        return self._path

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Key-value pairs, arrays as lists; each is decoded when it is asked for."""
        return self._metadata

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in the order of the file."""
        return self._tensors

    def read(self, name: str) -> Array:
        """Return a tensor as float32; see `Checkpoint.read`."""
        info = self._find(name).info
        return gguf_blocks.decode(self.read_raw(name), info.dtype, f"model file {str(self._path)!r}: tensor {name}").reshape(info.shape)

    def read_raw(self, name: str) -> NDArray[np.uint8]:
        """Return the bytes of a tensor as they are in the file; they are read, not mapped, so that they do not stay in memory."""
        place = self._find(name)
        try:
            with place.file.open("rb") as file:
                file.seek(place.offset)
                raw = np.fromfile(file, np.uint8, place.info.size_bytes)
        except OSError as error:
            raise NotFound(f"model file {str(place.file)!r} cannot be read: {error.strerror}") from error
        if len(raw) != place.info.size_bytes:
            raise Invalid(f"model file {str(place.file)!r} ends within tensor {name!r}; it was cut while it was open")
        return raw

    def _find(self, name: str) -> Place:
        try:
            return self._places[name]
        except KeyError as error:
            raise NotFound(f"model file {str(self._path)!r} has no tensor {name!r}") from error


def _files(path: Path) -> list[Path]:
    """Return all parts of the model that a file is of."""
    found = _PART.fullmatch(path.name)
    if found is None:
        return [path]
    count = int(found[3])
    if not 0 < int(found[2]) <= count <= PARTS_MAX:
        raise Invalid(f"model file {str(path)!r} is called part {int(found[2])} of {count}; from 1 to {PARTS_MAX} are read")
    parts = [path.with_name(f"{found[1]}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise NotFound(f"model {str(path)!r} lacks {missing[0]!r}, {len(missing)} of {count} parts; put them all into one directory")
    return parts


def _joined(files: list[Path], heads: list[Head]) -> Mapping[str, Place]:
    places: dict[str, Place] = {}
    for number, (file, head) in enumerate(zip(files, heads, strict=True)):
        values = Fields(head.fields)
        said = values.get(f"{_SPLIT}no", 0), values.get(f"{_SPLIT}count", 0) or 1
        if said != (number, len(files)):
            raise Invalid(f"model file {str(file)!r} says {_SPLIT}no, {_SPLIT}count {said}, its name {(number, len(files))}")
        for name, place in head.places.items():
            if name in places:
                raise Invalid(f"model file {str(file)!r} has tensor {name!r}, which {places[name].file.name!r} has too")
            places[name] = place
    wanted = Fields(heads[0].fields).get(f"{_SPLIT}tensors.count")
    if wanted is not None and wanted != len(places):
        raise Invalid(f"model file {str(files[0])!r} says {_SPLIT}tensors.count {wanted}, its {len(files)} parts have {len(places)}")
    return places
