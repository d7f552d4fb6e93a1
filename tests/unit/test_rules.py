"""CEL rules outside our kinds: lists, maps, and rules that cannot be evaluated."""

from __future__ import annotations

from typing import Any

import pytest

from controller.api.rules import RuleSet

GROWS = {"rule": "self.size >= oldSelf.size", "message": "size may only grow", "fieldPath": ".size"}
SMALL = {"rule": "self.size < 10", "message": "size must be below 10"}


def node(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"size": {"type": "integer"}}, "x-kubernetes-validations": list(rules)}


def test_items_of_a_list_map_correspond_by_key() -> None:
    rules = RuleSet({"type": "array", "x-kubernetes-list-map-keys": ["name"], "items": node(GROWS)})
    old = [{"name": "a", "size": 1}, {"name": "b", "size": 5}]
    assert rules.faults([{"name": "b", "size": 5}, {"name": "c", "size": 0}, {"name": "a", "size": 2}], old) == ()
    (cause,) = rules.faults([{"name": "b", "size": 4}], old)
    assert (cause.field, cause.message) == ("[0].size", "size may only grow")


def test_items_of_other_lists_have_no_old_value() -> None:
    rules = RuleSet({"type": "array", "items": node(GROWS, SMALL)})
    causes = rules.faults([{"size": 1}, {"size": 11}], [{"size": 2}])
    assert [(cause.field, cause.message) for cause in causes] == [("[1]", "size must be below 10")]


def test_values_of_a_map_correspond_by_key() -> None:
    rules = RuleSet({"type": "object", "additionalProperties": node(GROWS)})
    assert [cause.field for cause in rules.faults({"a": {"size": 1}, "b": {"size": 1}}, {"a": {"size": 2}})] == ["a.size"]


def test_a_rule_that_cannot_be_evaluated_does_not_hold() -> None:
    (cause,) = RuleSet(node(SMALL)).faults({})
    assert cause.message.startswith("size must be below 10 (rule 'self.size < 10' cannot be evaluated")


def test_a_rule_is_true_or_does_not_hold() -> None:
    assert RuleSet(node({"rule": "self.size", "message": "no"})).faults({"size": 1})[0].message == "no"


def test_text_that_is_no_rule_is_refused_when_the_kind_is_registered() -> None:
    with pytest.raises(ValueError, match="Failed to parse"):
        RuleSet(node({"rule": "self.size <", "message": ""}))


def test_a_schema_without_rules_costs_nothing() -> None:
    assert RuleSet({"type": "object", "properties": {"a": {"type": "string"}}}).faults({"a": "b"}) == ()
