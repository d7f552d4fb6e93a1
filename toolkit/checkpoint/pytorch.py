"""PyTorch files, read without running them: archives that `torch.save` wrote since its release 1.6, one or several with an index.

In: a path. Out: a `Checkpoint`. The pickle in an archive is read by `pickle_machine`, which runs nothing; numbers are taken from the file
where they are, and never unpacked, so that no archive is larger than its file.

Source: https://pytorch.org/docs/stable/notes/serialization.html#serialized-file-format-for-torch-save.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from rkfleet.errors import FleetError, Invalid, NotFound
from toolkit.checkpoint.base import Array, TensorInfo
from toolkit.checkpoint.pickle_machine import STORAGES, View, unpickle

__all__ = ["PYTORCH_INDEX", "PytorchCheckpoint"]

PYTORCH_INDEX: Final = "pytorch_model.bin.index.json"
PICKLE_BYTES_MAX: Final = 16 << 20  # Some 200 bytes for a tensor.
DIRECTORY_BYTES_MAX: Final = 1 << 20  # Of the archive: some 70 bytes for a tensor.
DIMENSIONS_MAX: Final = 8
_END: Final = struct.Struct("<4s4HLLH")  # Source: APPNOTE.TXT of zip, 4.3.16.
_LOCAL: Final = struct.Struct("<4s5HLLLHH")  # 4.3.7.


class _Place(msgspec.Struct, frozen=True):
    file: Path
    offset: int
    view: View
    info: TensorInfo


class PytorchCheckpoint:
    """PyTorch files."""

    def __init__(self, path: Path, files: list[Path]) -> None:
        """Read the pickles.

        Args:
            path: What the checkpoint is called.
            files: That it is made of.

        Raises:
            NotFound: A file cannot be read.
            Invalid: A file is no archive of tensors alone, is damaged, or two have a tensor of one name.
        """
        self._path: Final = path
        self._places: Final[dict[str, _Place]] = {}
        for file in files:
            for name, place in _places(file).items():
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
        """Nothing: these files have none."""
        return {}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in the order of the files."""
        return self._tensors

    def read(self, name: str) -> Array:
        """Return a tensor as float32; see `Checkpoint.read`."""
        values = self._values(name)
        if self._tensors[name].dtype == "BF16":  # The upper half of a float32.
            wide = values.astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        with np.errstate(over="ignore"):
            return values.astype(np.float32, copy=False)

    def read_raw(self, name: str) -> NDArray[np.uint8]:
        """Return the bytes of a tensor, those of a view in the order of its indices."""
        return self._values(name).reshape(-1).view(np.uint8)

    def _values(self, name: str) -> NDArray[Any]:
        place = self._places.get(name)
        if place is None:
            raise NotFound(f"model {str(self._path)!r} has no tensor {name!r}")
        view, kind = place.view, np.dtype(STORAGES[place.view.storage.kind][1])
        if not place.info.elements:
            return np.empty(view.shape, kind)
        span = _span(view)
        with place.file.open("rb") as file:
            file.seek(place.offset + view.offset * kind.itemsize)
            raw = np.fromfile(file, kind, span)
        if len(raw) != span:
            raise Invalid(f"model file {str(place.file)!r} ends within tensor {name!r}; it was cut while it was open")
        strides = tuple(stride * kind.itemsize for stride in view.strides)
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(raw, view.shape, strides, writeable=False)).reshape(view.shape)


def _span(view: View) -> int:
    """Return numbers from the first to the last of a view, both counted; there is one at least."""
    return sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True)) + 1


def _places(path: Path) -> dict[str, _Place]:
    try:
        with path.open("rb") as file:
            return _archive(path, file)
    except FleetError as error:
        raise type(error)(f"model file {str(path)!r}: {error.message}") from error
    except OSError as error:
        raise NotFound(f"model file {str(path)!r} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, OverflowError, EOFError) as error:
        raise Invalid(f"model file {str(path)!r} is a damaged archive: {error!s:.100}") from error


def _archive(path: Path, file: BinaryIO) -> dict[str, _Place]:
    if file.read(2) != b"PK":
        raise Invalid(
            "it is no archive but a pickle of old, which is a program; convert it where you trust it: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
        )
    size = file.seek(0, 2)
    file.seek(max(0, size - _END.size - 0xFFFF))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise Invalid("its archive has no directory; it may have been cut short")
    wide = at - 20  # Of large archives the directory is described in a second record: 4.3.14.
    listed = _END.unpack_from(tail, at)[5]
    if wide >= 0 and tail[wide : wide + 4] == b"PK\6\7":
        file.seek(struct.unpack_from("<Q", tail, wide + 8)[0])
        listed = struct.unpack_from("<Q", file.read(56).ljust(56, b"\0"), 40)[0]
    if listed > DIRECTORY_BYTES_MAX:
        raise Invalid(f"its archive has a directory of {listed} bytes; up to {DIRECTORY_BYTES_MAX} are read")
    with zipfile.ZipFile(file) as archive:
        entries = {one.filename: one for one in archive.infolist()}
        if len(entries) != len(archive.infolist()):
            raise Invalid("its archive has an entry twice")
    roots = [name.removesuffix("data.pkl") for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise Invalid(f"its archive has {len(roots)} entries data.pkl, not one; it is not of torch.save")
    offsets = _Offsets(file, size, entries, roots[0])
    if f"{roots[0]}byteorder" in entries and offsets.bytes_of("byteorder", 16) != b"little":
        raise Invalid("its numbers are not little-endian; save it anew on such a machine")
    said = unpickle(offsets.bytes_of("data.pkl", PICKLE_BYTES_MAX))
    if isinstance(said, dict) and isinstance(said.get("state_dict"), dict):
        said = said["state_dict"]
    if not isinstance(said, dict) or not any(isinstance(one, View) for one in said.values()):
        raise Invalid("its pickle is no dictionary of tensors")
    return {name: _place(path, offsets, str(name), view) for name, view in said.items() if isinstance(view, View)}


def _place(path: Path, offsets: _Offsets, name: str, view: View) -> _Place:
    kind, form = STORAGES[view.storage.kind]
    item = np.dtype(form).itemsize
    offset, size = offsets.find(f"data/{view.storage.key}")
    elements = math.prod(view.shape)
    if len(view.shape) > DIMENSIONS_MAX or "\0" in name:
        raise Invalid(f"tensor {name!r:.80} has {len(view.shape)} dimensions, up to {DIMENSIONS_MAX} are read, and no NUL in a name")
    if view.storage.elements * item > size:
        raise Invalid(f"tensor {name!r:.80} is of {view.storage.elements} numbers of {kind}, its entry has {size} bytes")
    if elements > view.storage.elements or (elements and view.offset + _span(view) > view.storage.elements):
        raise Invalid(f"tensor {name!r:.80} of shape {view.shape!s:.80} reaches beyond the {view.storage.elements} numbers that it is of")
    return _Place(path, offset, view, TensorInfo(name, view.shape, kind, elements * item))


class _Offsets:
    """Where entries of an archive begin."""

    def __init__(self, file: BinaryIO, size: int, entries: Mapping[str, zipfile.ZipInfo], root: str) -> None:
        self._file = file
        self._size = size
        self._entries = entries
        self._root = root
        self._found: dict[str, tuple[int, int]] = {}

    def find(self, name: str) -> tuple[int, int]:
        """Return offset and bytes of an entry."""
        if name not in self._found:
            entry = self._entries.get(f"{self._root}{name}")
            if entry is None:
                raise Invalid(f"its archive has no entry {name!r:.80}")
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
                raise Invalid(f"its entry {name!r:.80} is packed or encrypted, which torch.save does not do; it is not unpacked")
            self._file.seek(entry.header_offset)
            head = _LOCAL.unpack(self._file.read(_LOCAL.size))
            begin = entry.header_offset + _LOCAL.size + head[-2] + head[-1]
            if head[0] != b"PK\3\4" or begin + entry.file_size > self._size:
                raise Invalid(f"its entry {name!r:.80} goes beyond the file; it may have been cut short")
            self._found[name] = begin, entry.file_size
        return self._found[name]

    def bytes_of(self, name: str, limit: int) -> bytes:
        """Return an entry."""
        offset, size = self.find(name)
        if size > limit:
            raise Invalid(f"its entry {name!r} has {size} bytes; up to {limit} are read")
        self._file.seek(offset)
        return self._file.read(size)
