"""Live tables: which rows are worth a line, how ages are made, and what a small screen shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from rkfleet.cli import live
from rkfleet.cli.live import Row, Table, Update
from rkfleet.cli.tables import TableReader
from rkfleet.client import Followed
from rkfleet.clock import format_time
from rkfleet.errors import Unavailable
from tests.support.clocks import ManualClock

HEADS = ("NAME", "AGE")


def cells(rows: list[Row]) -> list[tuple[str, ...]]:
    return [row.cells for row in rows]


def test_a_whole_table_gives_a_line_to_what_is_new_changed_or_gone() -> None:
    """What is gone is shown once more, as kubectl does."""
    table = Table()
    assert cells(table.take(Update({"a": Row(("a",)), "b": Row(("b",))}, HEADS))) == [("a",), ("b",)]
    assert table.take(Update({"a": Row(("a",)), "b": Row(("b",))})) == []
    assert cells(table.take(Update({"b": Row(("b2",)), "c": Row(("c",))}))) == [("a",), ("b2",), ("c",)]
    assert list(table.rows) == ["b", "c"]
    assert table.heads == HEADS


def test_a_part_of_a_table_leaves_the_rest() -> None:
    table = Table()
    table.take(Update({"a": Row(("a",)), "b": Row(("b",))}, HEADS))
    assert cells(table.take(Update({"b": Row(("b2",))}, whole=False))) == [("b2",)]
    assert cells(table.take(Update({}, whole=False, gone=("a", "never")))) == [("a",)]
    assert list(table.rows) == ["b"]


def test_a_version_decides_whether_a_row_has_changed() -> None:
    """Cells with ages in them change without news; a version that moved is news though it looks the same."""
    table = Table()
    table.take(Update({"a": Row(("1s",), version="1")}, HEADS))
    assert table.take(Update({"a": Row(("2s",), version="1")})) == []
    assert len(table.take(Update({"a": Row(("2s",), version="2")}))) == 1


def test_ages_are_made_when_they_are_shown() -> None:
    clock = ManualClock()
    table = Table()
    row = Row(("a", "0s"), since=format_time(clock.now()))
    table.take(Update({"a": row}, HEADS))
    clock.advance(180)
    assert table.cells(row, clock) == ("a", "3m")
    assert table.cells(Row(("a", "0s")), clock) == ("a", "0s"), "a row without a time keeps its cell"
    other = Table("LAST SEEN")
    other.take(Update({"a": row}, HEADS))
    assert other.cells(row, clock) == ("a", "0s"), "no such column"


@pytest.mark.parametrize(("newest_last", "shown"), [(False, ["0", "1"]), (True, ["3", "4"])])
def test_a_small_screen_shows_the_end_that_matters(newest_last: bool, shown: list[str]) -> None:
    table = Table(newest_last=newest_last)
    table.take(Update({str(number): Row((str(number),)) for number in range(5)}, ("NAME",)))
    frame = live.draw(table, ManualClock(), 2)
    assert [str(cell) for cell in frame.columns[0].cells] == shown
    assert frame.caption == "3 more rows do not fit on this screen"
    assert live.draw(table, ManualClock(), 5).caption is None


def test_an_outage_is_said_once_when_it_begins_and_once_when_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    """Several collections break together; a screen has the note instead."""
    aloud, quiet = live.Outage(aloud=True), live.Outage(aloud=False)
    for error in (None, Unavailable("cannot reach A"), Unavailable("cannot reach B"), None, None):
        aloud(error)
        quiet(error)
    assert capsys.readouterr().err == "cannot reach A; shown is what was known last\nconnected again\n"
    table = Table()
    table.outage(Unavailable("cannot reach A"))
    assert str(live.draw(table, ManualClock(), 5).caption) == "cannot reach A; shown is what was known last"


def test_a_pipe_gets_headings_once_and_a_line_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    async def updates() -> AsyncGenerator[Update]:
        yield Update({}, HEADS)
        yield Update({"a": Row(("a", "1"))})
        yield Update({"a": Row(("a", "1")), "long-name": Row(("long-name", "2"))})
        yield Update({"a": Row(("a", "3")), "long-name": Row(("long-name", "2"))})

    asyncio.run(live.show(updates(), ManualClock(), Table()))
    assert capsys.readouterr().out.splitlines() == ["NAME   AGE", "a      1", "long-name   2", "a           3"]


def test_rows_of_a_followed_table_keep_the_columns_of_its_beginning() -> None:
    """Only a whole table names its columns; those of low priority are shown when asked for."""
    columns = ({"name": "Name", "priority": 0}, {"name": "Revision", "priority": 1}, {"name": "Age", "priority": 0})

    def row(name: str, version: str) -> dict[str, object]:
        meta = {"name": name, "namespace": "ns", "resourceVersion": version, "creationTimestamp": "2026-01-01T00:00:00Z"}
        return {"cells": [name, "r1", None], "object": {"metadata": meta}}

    reader = TableReader(wide=False, namespace=True)
    assert reader.update(Followed("REPLACED", (row("a", "1"),), columns)) == Update(
        {"ns/a": Row(("ns", "a", ""), "1", "2026-01-01T00:00:00Z")}, ("NAMESPACE", "NAME", "AGE")
    )
    changed = reader.update(Followed("MODIFIED", (row("a", "2"),)))
    assert (changed.whole, changed.rows["ns/a"].cells, changed.rows["ns/a"].version) == (False, ("ns", "a", ""), "2")
    assert reader.update(Followed("DELETED", (row("a", "3"),))).gone == ("ns/a",)
    assert TableReader(wide=True, namespace=False).update(Followed("REPLACED", (row("a", "1"),), columns)).heads == (
        "NAME",
        "REVISION",
        "AGE",
    )
