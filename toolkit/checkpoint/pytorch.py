"""PyTorch's checkpoints, `pytorch_model.bin`, without running what is in them.

In: a path. Out: a `Checkpoint`. Such a file is a zip archive of raw storages and one pickle, which is a program for a stack machine. The
machine here knows the opcodes that a dictionary of tensors needs and no others, and has no functions: names stand for what this module does
with a storage, sizes and strides. Any other opcode or name ends it.

Source: https://docs.pytorch.org/docs/stable/notes/serialization.html; Python's `pickletools` for the opcodes.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from rkfleet.errors import Invalid, NotFound
from toolkit.checkpoint.base import Array, TensorInfo

__all__ = ["PytorchCheckpoint"]

PICKLE_BYTES_MAX: Final = 8 << 20  # A thousand tensors take 100 kB.
OPCODES_MAX: Final = 60_000  # A tensor takes some 30; so many are read in a tenth of a second.
DIRECTORY_BYTES_MAX: Final = 8 << 20  # Of the archive: a storage takes some 70.
DIMENSIONS_MAX: Final = 8
_TAIL_BYTES: Final = 22 + 0xFFFF  # Where a zip archive's end record may be. Source: APPNOTE.TXT 4.3.16.
_LOCAL_BYTES: Final = 30  # Of a member's own head, before its name. Source: APPNOTE.TXT 4.3.7.

_STORAGES: Final[Mapping[str, tuple[str, str]]] = {  # Name in torch: our name, and numpy's.
    "DoubleStorage": ("F64", "<f8"),
    "FloatStorage": ("F32", "<f4"),
    "HalfStorage": ("F16", "<f2"),
    "BFloat16Storage": ("BF16", "<u2"),
    "LongStorage": ("I64", "<i8"),
    "IntStorage": ("I32", "<i4"),
    "ShortStorage": ("I16", "<i2"),
    "CharStorage": ("I8", "i1"),
    "ByteStorage": ("U8", "u1"),
    "BoolStorage": ("BOOL", "u1"),
}


class _Storage(msgspec.Struct, frozen=True):
    """A run of numbers in the archive."""

    key: str
    dtype: str
    elements: int


class _Tensor(msgspec.Struct, frozen=True):
    """A view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class PytorchCheckpoint:
    """One file, or several that are shards of one model."""

    def __init__(self, path: Path, files: list[Path]) -> None:
        """Read what tensors there are.

        Args:
            path: What the checkpoint is called.
            files: That it is made of.

        Raises:
            NotFound: A file cannot be read.
            Invalid: A file is damaged, or asks for anything but tensors.
        """
        self._path: Final = path
        self._found: Final[dict[str, tuple[Path, int, _Tensor]]] = {}
        for file in files:
            for name, found in _contents(file).items():
                if name in self._found:
                    raise Invalid(f"model file {str(file)!r} has tensor {name!r}, which another one of the model has too")
                self._found[name] = found
        self._tensors: Final = {
            name: TensorInfo(name, one.shape, one.storage.dtype, math.prod(one.shape) * _numpy(one.storage.dtype).itemsize)
            for name, (_, _, one) in self._found.items()
        }

    @property
    def path(self) -> Path:
        """File or directory."""
        return self._path

    @property
    def metadata(self) -> Mapping[str, Any]:
        """None: such files say nothing beside tensors."""
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
        return values.astype(np.float32, order="C")

    def read_raw(self, name: str) -> NDArray[np.uint8]:
        """Return the bytes of a tensor, its rows one after another."""
        return np.ascontiguousarray(self._values(name)).reshape(-1).view(np.uint8)

    def _values(self, name: str) -> NDArray[Any]:
        if name not in self._found:
            raise NotFound(f"model {str(self._path)!r} has no tensor {name!r}")
        file, begin, tensor = self._found[name]
        dtype = _numpy(tensor.storage.dtype)
        if 0 in tensor.shape:
            return np.zeros(tensor.shape, dtype)
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
        with file.open("rb") as opened:
            opened.seek(begin + tensor.offset * dtype.itemsize)
            flat = np.fromfile(opened, dtype, span)
        if len(flat) != span:
            raise Invalid(f"model file {str(file)!r} ends within tensor {name!r}; it was cut while it was open")
        strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)


def _numpy(dtype: str) -> np.dtype[Any]:
    return next(np.dtype(code) for name, code in _STORAGES.values() if name == dtype)


def _contents(path: Path) -> dict[str, tuple[Path, int, _Tensor]]:
    """Return for every tensor of a file where its storage begins, and which part of it is the tensor."""
    where = f"model file {str(path)!r}"
    try:
        _check_directory(path)
        with zipfile.ZipFile(path) as archive:
            members = {one.filename: one for one in archive.infolist()}
            pickles = [name for name in members if name.endswith("data.pkl") and name.count("/") <= 1]
            if len(pickles) != 1 or members[pickles[0]].file_size > PICKLE_BYTES_MAX:
                raise Invalid(f"{where} is no checkpoint: it has {len(pickles)} pickles of tensors, or one above {PICKLE_BYTES_MAX} bytes")
            if members[pickles[0]].compress_type != zipfile.ZIP_STORED:
                raise Invalid(f"{where} has a compressed pickle, which PyTorch does not write")
            program = archive.read(pickles[0])
    except OSError as error:
        raise NotFound(f"{where} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, RuntimeError) as error:
        raise Invalid(
            f"{where} is no zip archive of PyTorch ({error}); files from before PyTorch 1.6 are converted by loading them with "
            "torch.load(FILE, weights_only=True) and saving them again"
        ) from error
    stem = pickles[0].removesuffix("data.pkl")
    named = _run(where, program)
    size = path.stat().st_size
    found = {}
    begins: dict[str, int] = {}
    for name, tensor in named.items():
        key = tensor.storage.key
        member = members.get(f"{stem}data/{key}")
        bytes_ = tensor.storage.elements * _numpy(tensor.storage.dtype).itemsize
        if member is None or member.compress_type != zipfile.ZIP_STORED or member.file_size < bytes_:
            raise Invalid(f"{where}: tensor {name[:200]!r} lies in storage {key!r}, which is not there with its {bytes_} bytes")
        if key not in begins:
            begins[key] = _begin(path, member)
            if begins[key] + bytes_ > size:
                raise Invalid(f"{where} of {size} bytes ends within storage {key!r}")
        last = tensor.offset + sum((count - 1) * stride for count, stride in zip(tensor.shape, tensor.strides, strict=True))
        if 0 not in tensor.shape and last >= tensor.storage.elements:
            raise Invalid(f"{where}: tensor {name[:200]!r} reaches element {last} of a storage of {tensor.storage.elements}")
        found[name] = path, begins[key], tensor
    return found


def _check_directory(path: Path) -> None:
    """Refuse an archive whose list of members is longer than any model's, before that list is read."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < 22:
        raise zipfile.BadZipFile("it has no end record")
    listed = int.from_bytes(tail[at + 12 : at + 16], "little")
    wide = tail.rfind(b"PK\x06\x06", 0, at)
    if listed == 0xFFFFFFFF and wide >= 0:
        listed = int.from_bytes(tail[wide + 40 : wide + 48], "little")
    if listed > DIRECTORY_BYTES_MAX:
        raise zipfile.BadZipFile(f"its directory has {listed} bytes, at most {DIRECTORY_BYTES_MAX} are taken")


def _begin(path: Path, member: zipfile.ZipInfo) -> int:
    """Return where the bytes of a member begin."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        head = file.read(_LOCAL_BYTES)
    if len(head) != _LOCAL_BYTES or not head.startswith(b"PK\x03\x04"):
        raise Invalid(f"model file {str(path)!r} has no member where its directory says that {member.filename[:200]!r} is")
    return member.header_offset + _LOCAL_BYTES + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")


def _run(where: str, program: bytes) -> dict[str, _Tensor]:
    """Return the tensors by name that the pickle makes."""
    try:
        value = _Machine().run(program)
    except (IndexError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise Invalid(f"{where}: its pickle is no dictionary of tensors: {error}; nothing of it was run") from error
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict) or not all(isinstance(one, _Tensor) for one in value.values()):
        raise Invalid(f"{where} holds something else than tensors by name; save the model's state_dict() alone")
    return dict(value)


class _Name(msgspec.Struct, frozen=True):
    """A name that the pickle asked for."""

    text: str


class _Machine:
    """Stack, marks and memo; values are numbers, texts, tuples, lists, dictionaries by text, storages and tensors."""

    def __init__(self) -> None:
        self._stack: Final[list[Any]] = []
        self._marks: Final[list[int]] = []
        self._memo: Final[dict[int, Any]] = {}

    def run(self, program: bytes) -> Any:
        """Return what the program leaves; raises ValueError or LookupError where it does what no dictionary of tensors needs."""
        stack = self._stack
        for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
            if count >= OPCODES_MAX:
                raise ValueError(f"it has more than {OPCODES_MAX} opcodes")
            match opcode.name:
                case "STOP":
                    return stack.pop()
                case "PROTO":
                    pass
                case "MARK":
                    self._marks.append(len(stack))
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                    stack.append(argument)
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE":
                    stack.append(tuple(self._since_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(self._last(int(opcode.name[-1]))))
                case "SETITEM":
                    self._set(self._last(2))
                case "SETITEMS":
                    self._set(self._since_mark())
                case "APPEND":
                    self._append(self._last(1))
                case "APPENDS":
                    self._append(self._since_mark())
                case "GLOBAL":
                    if argument not in _NAMES:
                        raise ValueError(f"it asks for {str(argument)[:200]!r}, which is no part of a tensor")
                    stack.append(_Name(str(argument)))
                case "REDUCE":
                    name, arguments = self._last(2)
                    stack.append(_made(name, arguments))
                case "BUILD":
                    stack.pop()  # PyTorch's versions of modules, as attributes of the dictionary.
                    if not isinstance(stack[-1], dict):
                        raise ValueError("it sets attributes of what is no dictionary")
                case "BINPERSID":
                    stack.append(_storage(stack.pop()))
                case "BINPUT" | "LONG_BINPUT":
                    self._memo[argument or 0] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(self._memo[argument or 0])
                case _:
                    raise ValueError(f"it uses {opcode.name}")
        raise ValueError("it has no end")

    def _last(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("its stack is empty")
        found = self._stack[-count:]
        del self._stack[-count:]
        return found

    def _since_mark(self) -> list[Any]:
        at = self._marks.pop()
        found = self._stack[at:]
        del self._stack[at:]
        return found

    def _set(self, pairs: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(pairs) % 2:
            raise ValueError("it sets items of what is no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str):
                raise ValueError("a key of a dictionary is no text")
            target[key] = value

    def _append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise ValueError("it appends to what is no list")
        target.extend(values)


def _storage(pid: Any) -> _Storage:
    if not isinstance(pid, tuple) or len(pid) != 5:
        raise ValueError("a storage is not described by five values")
    kind, name, key, _place, elements = pid
    if kind != "storage" or not isinstance(name, _Name) or not isinstance(key, str) or not _whole(elements):
        raise ValueError("a storage is not described by its type, key and size")
    return _Storage(key, _STORAGES[name.text.removeprefix("torch ")][0], elements)


def _made(name: Any, arguments: Any) -> Any:
    """Return what a name makes of arguments."""
    if not isinstance(name, _Name) or not isinstance(arguments, tuple):
        raise ValueError("it calls what is no name")
    match name.text:
        case "collections OrderedDict" if not arguments:
            return {}
        case "torch._utils _rebuild_tensor_v2" if len(arguments) >= 4:
            return _tensor(*arguments[:4])
        case "torch._utils _rebuild_parameter" if arguments and isinstance(arguments[0], _Tensor):
            return arguments[0]
        case _:
            raise ValueError(f"it calls {name.text} with {len(arguments)} arguments")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
    if not isinstance(storage, _Storage) or not _whole(offset) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError("a tensor is not made of a storage, an offset, sizes and strides")
    if len(shape) != len(strides) or len(shape) > DIMENSIONS_MAX or not all(_whole(one) for one in (*shape, *strides)):
        raise ValueError(f"a tensor has {len(shape)} sizes and {len(strides)} strides, or numbers that are none")
    if math.prod(shape) > storage.elements:  # A tensor that repeats its storage would be larger in memory than in the file.
        raise ValueError(f"a tensor of sizes {shape} has a storage of {storage.elements} numbers")
    return _Tensor(storage, offset, shape, strides)


_NAMES: Final = frozenset(
    {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
    | {f"torch {name}" for name in _STORAGES}
)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
