"""Fields of an object as a set of paths, and the form in which `managedFields` writes such a set.

In: an object and its `Shape`, or `fieldsV1`. Out: `Paths`. A path is a tuple of elements in the words of FieldsV1: `f:name` for a field,
`k:{"name":"a"}` for an item of a list that is merged by key, `v:"x"` for a member of a set. A path is in the set when the value at its end
is one value to a manager: a scalar, something atomic, something empty; and each item of a list beside what is in it.

Source: `sigs.k8s.io/structured-merge-diff/v4/fieldpath` (serialize.go for the form, path.go for the text in messages).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

import msgspec

from controller.api.apply.shape import ATOMIC, Shape
from rkfleet.errors import BadRequest

__all__ = ["Path", "Paths", "element_of", "flat", "from_fields", "text_of", "to_fields"]

Json = dict[str, Any]
Path: TypeAlias = tuple[str, ...]
Paths: TypeAlias = frozenset[Path]

DEPTH_MAX: Final = 64  # As deep as a body may be.

_ITEM: Final = object()
"""Value of an item's own path: two items with one key are the same item, whatever is in them."""


def flat(value: Any, shape: Shape, *, strict: bool = False) -> dict[Path, Any]:
    """Return the value at each path of `value`.

    Args:
        value: An object, decoded; without nulls.
        shape: Its shape.
        strict: Refuse lists that cannot be merged by their keys; what is stored already is taken as it is.

    Raises:
        BadRequest: A list has two items with one key, or an item without its key.
    """
    found: dict[Path, Any] = {}
    _flatten(value, shape, (), found, strict=strict)
    return found


def _flatten(value: Any, shape: Shape, path: Path, found: dict[Path, Any], *, strict: bool) -> None:
    if isinstance(value, dict) and value and shape.merge == "fields":
        for name, below in value.items():
            if name not in shape.hidden:
                _flatten(below, shape.below(name), (*path, f"f:{name}"), found, strict=strict)
    elif isinstance(value, list) and value and shape.merge in ("items", "set"):
        _flatten_list(value, shape, path, found, strict=strict)
    else:
        found[path] = value


def _flatten_list(values: list[Any], shape: Shape, path: Path, found: dict[Path, Any], *, strict: bool) -> None:
    seen = set()
    for index, value in enumerate(values):
        element = element_of(value, shape)
        if element is None or element in seen:
            if strict:
                raise BadRequest(_unmergeable(path, index, element, shape))
            element = f"i:{index}"
        seen.add(element)
        below = (*path, element)
        found[below] = _ITEM
        if shape.merge == "items":
            _flatten(value, shape.each or ATOMIC, below, found, strict=strict)


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
    for path in paths:
        node = tree
        for element in path:
            node = node.setdefault(element, {})
        node["."] = {}
    return _pruned(tree)


def _pruned(node: Json) -> Json:
    """Leave the `.` out where nothing else is there: an empty map says the same."""
    if len(node) == 1 and "." in node:
        return {}
    return {element: _pruned(below) if element != "." else {} for element, below in node.items()}


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
        if element[:2] not in ("f:", "k:", "v:", "i:"):
            raise ValueError(f"{element[:40]!r} is no element of a path, which begins with f:, k:, v: or i:")
        _collect(below, (*path, element), found)


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
