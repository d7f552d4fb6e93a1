"""The three-way merge of `rkfleet apply`, against JSON merge patch itself."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rkfleet.apply import LAST_APPLIED, three_way_patch, with_last_applied

SCALARS = st.one_of(st.booleans(), st.integers(0, 3), st.sampled_from(["a", "b"]))
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(SCALARS, max_size=2), st.dictionaries(st.sampled_from("xyz"), inner, max_size=3))
)
OBJECTS = st.fixed_dictionaries({"metadata": st.just({"name": "n"}), "spec": st.dictionaries(st.sampled_from("pqr"), VALUES, max_size=3)})


def merged(target: Any, patch: Any) -> Any:
    """RFC 7396, as the RFC writes it."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def contains(live: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(key in live and contains(live[key], value) for key, value in wanted.items())
    return bool(live == wanted)


@given(first=OBJECTS, second=OBJECTS, by_others=st.dictionaries(st.sampled_from("uv"), SCALARS, max_size=2))
def test_applying_twice_is_once_and_what_others_set_stays(first: Any, second: Any, by_others: Any) -> None:
    """After apply the object holds what was wanted, lacks what was dropped, keeps what others set; a second apply is empty."""
    live = with_last_applied(first)
    live["spec"] = {**live["spec"], **by_others}
    live = merged(live, three_way_patch(second, live))
    assert contains(live, second)
    assert contains(live["spec"], by_others)
    assert set(live["spec"]) == set(second["spec"]) | set(by_others)
    assert three_way_patch(second, live) == {}
    assert json.loads(live["metadata"]["annotations"][LAST_APPLIED]) == second


def test_an_object_that_was_never_applied_loses_nothing() -> None:
    """Without the annotation nothing is known to have been wanted before, so nothing is removed."""
    live = {"metadata": {"name": "n"}, "spec": {"p": 1, "q": 2}}
    patch = three_way_patch({"metadata": {"name": "n"}, "spec": {"p": 3}}, live)
    assert patch["spec"] == {"p": 3}
