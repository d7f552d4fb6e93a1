"""The host of simulated boards has enough open files on a system that allows a process few."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from simulation.boards.files import FILES_BESIDE, FILES_PER_BOARD, allow_open_files


@pytest.fixture
def few() -> Iterator[tuple[int, int]]:
    """Allow this process few files, and give the limit back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    yield 400, hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_low_limit_is_raised_to_what_the_boards_need(few: tuple[int, int]) -> None:
    """It never goes above what the system allows, and a limit that is enough stays."""
    low, hard = few
    needed = FILES_BESIDE + 20 * FILES_PER_BOARD
    assert allow_open_files(20) == needed
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (needed, hard)
    assert allow_open_files(1) == needed
    assert allow_open_files(1_000_000_000) == hard
    assert low < needed
