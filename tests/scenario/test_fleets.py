"""Named scenarios of a whole fleet: what happens, when, and who says so, as written down in `fleets/`.

Run with RKFLEET_UPDATE=1 (`make scenario-update`) to write down what happens now; review the difference.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import pytest

from tests.support.scenario.named import SCENARIOS
from tests.support.scenario.stage import Outcome, play

FOLDER = Path(__file__).parent / "fleets"


def as_text(name: str, outcome: Outcome) -> str:
    head = inspect.cleandoc(SCENARIOS[name].__doc__ or "").splitlines()[0]
    return f"# {head}\n# seconds, actor, event; {outcome.virtual_seconds:.0f} s, {outcome.commits} writes\n{outcome.transcript}"


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_named_scenario_happens_as_written_down(name: str) -> None:
    """Every promise holds at every write, all is as declared at the end, and the transcript is the one that was reviewed."""
    outcome = play(name, SCENARIOS[name])
    assert outcome.broken is None, f"{outcome.broken}\n{outcome.transcript[-4000:]}"
    path = FOLDER / f"{name}.txt"
    if os.environ.get("RKFLEET_UPDATE"):
        path.write_text(as_text(name, outcome))
    assert as_text(name, outcome) == path.read_text()


def test_every_transcript_belongs_to_a_scenario() -> None:
    """A scenario that was renamed leaves no transcript behind."""
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(SCENARIOS)


@pytest.mark.parametrize("name", ["controller_dies_in_a_rollout", "store_disk_full"])
def test_sqlite_and_the_file_in_memory_make_the_same_history(name: str) -> None:
    """Seeds are played on a file in memory because it is faster; the store's own file gives the same bytes, also after a kill."""
    assert play(name, SCENARIOS[name], sqlite=True).sha256 == play(name, SCENARIOS[name]).sha256
