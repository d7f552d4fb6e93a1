"""A pickle as data: the few instructions that a saved dictionary of tensors is made of, and nothing that could run.

In: the bytes of `data.pkl`. Out: plain values, with `Storage` and `View` where torch would have made tensors. The machine looks no name up
anywhere: a name that is not in its table is refused when it is met, before any other thing is done with it. Every instruction makes at most
one object, instructions are counted, and lengths are those of the bytes that are there, so memory is bounded by the pickle's own size.

Source of the instructions: CPython's Lib/pickletools.py. Source of the names: torch/serialization.py and torch/_utils.py.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from rkfleet.errors import Invalid

__all__ = ["STORAGES", "Storage", "View", "unpickle"]

INSTRUCTIONS_MAX: Final = 1_000_000  # A tensor takes some 40; the largest models have some ten thousand.
STORAGES: Final[Mapping[str, tuple[str, str]]] = {
    "FloatStorage": ("F32", "<f4"),
    "HalfStorage": ("F16", "<f2"),
    "BFloat16Storage": ("BF16", "<u2"),
    "DoubleStorage": ("F64", "<f8"),
    "LongStorage": ("I64", "<i8"),
    "IntStorage": ("I32", "<i4"),
    "ShortStorage": ("I16", "<i2"),
    "CharStorage": ("I8", "i1"),
    "ByteStorage": ("U8", "u1"),
    "BoolStorage": ("BOOL", "u1"),
}
_CALLS: Final = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "collections OrderedDict")
_MARK: Final = object()


class _Name(msgspec.Struct, frozen=True):
    """A name of the table; it stands for nothing."""

    name: str


class Storage(msgspec.Struct, frozen=True):
    """Numbers in the archive that tensors are views of.

    Attributes:
        kind: Name of the class in torch, a key of STORAGES.
        key: Entry of the archive.
        elements: Numbers in it.
    """

    kind: str
    key: str
    elements: int


class View(msgspec.Struct, frozen=True):
    """A tensor: every number's place in a storage, in numbers, is offset + sum of index times stride."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def unpickle(raw: bytes) -> Any:
    """Return what a pickle describes.

    Raises:
        Invalid: It has a name or an instruction that a dictionary of tensors has not, or it is damaged.
    """
    try:
        return _Machine(raw).run()
    except (IndexError, struct.error, UnicodeError, TypeError, ValueError, KeyError) as error:
        raise Invalid(f"its pickle is damaged: {type(error).__name__} {error!s:.80}") from error


class _Machine:
    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(INSTRUCTIONS_MAX):
            code = self._take(1)
            if code == b".":
                return self._stack.pop()
            self._step(code)
        raise Invalid(f"its pickle has more than {INSTRUCTIONS_MAX} instructions")

    def _take(self, count: int) -> bytes:
        begin = self._at
        self._at += count
        if self._at > len(self._raw):
            raise ValueError(f"it ends at byte {len(self._raw)}, within an instruction")
        return self._raw[begin : self._at]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = self._raw.index(b"\n", self._at)
        return self._take(end + 1 - self._at)[:-1].decode()

    def _marked(self) -> list[Any]:
        """Return what was put since the last mark."""
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("it has no mark")
        items = self._stack[at + 1 :]
        del self._stack[at:]
        return items

    def _step(self, code: bytes) -> None:
        put = self._stack.append
        match code:
            case b"\x80":
                self._take(1)
            case b"(":
                put(_MARK)
            case b"}":
                put({})
            case b"]":
                put([])
            case b")":
                put(())
            case b"N":
                put(None)
            case b"\x88" | b"\x89":
                put(code == b"\x88")
            case b"J":
                put(self._number("<i"))
            case b"K":
                put(self._number("<B"))
            case b"M":
                put(self._number("<H"))
            case b"G":
                put(self._number(">d"))
            case b"\x8a":
                put(int.from_bytes(self._take(self._number("<B")), "little", signed=True))
            case b"X":
                put(self._take(self._number("<I")).decode())
            case b"\x85" | b"\x86" | b"\x87":
                count = code[0] - 0x84
                if len(self._stack) < count:
                    raise ValueError("its stack is empty")
                taken = tuple(self._stack[-count:])
                del self._stack[-count:]
                put(taken)
            case b"t":
                put(tuple(self._marked()))
            case b"q" | b"r":
                self._memo[self._number("<B" if code == b"q" else "<I")] = self._stack[-1]
            case b"h" | b"j":
                put(self._memo[self._number("<B" if code == b"h" else "<I")])
            case b"c":
                put(self._name(f"{self._line()} {self._line()}"))
            case b"Q":
                put(_storage(self._stack.pop()))
            case b"R":
                arguments = self._stack.pop()
                put(_called(self._stack.pop(), arguments))
            case b"a" | b"e":
                items = [self._stack.pop()] if code == b"a" else self._marked()
                self._top(list).extend(items)
            case b"s" | b"u":
                items = self._marked() if code == b"u" else [self._stack.pop(-2), self._stack.pop()]
                self._set(items)
            case b"b":  # State of an OrderedDict: versions of modules.
                self._stack.pop()
                self._top(dict)
            case _:
                raise Invalid(f"its pickle has instruction {code!r} at byte {self._at - 1}, which no dictionary of tensors has")

    def _top(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise ValueError(f"a {kind.__name__} is missing")
        return self._stack[-1]

    def _set(self, items: list[Any]) -> None:
        target = self._top(dict)
        if len(items) % 2:
            raise ValueError("a key has no value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise ValueError(f"a key is a {type(key).__name__}")
            if key in target:
                raise Invalid(f"its pickle has {key!r:.80} twice")
            target[key] = value

    def _name(self, name: str) -> _Name:
        module, _, word = name.partition(" ")
        if name not in _CALLS and not (module == "torch" and word in STORAGES):
            raise Invalid(
                f"its pickle names {name.replace(' ', '.')!r:.100}, which is no part of a tensor; it is not run. "
                "Convert a file that you trust: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
            )
        return _Name(name)


def _storage(identity: Any) -> Storage:
    word, kind, key, _, elements = identity
    if word != "storage" or not isinstance(kind, _Name) or kind.name in _CALLS or not isinstance(key, str) or not _count(elements):
        raise ValueError("a storage is described wrongly")
    return Storage(kind.name.removeprefix("torch "), key, elements)


def _called(name: Any, arguments: Any) -> Any:
    """Return what torch would have made, as data."""
    if not isinstance(name, _Name) or name.name not in _CALLS or not isinstance(arguments, tuple):
        raise ValueError("something is called that is no function")
    if name.name == "collections OrderedDict":
        if arguments:
            raise ValueError("an OrderedDict is made of something")
        return {}
    if name.name == "torch._utils _rebuild_parameter":
        if not isinstance(arguments[0], View):
            raise ValueError("a parameter is no tensor")
        return arguments[0]
    storage, offset, shape, strides = arguments[:4]
    if (
        not isinstance(storage, Storage)
        or not _count(offset)
        or not isinstance(shape, tuple)
        or not isinstance(strides, tuple)
        or len(shape) != len(strides)
        or not all(_count(one) for one in (*shape, *strides))
    ):
        raise ValueError("a tensor is described wrongly")
    return View(storage, offset, shape, strides)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
