"""The checker of histories: it passes what a store that keeps its word leaves behind, and catches every fault that is put in."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.history.checker import check
from tests.support.history.imagined import imagine
from tests.support.history.ledger import make_ledger
from tests.support.history.mutants import MUTANTS, Mutant

SEEDS = st.integers(0, 1 << 32)


@given(seed=SEEDS, clients=st.integers(1, 6), watchers=st.integers(0, 4), loss=st.sampled_from([0.0, 0.05, 0.3]))
@settings(max_examples=200, deadline=None)
def test_a_history_of_a_store_that_keeps_its_word_passes(seed: int, clients: int, watchers: int, loss: float) -> None:
    """Also where many answers were lost, and where nobody watched."""
    assert check(imagine(seed, clients=clients, watchers=watchers, loss=loss)) == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_every_fault_is_caught(mutant: Mutant, seed: int) -> None:
    history = imagine(seed, loss=0.0)
    mutated = mutant(history, random.Random(seed))
    if mutated is not None:
        assert check(mutated), f"{mutant.__name__} went unseen"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_every_mutant_finds_an_occasion(mutant: Mutant) -> None:
    found = sum(mutant(imagine(seed, loss=0.0), random.Random(seed)) is not None for seed in range(10))
    assert found >= 3


def test_some_histories_have_writes_that_nobody_saw() -> None:
    """Otherwise what the checker allows for lost answers were never tried."""
    assert any(make_ledger(imagine(seed, loss=0.3, watchers=0)).holes for seed in range(20))
