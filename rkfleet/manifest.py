"""From manifest files to objects, with the line of every field and every problem of every document.

In: YAML or JSON text from people, which is untrusted. Out: `Document`s, or one `Invalid` whose causes are lines like
`manifests/x.yaml:12: spec.replicas: "three": must be an integer 0..1000`. The command line calls it before its first request, so that
nothing is written when anything is wrong. Apart from `validation.py` because that one knows objects and no text.

Text is read as a stream of parse events and built into values here, without recursion: nesting cannot exhaust a stack and an alias
cannot multiply, whatever the YAML library does. Refused are aliases, nesting over `DEPTH_MAX`, more than `NODES_MAX` nodes, the same key
twice, tags other than those of JSON's types, and anything that JSON has no word for. Plain scalars mean what they mean to kubectl; times
stay text.

Source of the scalar rules: sigs.k8s.io/yaml, `goyaml.v2/resolve.go` (YAML 1.1 booleans, integers with base prefixes).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import IO, Any, Final

import msgspec
import yaml

from rkfleet.errors import BadRequest, Cause, Invalid, NotFound
from rkfleet.kinds.base import Object, Registry
from rkfleet.validation import KindValidator, Path, format_path, metadata_faults, parse_path

__all__ = ["Document", "Source", "Values", "load", "parse", "read"]

DEPTH_MAX: Final = 64  # Our deepest kind has about 12 levels.
NODES_MAX: Final = 200_000  # An object of 1 MiB has some 50,000.
SOURCE_BYTES_MAX: Final = 16 << 20  # Several full objects in one file; a larger file holds data, not declarations.
SUFFIXES: Final = (".yaml", ".yml", ".json")

_TRUE: Final = frozenset(["y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"])
_FALSE: Final = frozenset(["n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"])
_NULL: Final = frozenset(("", "~", "null", "Null", "NULL"))
_INTEGER: Final = re.compile(r"[-+]?(0b[01]+|0o?[0-7]+|0x[0-9a-fA-F]+|0|[1-9][0-9]*)")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WHOLE_MAX: Final = 2.0**53  # Up to here a float holds every integer, and `3.0` is the integer 3.
_DIGITS_MAX: Final = 4000  # Python refuses to read longer integers; nothing here has more than 19.
_TAG: Final = "tag:yaml.org,2002:"
_SURROGATES: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")


class Source(msgspec.Struct, frozen=True):
    """One text to read: the name that messages show, and its bytes."""

    name: str
    text: bytes


class Document(msgspec.Struct, frozen=True):
    """One object of a manifest, as it was written.

    Attributes:
        path: Name of the file, or `-` for standard input.
        line: Line where the document begins, from 1.
        obj: The object, without defaults.
        kind: Its kind.
        lines: Line of every field, by its path as text (`spec.variants[0].dtype`).
    """

    path: str
    line: int
    obj: dict[str, Any]
    kind: type[Object]
    lines: Mapping[str, int]

    def line_of(self, field: str) -> int:
        """Return the line of a field; of a field that was not written, the line of what should hold it."""
        return _line_of(self.lines, field, self.line)

    def show(self, cause: Cause) -> str:
        """Return a cause, also one that a server found, as `file:line: field: message`."""
        return _shown(self.path, self.line_of(cause.field), cause)


class _Written(msgspec.Struct, frozen=True):
    """A document before its kind is known."""

    line: int
    value: Any
    lines: dict[str, int]


def read(paths: Iterable[str], stdin: IO[bytes]) -> tuple[Source, ...]:
    """Read files, the manifests directly inside folders (sorted by name), and standard input for `-`.

    Raises:
        NotFound: A path does not exist, or a folder holds no manifest.
        BadRequest: A file cannot be read or is larger than SOURCE_BYTES_MAX.
    """
    return tuple(source for path in paths for source in _read(path, stdin))


def load(sources: Iterable[Source], registry: Registry) -> tuple[Document, ...]:
    """Return the documents of all sources in their order; the items of a `List` are documents of their own.

    Raises:
        Invalid: Something is wrong; the message has one line for each cause of each document, and so have `causes`.
    """
    validators: dict[type[Object], KindValidator] = {}
    documents: list[Document] = []
    found: list[tuple[str, int, Cause]] = []
    for source in sources:
        reader = _Reader(source.text)
        problems: list[tuple[int, Cause]] = []
        for written in _without_lists(reader.documents()):
            kind = _kind(written, registry)
            if isinstance(kind, Cause):
                problems.append((_line_of(written.lines, kind.field, written.line), kind))
                continue
            document = Document(path=source.name, line=written.line, obj=written.value, kind=kind, lines=written.lines)
            documents.append(document)
            validator = validators.get(kind) or KindValidator(kind)
            validators[kind] = validator
            problems += ((document.line_of(cause.field), cause) for cause in _faults(validator, document))
        problems += reader.problems
        found += ((source.name, line, cause) for line, cause in sorted(problems, key=lambda problem: problem[0]))
    if found:
        raise Invalid("\n".join(_shown(*one) for one in found), tuple(cause for _, _, cause in found))
    return tuple(documents)


class Values(msgspec.Struct, frozen=True):
    """One document that is no object of a kind: a program's own file, read with the same care.

    Attributes:
        value: What was written; None for an empty text.
        lines: Line of every field, by its path as text.
    """

    value: Any
    lines: Mapping[str, int]

    def line_of(self, field: str) -> int:
        """Return the line of a field; of a field that was not written, the line of what should hold it."""
        return _line_of(self.lines, field, 1)


def parse(source: Source) -> Values:
    """Return the one document of a source, whatever it says.

    Raises:
        Invalid: It is not one document of YAML or JSON as this module takes it.
    """
    reader = _Reader(source.text)
    documents = list(reader.documents())
    if len(documents) > 1:
        reader.problems.append((documents[1].line, Cause(field="", message="one document is allowed, here begins a second")))
    if reader.problems:
        raise Invalid("\n".join(_shown(source.name, *one) for one in reader.problems), tuple(cause for _, cause in reader.problems))
    return Values(documents[0].value, documents[0].lines) if documents else Values(None, {})


def _read(path: str, stdin: IO[bytes]) -> Iterator[Source]:
    if path == "-":
        yield _limited("-", stdin.read(SOURCE_BYTES_MAX + 1))
        return
    place = FilePath(path)
    files = sorted(file for file in place.iterdir() if file.suffix in SUFFIXES and file.is_file()) if place.is_dir() else [place]
    if not files:
        raise NotFound(f"{path}: the folder holds no {', '.join(SUFFIXES)} file")
    for file in files:
        try:
            with file.open("rb") as opened:
                yield _limited(str(file), opened.read(SOURCE_BYTES_MAX + 1))
        except FileNotFoundError as error:
            raise NotFound(f"{file}: no such file") from error
        except OSError as error:
            raise BadRequest(f"{file}: {error.strerror}") from error


def _limited(name: str, text: bytes) -> Source:
    if len(text) > SOURCE_BYTES_MAX:
        raise BadRequest(f"{name}: is larger than {SOURCE_BYTES_MAX} bytes, the most that one manifest file may have")
    return Source(name=name, text=text)


def _without_lists(documents: Iterable[_Written]) -> Iterator[_Written]:
    """Replace a `kind: List` by its items, as kubectl does."""
    for document in documents:
        value = document.value
        if not (isinstance(value, dict) and value.get("kind") == "List" and isinstance(value.get("items"), list)):
            yield document
            continue
        for index, item in enumerate(value["items"]):
            prefix = f"items[{index}]"
            inner = {
                field[len(prefix) :].removeprefix("."): line for field, line in document.lines.items() if field.startswith(f"{prefix}.")
            }
            yield _Written(line=document.lines[prefix], value=item, lines=inner)


def _kind(written: _Written, registry: Registry) -> type[Object] | Cause:
    value = written.value
    if not isinstance(value, dict):
        return Cause(field="", message="a document must be a mapping with apiVersion, kind and metadata", reason="FieldValueTypeInvalid")
    for field in ("apiVersion", "kind"):
        if not isinstance(value.get(field), str) or not value[field]:
            return Cause(field=field, message="must be set", reason="FieldValueRequired")
    found = registry.find_kind(value["apiVersion"], value["kind"])
    if found is not None:
        return found
    known = ", ".join(f"{kind.resource.kind} ({kind.resource.api_version})" for kind in registry)
    message = f"no kind {value['kind']!r} in {value['apiVersion']!r}; there are {known}"
    return Cause(field="kind", message=message, reason="FieldValueNotSupported")


def _faults(validator: KindValidator, document: Document) -> list[Cause]:
    settled = validator.settle(document.obj)
    metadata = settled.obj.get("metadata")
    causes = [Cause(field=field, message="unknown field", reason="FieldValueForbidden") for field in settled.unknown]
    causes += settled.causes
    causes += metadata_faults(document.kind, metadata if isinstance(metadata, dict) else {})
    causes += validator.faults(settled.obj)
    return causes


def _line_of(lines: Mapping[str, int], field: str, document_line: int) -> int:
    path = parse_path(field)
    while path:
        line = lines.get(format_path(path))
        if line is not None:
            return line
        path = path[:-1]
    return document_line


def _shown(path: str, line: int, cause: Cause) -> str:
    return f"{path}:{line}: {cause.field}: {cause.message}" if cause.field else f"{path}:{line}: {cause.message}"


class _Container:
    """A mapping or list that is being built; `key` and `key_line` are those of the mapping's value that comes next."""

    __slots__ = ("key", "key_line", "path", "value")

    def __init__(self, value: dict[str, Any] | list[Any], path: Path) -> None:
        self.value = value
        self.path = path
        self.key: str | None = None
        self.key_line = 0


class _Refused(Exception):
    """The rest of the text cannot be read."""

    def __init__(self, line: int, field: str, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.field = field


class _Reader:
    """Builds the documents of one text from its parse events; `problems` holds what was wrong, with lines."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self.problems: list[tuple[int, Cause]] = []
        self._nodes = 0
        self._stack: list[_Container] = []
        self._lines: dict[str, int] = {}
        self._root: Any = None

    def documents(self) -> Iterator[_Written]:
        """Yield every document that is not empty, up to the first place where reading is impossible."""
        start = 1
        try:
            for event in yaml.parse(_without_surrogates(self._text), Loader=yaml.CSafeLoader):
                if isinstance(event, yaml.DocumentStartEvent):
                    start, self._root, self._lines, self._stack = 0, None, {}, []
                elif isinstance(event, yaml.DocumentEndEvent):
                    if self._root is not None:
                        yield _Written(line=start, value=self._root, lines=self._lines)
                elif isinstance(event, yaml.NodeEvent):
                    start = start or _line(event)
                    self._node(event)
                elif isinstance(event, yaml.CollectionEndEvent):
                    self._stack.pop()
        except _Refused as refused:
            self.problems.append((refused.line, Cause(field=refused.field, message=str(refused))))
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line + 1 if mark is not None else 1
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            self.problems.append((line, Cause(field="", message=f"is not YAML: {problem}")))

    def _node(self, event: yaml.NodeEvent) -> None:
        line = _line(event)
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise _Refused(line, "", f"a manifest must have at most {NODES_MAX} values")
        holder = self._stack[-1] if self._stack else None
        if holder is not None and isinstance(holder.value, dict) and holder.key is None:
            self._key(holder, event, line)
            return
        path, line = self._place(holder, line)
        if isinstance(event, yaml.AliasEvent):
            raise _Refused(line, format_path(path), f"*{event.anchor}: aliases are not allowed, write the value out")
        value, container = self._value(event, path, line)
        self._put(holder, value, path, line)
        if container:
            if len(self._stack) >= DEPTH_MAX:
                raise _Refused(line, format_path(path), f"is nested deeper than {DEPTH_MAX} levels")
            self._stack.append(_Container(value, path))

    def _key(self, holder: _Container, event: yaml.NodeEvent, line: int) -> None:
        if not isinstance(event, yaml.ScalarEvent):
            raise _Refused(line, format_path(holder.path), "a key must be text")
        holder.key, holder.key_line = event.value, line

    def _place(self, holder: _Container | None, line: int) -> tuple[Path, int]:
        """Return where the next value stands and the line to show for it: that of its key, where it has one."""
        if holder is None:
            return (), line
        if isinstance(holder.value, dict):
            assert holder.key is not None
            return (*holder.path, holder.key), holder.key_line
        return (*holder.path, len(holder.value)), line

    def _put(self, holder: _Container | None, value: Any, path: Path, line: int) -> None:
        field = format_path(path)
        if holder is None:
            self._root = value
        elif isinstance(holder.value, list):
            holder.value.append(value)
        else:
            assert holder.key is not None
            if holder.key in holder.value:
                message = f"the same key is already on line {self._lines[field]}"
                self.problems.append((line, Cause(field=field, message=message, reason="FieldValueDuplicate")))
            holder.value[holder.key] = value
            holder.key = None
        self._lines[field] = line

    def _value(self, event: yaml.NodeEvent, path: Path, line: int) -> tuple[Any, bool]:
        """Return the value that an event begins, and whether it is a collection to be filled."""
        tag = (getattr(event, "tag", None) or "").removeprefix(_TAG)
        if isinstance(event, yaml.MappingStartEvent) and tag in ("", "!", "map"):
            return {}, True
        if isinstance(event, yaml.SequenceStartEvent) and tag in ("", "!", "seq"):
            return [], True
        if isinstance(event, yaml.ScalarEvent) and tag in ("", "!", "str", "int", "float", "bool", "null"):
            plain = event.implicit[0] or tag in ("int", "float", "bool", "null")
            return (self._scalar(event.value, path, line) if plain else event.value), False
        raise _Refused(line, format_path(path), f"tag !{tag.removeprefix('!')} is not allowed, only JSON's types are")

    def _scalar(self, text: str, path: Path, line: int) -> Any:
        """Return what a plain scalar means."""
        if text in _NULL:
            return None
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        plain = text.replace("_", "") if text[0] in "+-.0123456789" else text
        if _INTEGER.fullmatch(plain) and len(plain) <= _DIGITS_MAX:
            return _integer(plain)
        if _NOT_FINITE.fullmatch(plain) or (_FLOAT.fullmatch(plain) and math.isinf(float(plain))):
            self.problems.append((line, Cause(field=format_path(path), message=f"{text}: must be a finite number")))
            return 0
        if not _FLOAT.fullmatch(plain):
            return text
        number = float(plain)
        return int(number) if number.is_integer() and abs(number) <= _WHOLE_MAX else number


def _without_surrogates(text: bytes) -> bytes:
    """Return JSON text with escaped surrogate pairs written out: JSON has them for characters past U+FFFF, YAML has not."""
    if text.lstrip()[:1] not in (b"{", b"["):
        return text

    def character(pair: re.Match[bytes]) -> bytes:
        high, low = int(pair[2], 16), int(pair[3], 16)
        return pair[1] + chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)).encode()

    return _SURROGATES.sub(character, text)


def _line(event: yaml.NodeEvent) -> int:
    assert event.start_mark is not None, "the parser marks every event"
    return event.start_mark.line + 1


def _integer(text: str) -> int:
    sign, digits = (-1, text[1:]) if text[0] == "-" else (1, text.removeprefix("+"))
    if len(digits) > 1 and digits[0] == "0" and digits[1].isdecimal():
        return sign * int(digits, 8)
    return sign * int(digits, 0)
