"""The transcripts in `sessions/` hold, and each row of the transition table is needed by one of them.

Run with RKFLEET_UPDATE=1 (`make scenario-update`) to write down what the protocols say now; review the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rkfleet.errors import Internal
from rkfleet.session import TRANSITIONS, End, Message, State, Table
from tests.support.transcripts import run

FOLDER = Path(__file__).parent / "sessions"
TRANSCRIPTS = sorted(FOLDER.glob("*.txt"))


def holds(path: Path, table: Table) -> bool:
    """Whether a transcript comes out as written when both ends use this table."""
    try:
        return run(path.read_text(), table) == path.read_text()
    except Internal:  # The board cannot even say Hello.
        return False


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_a_transcript_holds(path: Path) -> None:
    """Both ends say what is written down, in every state and with every crossing that is written down."""
    written = path.read_text()
    said = run(written)
    if os.environ.get("RKFLEET_UPDATE"):
        path.write_text(said)
    assert said == path.read_text()


@pytest.mark.parametrize("row", TRANSITIONS, ids=lambda row: f"{row[0].value}-{row[1].value}-{row[2].__name__}")
def test_without_a_row_of_the_table_a_transcript_fails(row: tuple[State, End, type[Message]]) -> None:
    """No row is there that nothing shows."""
    table = {key: state for key, state in TRANSITIONS.items() if key != row}
    assert not all(holds(path, table) for path in TRANSCRIPTS)


@pytest.mark.parametrize("row", TRANSITIONS, ids=lambda row: f"{row[0].value}-{row[1].value}-{row[2].__name__}")
def test_with_another_state_in_a_row_of_the_table_a_transcript_fails(row: tuple[State, End, type[Message]]) -> None:
    """Where a row leads is shown too."""
    for state in State:
        if state is not TRANSITIONS[row]:
            table = {**TRANSITIONS, row: state}
            assert not all(holds(path, table) for path in TRANSCRIPTS)


def test_the_table_is_confluent() -> None:
    """What both ends send at once is legal for both and leads both to the same state; who said Goodbye has left by its own view."""
    for (state, end, message), after_board in TRANSITIONS.items():
        for (other_state, other_end, other), after_controller in TRANSITIONS.items():
            if (state, end, other_end) != (other_state, End.BOARD, End.CONTROLLER) or "LEFT" in state.value:
                continue
            controller_view = TRANSITIONS[after_controller, End.BOARD, message]
            board_view = TRANSITIONS[after_board, End.CONTROLLER, other]
            assert controller_view == board_view or {"LEFT"} <= {view.value.partition("_")[2] for view in (controller_view, board_view)}
