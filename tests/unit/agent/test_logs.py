"""What a board answers to those who ask for lines, and what the agent keeps of its own log."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from agent.journal import CLOSED_SECONDS, Journals
from agent.logs import BoardLogs
from agent.own_log import own_log
from rkfleet.session import LOG_CHUNK_BYTES_MAX, LOG_CHUNK_LINES_MAX, LogChunk, LogRequest, LogSource
from tests.support.clocks import START, ManualClock


class Scene:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.journals = Journals(self.clock)
        self.logs = BoardLogs(self.journals, self.clock)

    def run(self, *texts: str, uid: str = "u") -> None:
        self.journals.begin_run(uid)
        for text in texts:
            self.journals.write(uid, text)

    def ask(self, **fields: Any) -> LogChunk | None:
        fields = {"source": LogSource.WORKER, "replica_uid": "u"} | fields
        return self.logs.answer(LogRequest(request_id=1, **fields))

    def texts(self, **fields: Any) -> list[str]:
        chunk = self.ask(**fields)
        assert chunk is not None
        assert not chunk.refusal
        return [line.text for line in chunk.lines]


def test_the_newest_run_is_what_is_asked_for_and_the_one_before_it_is_kept() -> None:
    s = Scene()
    s.run("first", "crash")
    s.run("second")
    assert s.texts() == ["second"]
    assert s.texts(run=-1) == ["first", "crash"]
    assert s.texts(run=1) == ["first", "crash"]
    previous = s.ask(run=-1)
    assert previous is not None
    assert (previous.run, previous.ended) == (1, True)


@pytest.mark.parametrize(("run", "why"), [(-1, "the run 1 before it is not there: the worker is in run 1"), (3, "run 3 is not there")])
def test_a_run_that_never_was_is_refused_with_how_many_there_were(run: int, why: str) -> None:
    s = Scene()
    s.run("first")
    chunk = s.ask(run=run)
    assert chunk is not None
    assert why in chunk.refusal


def test_a_replica_without_a_worker_yet_is_refused_and_one_that_left_meanwhile_ends() -> None:
    s = Scene()
    chunk, later = s.ask(), s.ask(after=7, wait=True)
    assert chunk is not None
    assert later is not None
    assert chunk.refusal == "this board has started no worker of the replica yet"
    assert (later.ended, later.next, later.refusal) == (True, 7, "")


def test_who_waits_is_answered_when_there_is_a_line() -> None:
    s = Scene()
    s.run("first")
    assert s.ask(after=1, wait=True) is None
    s.journals.write("u", "second")
    assert s.texts(after=1, wait=True) == ["second"]


def test_a_follower_goes_on_into_the_next_run_until_the_replica_leaves() -> None:
    s = Scene()
    s.run("first")
    s.run("second")
    assert s.texts(after=1, wait=True) == ["second"]
    s.journals.retain(set())
    chunk = s.ask(after=2, wait=True)
    assert chunk is not None
    assert [line.text for line in chunk.lines] == ["rkfleet: the replica left this board"]
    assert chunk.ended
    s.clock.advance(CLOSED_SECONDS)
    s.journals.retain(set())
    assert s.journals.find("u") is None


def test_what_stays_is_retained_and_a_replica_that_comes_back_goes_on() -> None:
    s = Scene()
    s.run("first")
    s.journals.retain({"u"})
    s.journals.retain(set())
    s.run("second")
    s.journals.retain({"u"})
    s.clock.advance(CLOSED_SECONDS)
    s.journals.retain({"u"})
    assert s.texts() == ["second"]


def test_tail_and_since_choose_the_last_lines() -> None:
    s = Scene()
    s.run("old")
    s.clock.advance(60)
    s.journals.write("u", "new")
    s.journals.write("u", "newest")
    assert s.texts(tail_lines=1) == ["newest"]
    assert s.texts(tail_lines=0) == []
    assert s.texts(since_seconds=59) == ["new", "newest"]
    assert s.texts(since_seconds=60) == ["old", "new", "newest"]


def test_a_line_has_the_time_at_which_it_came() -> None:
    s = Scene()
    s.clock.advance(2.5)
    s.run("first")
    s.clock.advance(100)
    chunk = s.ask()
    assert chunk is not None
    assert chunk.lines[0].time_milliseconds == (START.timestamp() + 2.5) * 1000


def test_a_line_is_cut_and_loses_its_escapes() -> None:
    s = Scene()
    s.run("\x1b[31mred\x1b[0m and\rback", "x" * 1000)
    first, second = s.texts()
    assert first == "red andback"
    assert len(second) == 512


def test_a_chunk_ends_at_the_limit_that_it_meets_first_and_the_next_one_goes_on_there() -> None:
    s = Scene()
    s.run(*(f"{number}" for number in range(300)))
    first, second = s.texts(), s.texts(after=LOG_CHUNK_LINES_MAX)
    assert (len(first), len(second)) == (LOG_CHUNK_LINES_MAX, 300 - LOG_CHUNK_LINES_MAX)
    s.run(*("ä" * 500 for _ in range(40)))
    assert [len(text) for text in s.texts()] == [500] * (LOG_CHUNK_BYTES_MAX // 1000)


def test_the_agent_keeps_its_own_log_also_of_its_threads_and_only_its_own() -> None:
    """Two agents in one process do not read each other's words; what the host says is kept by both."""
    log = logging.getLogger("tests.own_log")

    def fail() -> None:
        try:
            raise ValueError("no such thing")
        except ValueError:
            log.exception("a pass failed", extra={"board": "b"})

    async def agent(journals: Journals, name: str, ready: asyncio.Barrier) -> None:
        with own_log(journals):
            await ready.wait()
            log.warning("%s speaks", name, extra={"port": 7})
            await asyncio.to_thread(fail)
            await ready.wait()
            await ready.wait()

    async def scenario() -> tuple[Journals, Journals]:
        one, two, ready = Journals(ManualClock()), Journals(ManualClock()), asyncio.Barrier(3)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(agent(one, "one", ready))
            tasks.create_task(agent(two, "two", ready))
            await ready.wait()
            await ready.wait()
            log.warning("the host speaks")
            await ready.wait()
        log.warning("nobody listens any more")
        return one, two

    for journals, name in zip(asyncio.run(scenario()), ("one", "two"), strict=True):
        lines = [line.text for line in journals.agent.read().lines]
        assert lines[0] == f"warning tests.own_log: {name} speaks port=7"
        assert lines[1] == "error tests.own_log: a pass failed board=b"
        assert lines[2].startswith("Traceback")
        assert lines[-2:] == ["ValueError: no such thing", "warning tests.own_log: the host speaks"]
