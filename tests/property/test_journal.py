"""A journal that is written, read on and forgotten in any order: every line is read once, in order, or counted as forgotten."""

from __future__ import annotations

import sys

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent.journal import LINE_BYTES, Journal, Journals
from rkfleet.session import LOG_CHUNK_BYTES_MAX, LOG_CHUNK_LINES_MAX, LOG_LINE_LENGTH_MAX
from tests.support.clocks import ManualClock

lengths = st.integers(0, 700)


class Follower:
    """Reads on from what it saw last, as the controller does, and keeps what it was told."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        first = journal.read(tail_lines=0)
        self.began = self.after = first.next
        self.seen: list[int] = []
        self.dropped = 0

    def read(self) -> bool:
        reading = self.journal.read(after=self.after)
        size_bytes = sum(len(line.text.encode()) for line in reading.lines)
        assert len(reading.lines) <= LOG_CHUNK_LINES_MAX
        assert size_bytes <= LOG_CHUNK_BYTES_MAX
        self.seen += [int(line.text.split(" ")[0]) for line in reading.lines]
        self.dropped += reading.dropped
        assert reading.next - self.after == len(reading.lines) + reading.dropped
        self.after = reading.next
        return bool(reading.lines or reading.dropped)

    def check(self) -> None:
        assert self.seen == sorted(set(self.seen)), "a line came twice or out of order"
        assert len(self.seen) + self.dropped == self.after - self.began


class JournalMachine(RuleBasedStateMachine):
    """Lines of two workers and of the agent, runs, and followers that read when they like."""

    @initialize(bytes_max=st.integers(2_000, 200_000))
    def begin(self, bytes_max: int) -> None:
        self.clock = ManualClock()
        self.bytes_max = bytes_max
        self.journals = Journals(self.clock, bytes_max=bytes_max)
        self.written = {"a": 0, "b": 0}
        self.followers: list[Follower] = []
        for uid in self.written:
            self.journals.begin_run(uid)

    @rule(uid=st.sampled_from(["a", "b"]), sizes=st.lists(lengths, min_size=1, max_size=60))
    def write(self, uid: str, sizes: list[int]) -> None:
        for size in sizes:
            self.written[uid] += 1
            self.journals.write(uid, f"{self.written[uid]} {'ä' * size}")
            self.clock.advance(0.001)

    @rule(uid=st.sampled_from(["a", "b"]), count=st.sampled_from([30, 250]), size=st.sampled_from([0, 100, 500]))
    def write_many(self, uid: str, count: int, size: int) -> None:
        self.write(uid, [size] * count)

    @rule(sizes=st.lists(lengths, max_size=10))
    def write_own(self, sizes: list[int]) -> None:
        for size in sizes:
            self.journals.write_own("x" * size)

    @rule(uid=st.sampled_from(["a", "b"]))
    def begin_run(self, uid: str) -> None:
        self.journals.begin_run(uid)

    @rule(uid=st.sampled_from(["a", "b"]))
    def follow(self, uid: str) -> None:
        journal = self.journals.find(uid)
        assert journal is not None
        self.followers.append(Follower(journal))

    @rule(choice=st.randoms(use_true_random=False))
    def read_on(self, choice: object) -> None:
        for follower in self.followers:
            if choice.random() < 0.5:  # type: ignore[attr-defined]
                follower.read()

    @invariant()
    def bounds_are_kept(self) -> None:
        if not hasattr(self, "journals"):
            return
        assert self.journals.size_bytes <= self.bytes_max
        for uid in self.written:
            journal = self.journals.find(uid)
            assert journal is not None
            lines = tuple(journal._lines)
            assert journal.newest == self.written[uid]
            assert journal.size_bytes == sum(sys.getsizeof(line.text) + LINE_BYTES for line in lines)
            assert all(len(line.text) <= LOG_LINE_LENGTH_MAX for line in lines)

    def teardown(self) -> None:
        for follower in getattr(self, "followers", ()):
            while follower.read():
                pass
            follower.check()
            assert follower.after == follower.journal.newest


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(max_examples=40, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=8),
    kept=st.integers(500, 4_000),
    run=st.integers(-9, 9),
    tail=st.none() | st.integers(0, 30),
)
def test_a_run_is_read_whole_and_alone(counts: list[int], kept: int, run: int, tail: int | None) -> None:
    """Of a run that was asked for every line comes or is counted, and no line of another run."""
    journal = Journal(kept)
    for number, count in enumerate(counts, start=1):
        assert journal.begin_run() == number
        for line in range(count):
            journal.append(f"{number}-{line}", float(number))
    wanted = run if run > 0 else len(counts) + run
    try:
        reading = journal.read(run=run, tail_lines=tail)
    except LookupError:
        assert not 1 <= wanted <= len(counts)
        return
    assert 1 <= wanted <= len(counts)
    assert reading.run == wanted
    expected = [f"{wanted}-{line}" for line in range(counts[wanted - 1])]
    expected = expected if tail is None else expected[len(expected) - min(tail, len(expected)) :]
    assert [line.text for line in reading.lines] == expected[reading.dropped :]
    assert reading.next == reading.newest
    assert reading.ended == (run != 0 and wanted < len(counts))
