"""The promises have teeth: a fault that is put into the code on purpose breaks one of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from tests.support.scenario.mutants import MUTANTS, search

SEEDS_MAX = 40  # Histories move with the code; a known one that catches no more is replaced by the first that does.


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_mutant_is_caught(mutant: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    """Some history breaks a promise with the mutant in place, and none without it."""
    found = search(mutant, SEEDS_MAX)
    assert found is not None, f"{mutant.__name__}: {mutant.__doc__} Nobody notices."
