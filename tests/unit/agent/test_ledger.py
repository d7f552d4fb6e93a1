"""The agent's ledger: the fence, what is on disk, and what a spoiled disk costs."""

import asyncio
import contextlib
import hashlib
from pathlib import Path

import msgspec
import pytest

from agent.ledger import CURRENT, PREVIOUS, Ledger
from rkfleet.disk import Disk, SystemDisk
from rkfleet.session import AssignmentAnswer, AssignmentOffer, Verdict
from tests.support.assignments import offer, replica
from tests.support.disk import LimitedDisk


def open_ledger(directory: Path, disk: Disk | None = None, accepted: list[int] | None = None) -> Ledger:
    return Ledger(directory, disk or SystemDisk(), lambda: accepted.append(1) if accepted is not None else None)


def accept(ledger: Ledger, *offers: AssignmentOffer) -> list[AssignmentAnswer]:
    async def all_of_them() -> list[AssignmentAnswer]:
        return [await ledger.accept(one) for one in offers]

    return asyncio.run(all_of_them())


def test_an_accepted_assignment_survives_a_restart_with_its_exact_bytes(tmp_path: Path) -> None:
    """The hash that the board reports after a cold boot is the hash that was minted."""
    accepted: list[int] = []
    one = offer(41, replica())
    assert accept(open_ledger(tmp_path, accepted=accepted), one) == [AssignmentAnswer(number=41, verdict=Verdict.ACCEPTED)]
    held = open_ledger(tmp_path).held
    assert (held.number, held.sha256, held.body.encode()) == (41, one.sha256, one.body)
    assert held.assignment.replicas == (replica(),)
    assert accepted == [1]


def test_an_older_number_is_refused(tmp_path: Path) -> None:
    """An old controller cannot take the board back."""
    ledger = open_ledger(tmp_path)
    answers = accept(ledger, offer(41, replica()), offer(40))
    assert answers[1].verdict is Verdict.OLDER
    assert answers[1].reason == "assignment 40 is older than 41, which this board holds"
    assert ledger.held.number == 41


def test_the_same_number_with_other_content_is_refused(tmp_path: Path) -> None:
    """Two controllers that mint the same number are found out."""
    ledger = open_ledger(tmp_path)
    answers = accept(ledger, offer(41, replica()), offer(41))
    assert answers[1].verdict is Verdict.CHANGED
    assert len(ledger.held.assignment.replicas) == 1


def test_a_repeated_offer_is_accepted_without_a_write(tmp_path: Path) -> None:
    """A controller that lost the answer may ask again."""
    accepted: list[int] = []
    ledger = open_ledger(tmp_path, accepted=accepted)
    answers = accept(ledger, offer(41, replica()), offer(41, replica()))
    assert [answer.verdict for answer in answers] == [Verdict.ACCEPTED, Verdict.ACCEPTED]
    assert accepted == [1]
    assert not (tmp_path / PREVIOUS).exists()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (msgspec.structs.replace(offer(1, replica()), sha256="0" * 64), "instead of 000000000000"),
        (offer(0), "number 0 must be at least 1"),
        (offer(1, replica(), replica()), "has uid 'uid-chat-1', which is empty or that of another one"),
        (offer(1, replica(files=())), "has no files"),
        (
            offer(1, replica(files=(replica().files[0].__class__(path="m", digest="sha256:../../etc/passwd", size_bytes=1),))),
            "not a sha256",
        ),
    ],
)
def test_an_assignment_that_cannot_be_followed_is_invalid(tmp_path: Path, bad: AssignmentOffer, reason: str) -> None:
    """The board keeps what it has and says what is wrong."""
    (answer,) = accept(open_ledger(tmp_path), bad)
    assert answer.verdict is Verdict.INVALID
    assert reason in answer.reason


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff\xfe", b'{"replicas": [{"name": "x"}]}'])
def test_bytes_that_are_no_assignment_are_invalid(tmp_path: Path, body: bytes) -> None:
    """Also when their hash is right."""
    bad = AssignmentOffer(number=1, body=body, sha256=hashlib.sha256(body).hexdigest())
    assert accept(open_ledger(tmp_path), bad)[0].verdict is Verdict.INVALID


def test_a_full_disk_is_said_and_the_same_offer_is_accepted_once_there_is_room(tmp_path: Path) -> None:
    """The board keeps following what it has; nothing half is left behind."""
    disk = LimitedDisk()
    ledger = open_ledger(tmp_path, disk)
    accept(ledger, offer(1, replica()))
    disk.room = 10
    (answer,) = accept(ledger, offer(2))
    assert answer.verdict is Verdict.DISK
    assert "No space left on device" in answer.reason
    assert ledger.disk_problem == answer.reason
    assert sorted(path.name for path in tmp_path.iterdir()) == [CURRENT]
    assert open_ledger(tmp_path).held.number == ledger.held.number == 1
    disk.room = None
    assert accept(ledger, offer(2))[0].verdict is Verdict.ACCEPTED
    assert ledger.disk_problem == ""
    assert open_ledger(tmp_path).held.number == 2


@pytest.mark.parametrize("damage", [b"", b"garbage", b'{"number": 3, "sha256": "00", "body": "{}"}'])
def test_a_spoiled_ledger_falls_back_to_the_one_before(tmp_path: Path, damage: bytes) -> None:
    """The board serves what it served yesterday, and the controller offers the rest again."""
    accept(open_ledger(tmp_path), offer(1), offer(2, replica()), offer(3))
    (tmp_path / CURRENT).write_bytes(damage)
    ledger = open_ledger(tmp_path)
    assert ledger.held.number == 2
    assert len(ledger.problems) == 1
    assert accept(ledger, offer(3))[0].verdict is Verdict.ACCEPTED
    assert open_ledger(tmp_path).problems == ()


def test_with_both_files_spoiled_the_board_starts_empty_and_says_so(tmp_path: Path) -> None:
    """It can still be told what to run."""
    accept(open_ledger(tmp_path), offer(1), offer(2, replica()))
    (tmp_path / CURRENT).write_bytes(b"x")
    (tmp_path / PREVIOUS).write_bytes(b"x")
    ledger = open_ledger(tmp_path)
    assert (ledger.held.number, len(ledger.problems)) == (0, 2)
    assert accept(ledger, offer(2, replica()))[0].verdict is Verdict.ACCEPTED


def test_a_flipped_bit_anywhere_is_found_and_never_believed(tmp_path: Path) -> None:
    """Whatever bit of the newest file flips, the board follows that assignment or the one before; of both files, one of them or none."""
    accept(open_ledger(tmp_path), offer(11), offer(12, replica()))
    newest = open_ledger(tmp_path).held
    whole = {name: (tmp_path / name).read_bytes() for name in (CURRENT, PREVIOUS)}
    (tmp_path / CURRENT).unlink()
    before = open_ledger(tmp_path).held
    assert (newest.number, before.number) == (12, 11)

    def spoil(name: str, position: int, bit: int) -> None:
        body = bytearray(whole[name])
        body[position % len(body)] ^= bit
        (tmp_path / name).write_bytes(body)

    for position in (*range(24), *range(24, len(whole[CURRENT]), 4)):  # the number stands at the beginning
        bit = 1 << (position % 7)
        spoil(CURRENT, position, bit)
        (tmp_path / PREVIOUS).write_bytes(whole[PREVIOUS])
        assert open_ledger(tmp_path).held in {newest, before}, (position, bit)
        spoil(PREVIOUS, position, bit)
        held = open_ledger(tmp_path).held
        assert held.number == 0 or held in {newest, before}, (position, bit)


def test_a_ledger_that_was_spoiled_is_mended_and_the_next_bad_block_costs_nothing_more(tmp_path: Path) -> None:
    """What is held stands in both places again; an older file without a check is read as before."""
    accept(open_ledger(tmp_path), offer(1), offer(2, replica()), offer(3))
    (tmp_path / CURRENT).write_bytes(b"")
    ledger = open_ledger(tmp_path)
    asyncio.run(ledger.mend())
    assert ledger.problems
    (tmp_path / PREVIOUS).write_bytes(b"")
    assert open_ledger(tmp_path).held == ledger.held
    assert accept(ledger, offer(4))[0].verdict is Verdict.ACCEPTED
    assert ledger.problems == ()
    old = msgspec.json.decode((tmp_path / CURRENT).read_bytes())
    del old["check"]
    (tmp_path / CURRENT).write_bytes(msgspec.json.encode(old))
    assert open_ledger(tmp_path).held.number == 4

    disk = LimitedDisk()
    (tmp_path / CURRENT).write_bytes(b"")
    full = open_ledger(tmp_path, disk)
    disk.room = 0
    asyncio.run(full.mend())
    assert "ledger.json cannot be written again: No space left on device" in full.disk_problem
    assert full.held.number == 2


@pytest.mark.parametrize("moment", range(8))
def test_a_kill_at_any_moment_leaves_a_whole_ledger(tmp_path: Path, moment: int) -> None:
    """Whatever call is the last one, the next start reads the old assignment or the new one."""

    class Killed(BaseException):
        pass

    class MortalDisk(SystemDisk):
        calls = 0

        def _live(self) -> None:
            self.calls += 1
            if self.calls > moment:
                raise Killed

        def write(self, descriptor: int, data: memoryview) -> int:
            self._live()
            return super().write(descriptor, data[: len(data) // 2 + 1])

        def flush(self, descriptor: int) -> None:
            self._live()
            super().flush(descriptor)

    accept(open_ledger(tmp_path), offer(1, replica()))
    with contextlib.suppress(Killed):
        accept(open_ledger(tmp_path, MortalDisk()), offer(2))
    survivor = open_ledger(tmp_path)
    assert survivor.held.number in {1, 2}
    assert survivor.problems == ()
