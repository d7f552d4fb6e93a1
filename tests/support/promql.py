"""Reads what a PromQL expression asks for: its series, their label matchers, and the labels that it groups by.

It is no parser: `promtool` is, where there is one. It finds names, because what a wrong name costs is silence: an alert over a metric that
nobody exposes never fires.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

GROUPING = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
WORDS = GROUPING | {"and", "or", "unless", "bool", "offset", "inf", "nan"}
TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)|(?P<number>\d[\d.eE]*(?:ms|[smhdwy])?)"""
    r"""|(?P<operator>=~|!~|!=|==|>=|<=|[-+*/%^<>=(){}\[\],])|(?P<space>\s+)|(?P<other>.)""",
    re.VERBOSE,
)
PAIRS = {")": "(", "}": "{", "]": "["}


@dataclass(frozen=True)
class Selector:
    """One series selector; matchers are (label, operator, value)."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...] = ()


@dataclass
class Expression:
    """What an expression names."""

    selectors: list[Selector] = field(default_factory=list)
    grouping: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)


def read(text: str) -> Expression:
    """Return what `text` names.

    Raises:
        ValueError: A bracket has no partner, or a character does not belong into PromQL.
    """
    tokens = [(match.lastgroup or "", match.group()) for match in TOKEN.finditer(text) if match.lastgroup != "space"]
    _check_brackets(tokens, text)
    found = Expression()
    position = 0
    while position < len(tokens):
        kind, value = tokens[position]
        following = tokens[position + 1][1] if position + 1 < len(tokens) else ""
        if kind == "other":
            raise ValueError(f"{value!r} in {text!r}")
        position += 1
        if kind != "name":
            continue
        if value.lower() in GROUPING and following == "(":
            end = _closing(tokens, position)
            found.grouping |= {name for kind, name in tokens[position:end] if kind == "name"}
            position = end
        elif value.lower() in WORDS:
            continue
        elif following == "(" or following.lower() in {"by", "without"}:
            found.functions.add(value)
        elif following == "{":
            end = _closing(tokens, position)
            found.selectors.append(Selector(value, _matchers(tokens[position + 1 : end], text)))
            position = end
        else:
            found.selectors.append(Selector(value))
    return found


def _check_brackets(tokens: list[tuple[str, str]], text: str) -> None:
    opened: list[str] = []
    for kind, value in tokens:
        if kind == "operator" and value in PAIRS.values():
            opened.append(value)
        elif kind == "operator" and value in PAIRS and (not opened or opened.pop() != PAIRS[value]):
            raise ValueError(f"{value!r} closes nothing in {text!r}")
    if opened:
        raise ValueError(f"{opened[-1]!r} is not closed in {text!r}")


def _closing(tokens: list[tuple[str, str]], start: int) -> int:
    """Return where the bracket that opens at `start` closes."""
    depth = 0
    for position in range(start, len(tokens)):
        if tokens[position][0] == "operator":
            depth += (tokens[position][1] in PAIRS.values()) - (tokens[position][1] in PAIRS)
            if not depth:
                return position
    raise AssertionError("brackets were checked")


def _matchers(tokens: list[tuple[str, str]], text: str) -> tuple[tuple[str, str, str], ...]:
    words = [token for token in tokens if token[1] != ","]
    if len(words) % 3:
        raise ValueError(f"a matcher is not label, operator, value in {text!r}")
    return tuple((words[at][1], words[at + 1][1], words[at + 2][1][1:-1]) for at in range(0, len(words), 3))
