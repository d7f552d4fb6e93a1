"""Fields of an object as a set of paths, and the form in which `managedFields` writes such a set.

In: an object and its `Shape`, or `fieldsV1`. Out: `Paths`. A path is a tuple of elements in the words of FieldsV1: `f:name` for a field,
`k:{"name":"a"}` for an item of a list that is merged by key, `v:"x"` for a member of a set.

Two sets are made of an object. `flat` has everything that can come and go: each value that is one value to a manager (a scalar, something
atomic), each item of a list, and each map and list that holds others; `difference` is what a write changed of it. `owned` is what a manager
who applies the object owns: a map or list that the schema names only comes with what is in it, so it is not in there.

Source: `sigs.k8s.io/structured-merge-diff/v4/fieldpath` (serialize-pe.go for the elements, path.go for the text in messages),
`typed/{compare,tofieldset}.go` for which paths are in a set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from controller.api.apply.shape import ATOMIC, Shape
from rkfleet.errors import BadRequest

__all__ = ["Difference", "Path", "Paths", "difference", "element_of", "flat", "from_fields", "owned", "text_of", "to_fields"]

Json = dict[str, Any]
Path: TypeAlias = tuple[str, ...]
Paths: TypeAlias = frozenset[Path]

DEPTH_MAX: Final = 64  # As deep as a body may be.
INDEX_DIGITS_MAX: Final = 9  # Of an index of a list: more items than any object has.

_METADATA: Final[Path] = ("f:metadata",)
"""As kube-apiserver has it, no field of anybody; and what is empty in there is not stored."""
_ABSENT: Final = object()
_MAP: Final = object()
_LIST: Final = object()
_ITEM: Final = object()
"""Values of what holds others: two maps at one path are the same map, whatever is in them."""


def flat(value: Any, shape: Shape) -> dict[Path, Any]:
    """Return the value at each path of `value`.

    Args:
        value: An object, decoded; without nulls.
        shape: Its shape.
    """
    return _found(value, shape, holders=True, strict=False)


def owned(config: Any, shape: Shape) -> Paths:
    """Return what a manager owns who applies `config`, which has no nulls.

    Raises:
        BadRequest: A list has two items with one key, or an item without its key.
    """
    return frozenset(_found(config, shape, holders=False, strict=True))


def _found(value: Any, shape: Shape, *, holders: bool, strict: bool) -> dict[Path, Any]:
    found: dict[Path, Any] = {}
    _flatten(value, shape, (), found, named=not holders, strict=strict)
    found.pop((), None)
    found.pop(_METADATA, None)
    metadata = value.get("metadata") if isinstance(value, dict) else None
    for name, below in metadata.items() if isinstance(metadata, dict) else ():
        if not below:
            found.pop((*_METADATA, f"f:{name}"), None)
    return found


def _flatten(value: Any, shape: Shape, path: Path, found: dict[Path, Any], *, named: bool, strict: bool) -> None:
    """Collect the paths of `value`; a map or list that the schema names (`named`) and that holds something has no path of its own."""
    if isinstance(value, dict) and shape.merge == "fields":
        if not named or not value:
            found[path] = _MAP
        known, hidden = shape.fields, shape.hidden
        for name, below in value.items():
            if name in hidden:
                continue
            at = (*path, f"f:{name}")
            under = known.get(name)
            if under is None:
                _flatten(below, shape.below(name), at, found, named=False, strict=strict)
            elif under.merge == "value":
                found[at] = below
            else:
                _flatten(below, under, at, found, named=named, strict=strict)
    elif isinstance(value, list) and shape.merge in ("items", "set"):
        if not named:
            found[path] = _LIST
        _flatten_list(value, shape, path, found, named=named, strict=strict)
    else:
        found[path] = value


def _flatten_list(values: list[Any], shape: Shape, path: Path, found: dict[Path, Any], *, named: bool, strict: bool) -> None:
    for element, value in _elements(values, shape, path, strict=strict).items():
        below = (*path, element)
        if shape.merge == "items":
            _flatten(value, shape.each or ATOMIC, below, found, named=named, strict=strict)
        found[below] = _ITEM


def _elements(values: list[Any], shape: Shape, path: Path, *, strict: bool) -> dict[str, Any]:
    """Return the items of a list by the elements that name them; items that cannot be told apart are named by where they stand."""
    found: dict[str, Any] = {}
    for index, value in enumerate(values):
        element = element_of(value, shape)
        if element is None or element in found:
            if strict:
                raise BadRequest(_unmergeable(path, index, element, shape))
            element = f"i:{index}"
        found[element] = value
    return found


class Difference(NamedTuple):
    """How an object changed, as sets of paths."""

    changed: Paths
    removed: Paths


def difference(before: Any, after: Any, shape: Shape) -> Difference:
    """Return what is new or another in `after`, and what is gone; what is equal in both is not looked into."""
    changed: set[Path] = set()
    removed: set[Path] = set()
    _compare(before, after, shape, (), (changed, removed))
    return Difference(frozenset(changed), frozenset(removed))


def _compare(before: Any, after: Any, shape: Shape, path: Path, found: tuple[set[Path], set[Path]]) -> None:
    if before is after or (_equal(before, after) and not (isinstance(before, dict) and shape.is_unknown)):
        return
    if isinstance(before, dict) and isinstance(after, dict) and shape.merge == "fields":
        was, now = _visible(before, shape, path), _visible(after, shape, path)
        for name, value in now.items():
            if name not in was or was[name] is not value:
                _compare_member(was.get(name, _ABSENT), value, shape.below(name), (*path, f"f:{name}"), found)
        for name, value in was.items():
            if name not in now:
                _compare_member(value, _ABSENT, shape.below(name), (*path, f"f:{name}"), found)
    elif isinstance(before, list) and isinstance(after, list) and shape.merge in ("items", "set"):
        each = (shape.each or ATOMIC) if shape.merge == "items" else ATOMIC
        old, new = _elements(before, shape, path, strict=False), _elements(after, shape, path, strict=False)
        for element in {**new, **old}:
            _compare_member(old.get(element, _ABSENT), new.get(element, _ABSENT), each, (*path, element), found)
    else:
        lost, gained = _nodes(before, shape, path), _nodes(after, shape, path)
        found[0].update(at for at, value in gained.items() if at not in lost or lost[at] is not value)
        found[1].update(lost.keys() - gained.keys())


def _compare_member(before: Any, after: Any, shape: Shape, path: Path, found: tuple[set[Path], set[Path]]) -> None:
    if before is _ABSENT:
        found[0].update(_nodes(after, shape, path))
    elif after is _ABSENT:
        found[1].update(_nodes(before, shape, path))
    else:
        _compare(before, after, shape, path, found)


def _equal(one: Any, other: Any) -> bool:
    """Compare values of one type by the schema; to Python `true` is 1, also in maps, which then must be looked into."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _visible(value: Json, shape: Shape, path: Path) -> Json:
    """Return the fields of a map that somebody may own; what is empty in metadata is not stored."""
    if path == _METADATA:
        return {name: below for name, below in value.items() if below and name not in shape.hidden}
    return {name: below for name, below in value.items() if name not in shape.hidden} if shape.hidden else value


def _nodes(value: Any, shape: Shape, path: Path) -> dict[Path, Any]:
    found: dict[Path, Any] = {}
    _flatten(value, shape, path, found, named=False, strict=False)
    found.setdefault(path, _ITEM)
    return found


def element_of(value: Any, shape: Shape) -> str | None:
    """Return the element that names an item of a list; None for an item that has no name."""
    if shape.merge == "set":
        return f"v:{_compact(value)}"
    if not isinstance(value, dict) or any(value.get(key) is None for key in shape.keys):
        return None
    return f"k:{_compact({key: value[key] for key in shape.keys})}"


def _unmergeable(path: Path, index: int, element: str | None, shape: Shape) -> str:
    where = text_of(path)
    if element is None:
        return f"{where}: element {index}: the list is merged by {', '.join(shape.keys)}, which this item does not say"
    return f"{where}: duplicate entries for key {text_of((element,))}"


def _compact(value: Any) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


# ---- FieldsV1


def to_fields(paths: Iterable[Path]) -> Json:
    """Return a set of paths as FieldsV1."""
    tree: Json = {}
    for path in sorted(paths):  # What holds others comes before them.
        node = tree
        for element in path[:-1]:
            below = node.get(element)
            if below is None:
                below = node[element] = {}
            elif not below:
                below["."] = {}  # A field itself, of which more is said.
            node = below
        node[path[-1]] = {}
    return tree


def from_fields(fields: Any) -> Paths:
    """Return the set of paths that FieldsV1 says.

    Raises:
        ValueError: It is not FieldsV1.
    """
    found: list[Path] = []
    _collect(fields, (), found)
    return frozenset(found)


def _collect(node: Any, path: Path, found: list[Path]) -> None:
    if not isinstance(node, Mapping):
        raise ValueError(f"{text_of(path) or 'fieldsV1'} must be a map")
    if len(path) > DEPTH_MAX:
        raise ValueError(f"fieldsV1 nests deeper than {DEPTH_MAX}")
    if path and (not node or "." in node):
        found.append(path)
    for element, below in node.items():
        if element == ".":
            continue
        _collect(below, (*path, element if element[:2] == "f:" else _checked(element)), found)


def _checked(element: str) -> str:
    """Return an element that names no field, as this module writes it."""
    kind, rest = element[:2], element[2:]
    try:
        match kind:
            case "k:" if isinstance(keys := msgspec.json.decode(rest), dict) and keys:
                return f"k:{_compact(keys)}"
            case "v:":
                return f"v:{_compact(msgspec.json.decode(rest))}"
            case "i:" if rest.isascii() and rest.isdecimal() and len(rest) <= INDEX_DIGITS_MAX:
                return f"i:{int(rest)}"
    except (msgspec.MsgspecError, RecursionError):
        pass  # It is none of them.
    raise ValueError(f'{element[:40]!r} is no element of a path, which is f:name, k:{{"key":value}}, v:value or i:number')


def text_of(path: Path) -> str:
    """Return a path as messages write it: `.spec.variants[name="a"].dtype`."""
    return "".join(map(_text, path))


def _text(element: str) -> str:
    kind, rest = element[:2], element[2:]
    match kind:
        case "f:":
            return f".{rest}"
        case "v:":
            return f"[={rest}]"
        case "k:":
            keys = msgspec.json.decode(rest)
            return f"[{','.join(f'{key}={_compact(value)}' for key, value in keys.items())}]"
        case _:
            return f"[{rest}]"
