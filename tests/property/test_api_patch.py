"""Patches over arbitrary JSON."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.api.patch import json_patch, strategic_merge_patch
from controller.store.writes import merge_patch

_scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab~/", max_size=3)
_json = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab~/", max_size=2), inner, max_size=3))
_objects = st.dictionaries(st.text("abc", max_size=2), _json, max_size=4)


def _without_nulls(value: Any) -> Any:
    return {key: _without_nulls(one) for key, one in value.items() if one is not None} if isinstance(value, dict) else value


def _merge_difference(old: Any, new: Any) -> Any:
    """Return the merge patch from old to new; both without nulls in maps."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    changed = {key: _merge_difference(old.get(key), value) for key, value in new.items() if key not in old or old[key] != value}
    return {**changed, **dict.fromkeys(old.keys() - new.keys())}


@settings(max_examples=100, deadline=None)
@given(_objects.map(_without_nulls), _objects.map(_without_nulls))
def test_the_difference_of_two_objects_leads_from_one_to_the_other(old: Any, new: Any) -> None:
    difference = _merge_difference(old, new)
    assert merge_patch(old, difference) == new
    assert merge_patch(new, difference) == new  # once applied, applying again changes nothing


def _pointers(value: Any, prefix: str = "") -> list[str]:
    found = [prefix]
    if isinstance(value, dict):
        for key, one in value.items():
            found += _pointers(one, f"{prefix}/{key.replace('~', '~0').replace('/', '~1')}")
    if isinstance(value, list):
        for index, one in enumerate(value):
            found += _pointers(one, f"{prefix}/{index}")
    return found


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_removing_a_value_and_adding_it_back_changes_nothing(data: st.DataObject) -> None:
    document = data.draw(_objects)
    path = data.draw(st.sampled_from(_pointers(document)))
    value: Any = document
    for token in path.split("/")[1:]:
        value = value[int(token)] if isinstance(value, list) else value[token.replace("~1", "/").replace("~0", "~")]
    there = {"op": "test", "path": path, "value": value}
    assert json_patch(document, [there]) == document
    if path:
        back = [{"op": "remove", "path": path}, {"op": "add", "path": path, "value": value}, there]
        assert json_patch(document, back) == document


@settings(max_examples=100, deadline=None)
@given(_objects.map(_without_nulls), _objects.map(_without_nulls))
def test_a_strategic_merge_without_directives_and_merge_lists_is_a_merge(old: Any, new: Any) -> None:
    assert strategic_merge_patch(old, new) == merge_patch(old, new)
