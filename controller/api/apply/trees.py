"""Sets of fields in their written form: FieldsV1 less, and with, other FieldsV1, without reading all of it.

In: trees as `fields.to_fields` writes them. Out: new trees; nothing is changed in place, and what is not touched is shared. A write that
changes one field of an object with thousands of them costs a walk to that field in each manager's tree. `managers.py` calls these for
updates; an apply compares whole sets and works on paths.

An empty node is a field in the set; so is one with `.` among its children; others only lead to fields.
"""

from __future__ import annotations

from typing import Any

__all__ = ["minus", "plus"]

Json = dict[str, Any]


def minus(tree: Json, gone: Json) -> Json:
    """Return the set without the fields of `gone`; a tree that has none of them is returned itself."""
    left = dict(tree)
    for element, below in gone.items():
        if element == "." or element not in tree:
            continue
        node = tree[element]
        member = _is_field(node) and not _is_field(below)
        children = minus({name: child for name, child in node.items() if name != "."}, below) if node else node
        if children:
            left[element] = {".": {}, **children} if member else children
        elif member:
            left[element] = {}
        else:
            del left[element]
    return tree if left == tree else left


def plus(tree: Json, more: Json) -> Json:
    """Return the set with the fields of `more`; a tree that has all of them is returned itself."""
    grown = dict(tree)
    for element, below in more.items():
        if element == ".":
            continue
        if element not in tree:
            grown[element] = below
            continue
        node = tree[element]
        member = _is_field(node) or _is_field(below)
        children = plus({name: child for name, child in node.items() if name != "."}, below)
        grown[element] = {".": {}, **children} if member and children else children
    return tree if grown == tree else grown


def _is_field(node: Json) -> bool:
    return not node or "." in node
