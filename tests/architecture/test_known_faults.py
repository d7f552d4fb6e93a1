"""Each fault of the page of known faults is held by tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/reference/known-faults.md").read_text()
ROWS = {int(number): rest for number, rest in re.findall(r"^\| (\d+) \|(.*)$", PAGE, re.MULTILINE)}
FAULTS = 24


def names_in(file: Path) -> set[str]:
    """Return the names of the tests in a file, those of classes included."""
    tree = ast.parse(file.read_text())
    return {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_every_fault_has_one_row() -> None:
    """None is left out and none is told twice."""
    assert sorted(int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)) == list(range(1, FAULTS + 1))


@pytest.mark.parametrize("number", ROWS)
def test_a_fault_is_held_by_tests_that_exist(number: int) -> None:
    """A test that was renamed or given up would leave its fault open."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", ROWS[number])
    assert named, f"fault {number} names no test"
    missing = [f"{path}::{name}" for path, name in named if not (ROOT / path).is_file() or name not in names_in(ROOT / path)]
    assert missing == []
