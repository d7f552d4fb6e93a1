"""Merging what a manager applies into an object, and taking out what it applies no more.

In: objects as decoded JSON and their `Shape`. Out: new objects; nothing is changed in place, unchanged parts are shared.

Source: `sigs.k8s.io/structured-merge-diff/v4/typed` (merge.go for the order of lists, remove.go).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from controller.api.apply.fields import Path, Paths, element_of
from controller.api.apply.shape import ATOMIC, Shape

__all__ = ["merged", "without"]

_NONE: Final = (None, 0)


def merged(live: Any, applied: Any, shape: Shape) -> Any:
    """Return `live` with `applied` on top: field by field and item by item where the shape says so, as a whole elsewhere."""
    if isinstance(live, dict) and isinstance(applied, dict) and shape.merge == "fields":
        below = {name: merged(live.get(name), value, shape.below(name)) for name, value in applied.items()}
        return {**live, **below}
    if isinstance(live, list) and isinstance(applied, list) and shape.merge in ("items", "set"):
        return list(_merged_items(live, applied, shape))
    return applied


def _merged_items(live: list[Any], applied: list[Any], shape: Shape) -> Iterator[Any]:
    """Yield the items of both: those of `applied` in its order, those that only `live` has where the walk along `live` meets them.

    The walk passes over an item of both that is not the next of them in `applied`; it comes when it is its turn there.
    """
    old = [(element_of(item, shape), item) for item in live]
    new = {element_of(item, shape): item for item in applied}
    before, names = dict(old), list(new)
    shared = iter([(name, place + 1) for place, name in enumerate(names) if name in before])
    done, (awaited, place) = 0, next(shared, _NONE)
    for name, item in old:
        if name not in new:
            yield item
        elif name == awaited:
            for one in names[done:place]:
                yield _merged_item(before, new, one, shape)
            done, (awaited, place) = place, next(shared, _NONE)
    for name in names[done:]:
        yield _merged_item(before, new, name, shape)


def _merged_item(old: dict[str | None, Any], new: dict[str | None, Any], name: str | None, shape: Shape) -> Any:
    return merged(old[name], new[name], shape.each or ATOMIC) if name in old else new[name]


def without(value: Any, gone: Paths, kept: Paths, wanted: Paths, shape: Shape) -> Any:
    """Return `value` without what is at the paths of `gone`; maps and lists that became empty by it go too, unless they are `wanted` so.

    An item of a list goes with everything in it, unless somebody owns something in it (`kept`).
    """
    if not gone:
        return value
    holders = frozenset(path[:length] for path in kept for length in range(1, len(path) + 1))
    return _without(value, _Removal(gone, holders, wanted), (), shape)


class _Removal(NamedTuple):
    """What goes, what does not go because somebody owns it or something in it, and what stays even when it is empty."""

    gone: Paths
    holders: Paths
    wanted: Paths

    def takes(self, path: Path) -> bool:
        return path in self.gone and path not in self.holders


def _without(value: Any, removal: _Removal, path: Path, shape: Shape) -> Any:
    if isinstance(value, dict) and shape.merge == "fields":
        left = {}
        for name, below in value.items():
            at = (*path, f"f:{name}")
            if removal.takes(at):
                continue
            now = _without(below, removal, at, shape.below(name))
            if now or now is below or at in removal.wanted:
                left[name] = now
        return value if len(left) == len(value) and all(left[name] is value[name] for name in left) else left
    if isinstance(value, list) and shape.merge in ("items", "set"):
        items = []
        for item in value:
            at = (*path, element_of(item, shape) or "")
            if not removal.takes(at):
                items.append(_without(item, removal, at, shape.each or ATOMIC) if shape.merge == "items" else item)
        return value if len(items) == len(value) and all(map(_same, items, value)) else items
    return value


def _same(one: Any, other: Any) -> bool:
    return one is other
