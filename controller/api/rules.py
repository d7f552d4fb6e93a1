"""CEL rules of a kind (`x-kubernetes-validations`), compiled once and run over objects.

In: the schema of a kind, then settled objects that are valid by it. Out: a `Cause` for every rule that does not hold. Admission calls
it; a real kube-apiserver runs the same text from the CRD. Apart from admission because it alone knows the CEL library.

As Kubernetes has it: a rule runs at every place of its schema node, with `self`; a rule that mentions `oldSelf` is a transition rule and
runs only where there is an old value for the same place: list items correspond by the keys of a list-map, other lists do not. No rule
runs on a value that did not change, so that a rule that became stricter spares what is stored. A rule that cannot be evaluated does not
hold.

Source: Kubernetes, "Validation rules", "Transition rules" and "Validation ratcheting" of CustomResourceDefinitions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import cel
import msgspec

from rkfleet.errors import Cause
from rkfleet.schema import Schema
from rkfleet.validation import MISSING, Path, format_path, list_map_key

__all__ = ["RuleSet"]

# What the library raises for a missing key, a wrong type, an unknown name and a failed conversion.
_EVALUATION_ERRORS: Final = (KeyError, TypeError, RuntimeError, ValueError, OverflowError)


class _Rule(msgspec.Struct, frozen=True):
    program: Any
    source: str
    message: str
    field_path: str
    transition: bool


class _Site(msgspec.Struct, frozen=True):
    """A schema node with rules on it or below it."""

    rules: tuple[_Rule, ...]
    properties: tuple[tuple[str, _Site], ...] = ()
    items: _Site | None = None
    keys: tuple[str, ...] = ()
    values: _Site | None = None


class RuleSet:
    """The rules of one kind. Made once; it has no state."""

    def __init__(self, schema: Schema) -> None:
        """Compile every rule.

        Raises:
            ValueError: A rule is not CEL; the message holds it.
        """
        self._root: Final = _site(schema)

    def faults(self, new: Any, old: Any = MISSING) -> tuple[Cause, ...]:
        """Return a cause for every rule that does not hold; without `old` transition rules do not run."""
        return tuple(_faults(self._root, new, old, ())) if self._root is not None else ()


def _site(schema: Schema) -> _Site | None:
    properties = tuple((name, site) for name, node in schema.get("properties", {}).items() if (site := _site(node)) is not None)
    items = _site(schema["items"]) if "items" in schema else None
    values = _site(schema["additionalProperties"]) if "additionalProperties" in schema else None
    rules = tuple(_compiled(rule) for rule in schema.get("x-kubernetes-validations", ()))
    if not (properties or items or values or rules):
        return None
    keys = tuple(schema.get("x-kubernetes-list-map-keys", ()))
    return _Site(rules=rules, properties=properties, items=items, keys=keys, values=values)


def _compiled(rule: Schema) -> _Rule:
    program = cel.compile(rule["rule"])
    return _Rule(
        program=program,
        source=rule["rule"],
        message=rule["message"],
        field_path=rule.get("fieldPath", ""),
        transition="oldSelf" in program.variables(),
    )


def _faults(site: _Site, new: Any, old: Any, path: Path) -> Iterator[Cause]:
    if new == old:
        return
    for rule in site.rules:
        if rule.transition and old is MISSING:
            continue
        message = _broken(rule, new, old)
        if message:
            yield Cause(field=(format_path(path) + rule.field_path).lstrip("."), message=message)
    if isinstance(new, dict):
        for key, below, value in _members(site, new):
            yield from _faults(below, value, old.get(key, MISSING) if isinstance(old, dict) else MISSING, (*path, key))
    elif isinstance(new, list) and site.items is not None:
        members = old if site.keys and isinstance(old, list) else []
        before = {list_map_key(member, site.keys): member for member in members}
        for index, value in enumerate(new):
            yield from _faults(site.items, value, before.get(list_map_key(value, site.keys), MISSING), (*path, index))


def _members(site: _Site, value: dict[str, Any]) -> Iterator[tuple[str, _Site, Any]]:
    for name, below in site.properties:
        if name in value:
            yield name, below, value[name]
    if site.values is not None:
        for key, member in value.items():
            yield key, site.values, member


def _broken(rule: _Rule, new: Any, old: Any) -> str:
    """Return why the rule does not hold, or an empty string."""
    try:
        holds = rule.program.execute({"self": new} if old is MISSING else {"self": new, "oldSelf": old})
    except _EVALUATION_ERRORS as error:
        return f"{rule.message} (rule {rule.source!r} cannot be evaluated: {error})"
    return "" if holds is True else rule.message
