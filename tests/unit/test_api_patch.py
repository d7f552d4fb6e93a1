"""Patches: RFC 7396, RFC 6902 and strategic merge as the built-in kinds mean it."""

from __future__ import annotations

from typing import Any

import pytest

from controller.api.patch import json_patch, strategic_merge_patch
from controller.store.writes import merge_patch
from rkfleet.errors import BadRequest, Invalid

Json = dict[str, Any]


@pytest.mark.parametrize(
    ("target", "patch", "expected"),
    [  # Source: RFC 7396, appendix A.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_gives_the_results_of_the_rfc(target: Any, patch: Any, expected: Any) -> None:
    assert merge_patch(target, patch) == expected


@pytest.mark.parametrize(
    ("target", "operations", "expected"),
    [  # Source: RFC 6902, appendix A.
        ({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"baz": "qux", "foo": "bar"}),
        ({"foo": ["bar", "baz"]}, [{"op": "add", "path": "/foo/1", "value": "qux"}], {"foo": ["bar", "qux", "baz"]}),
        ({"baz": "qux", "foo": "bar"}, [{"op": "remove", "path": "/baz"}], {"foo": "bar"}),
        ({"foo": ["bar", "qux", "baz"]}, [{"op": "remove", "path": "/foo/1"}], {"foo": ["bar", "baz"]}),
        ({"baz": "qux"}, [{"op": "replace", "path": "/baz", "value": "boo"}], {"baz": "boo"}),
        ({"a": {"b": 1}, "c": {}}, [{"op": "move", "from": "/a/b", "path": "/c/d"}], {"a": {}, "c": {"d": 1}}),
        ({"foo": ["all", "cows", "eat"]}, [{"op": "move", "from": "/foo/1", "path": "/foo/2"}], {"foo": ["all", "eat", "cows"]}),
        ({"foo": "bar"}, [{"op": "add", "path": "/child", "value": {"grandchild": {}}}], {"foo": "bar", "child": {"grandchild": {}}}),
        ({"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": 10}], {"/": 9, "~1": 10}),
        ({"foo": ["bar"]}, [{"op": "add", "path": "/foo/-", "value": ["abc", "def"]}], {"foo": ["bar", ["abc", "def"]]}),
        ({"a": [1]}, [{"op": "copy", "from": "/a", "path": "/b"}, {"op": "add", "path": "/b/-", "value": 2}], {"a": [1], "b": [1, 2]}),
        ({"a": 1}, [{"op": "replace", "path": "", "value": {"b": 2}}], {"b": 2}),
        ({"a": 1}, [{"op": "add", "path": "/a", "value": None}], {"a": None}),
    ],
)
def test_json_patch_gives_the_results_of_the_rfc(target: Any, operations: list[Json], expected: Any) -> None:
    assert json_patch(target, operations) == expected


@pytest.mark.parametrize(
    ("operation", "says"),
    [
        ({"op": "test", "path": "/a", "value": 2}, "test failed"),
        ({"op": "test", "path": "/yes", "value": 1}, "test failed"),
        ({"op": "remove", "path": "/missing"}, "there is no 'missing'"),
        ({"op": "replace", "path": "/missing", "value": 1}, "there is no 'missing'"),
        ({"op": "add", "path": "/missing/deep", "value": 1}, "there is no 'missing'"),
        ({"op": "add", "path": "/list/5", "value": 1}, "index '5'"),
        ({"op": "add", "path": "/list/01", "value": 1}, "index '01'"),
        ({"op": "remove", "path": "/list/-"}, "index '-'"),
        ({"op": "add", "path": "/a/b", "value": 1}, "no 'b'"),
        ({"op": "add", "path": "a", "value": 1}, "must be empty or start with /"),
        ({"op": "add", "path": "/~2", "value": 1}, "must be followed by 0 or 1"),
        ({"op": "add", "path": "/b"}, "value is missing"),
        ({"op": "copy", "path": "/b"}, "from is missing"),
        ({"op": "move", "from": "/list", "path": "/list/0"}, "into itself"),
        ({"op": "remove", "path": ""}, "whole object"),
        ({"op": "merge", "path": "/a"}, "must be add, remove"),
    ],
)
def test_an_impossible_operation_is_named_by_its_number(operation: Json, says: str) -> None:
    """All or nothing: the object that was given is never changed, also when the second operation fails."""
    target = {"a": 1, "yes": True, "list": [1, 2]}
    before = {"a": 1, "yes": True, "list": [1, 2]}
    with pytest.raises(Invalid) as caught:
        json_patch(target, [{"op": "add", "path": "/list/0", "value": 0}, operation])
    assert says in caught.value.message
    assert "operation 1 " in caught.value.message
    assert before == target


@pytest.mark.parametrize("operations", [{}, [1], [{"op": "add"}], "x", [{"op": "test", "path": "", "value": 1}] * 10_001])
def test_what_is_no_json_patch_is_a_bad_request(operations: Any) -> None:
    with pytest.raises(BadRequest):
        json_patch({}, operations)


def test_copies_cannot_grow_an_object_without_bound() -> None:
    doubling = [{"op": "copy", "from": "", "path": f"/k{number}"} for number in range(64)]
    with pytest.raises(Invalid, match="copies more than"):
        json_patch({"a": "x" * 1000}, doubling)


def test_strategic_merge_joins_finalizers_and_owners_and_replaces_other_lists() -> None:
    target = {
        "metadata": {"finalizers": ["a"], "ownerReferences": [{"uid": "1", "name": "x"}], "labels": {"k": "v", "old": "1"}},
        "list": [1, 2],
    }
    patch = {
        "metadata": {
            "finalizers": ["b", "a"],
            "$setElementOrder/finalizers": ["b", "a"],
            "ownerReferences": [{"uid": "1", "controller": True}, {"uid": "2", "name": "y"}],
            "labels": {"old": None, "new": "2"},
        },
        "list": [3],
    }
    assert strategic_merge_patch(target, patch) == {
        "metadata": {
            "finalizers": ["a", "b"],
            "ownerReferences": [{"uid": "1", "name": "x", "controller": True}, {"uid": "2", "name": "y"}],
            "labels": {"k": "v", "new": "2"},
        },
        "list": [3],
    }


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ({"m": {"$patch": "replace", "x": 1}}, {"m": {"x": 1}, "finalizers": ["a", "b"], "conditions": [{"type": "A", "v": 1}]}),
        ({"m": {"$patch": "delete"}}, {"finalizers": ["a", "b"], "conditions": [{"type": "A", "v": 1}]}),
        ({"$retainKeys": ["m"], "m": {"y": 2}}, {"m": {"x": 0, "y": 2}}),
        ({"$deleteFromPrimitiveList/finalizers": ["a"]}, {"m": {"x": 0}, "finalizers": ["b"], "conditions": [{"type": "A", "v": 1}]}),
        ({"conditions": [{"type": "A", "$patch": "delete"}]}, {"m": {"x": 0}, "finalizers": ["a", "b"], "conditions": []}),
        (
            {"conditions": [{"$patch": "replace"}, {"type": "B"}]},
            {"m": {"x": 0}, "finalizers": ["a", "b"], "conditions": [{"type": "B"}]},
        ),
    ],
)
def test_strategic_directives_are_honoured(patch: Json, expected: Json) -> None:
    target = {"m": {"x": 0}, "finalizers": ["a", "b"], "conditions": [{"type": "A", "v": 1}]}
    assert strategic_merge_patch(target, patch) == expected


@pytest.mark.parametrize(
    "patch", [{"$patch": "guess"}, {"conditions": [{"status": "True"}]}, {"$deleteFromPrimitiveList/finalizers": "a"}, {"$retainKeys": 1}]
)
def test_an_unreadable_directive_is_a_bad_request(patch: Json) -> None:
    with pytest.raises(BadRequest):
        strategic_merge_patch({"conditions": []}, patch)
